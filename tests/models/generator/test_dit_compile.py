"""The generator under torch.compile: one graph without breaks, for every batch and length."""

import dataclasses

import pytest
import torch

from losatok_ext.models import Conditions
from models.generator.dit_cases import all_conditions, noisy, small_dit


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(model, x, t, conditions, lengths):
    return model(x, t, conditions, lengths).square().mean()


def test_training_compiles_once():
    model = small_dit(depth=3, activation="gelu", aligned_dim=0)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True, error_on_recompile=True):
        # Sizes unlike those of the weights: equal sizes are taken to stay equal.
        for batch, time, size in [(6, 11, 10), (7, 13, 12), (9, 30, 14)]:
            x, t = noisy(batch, time)
            conditions = all_conditions(batch, time, size)
            conditions = dataclasses.replace(conditions, aligned=None, drop=torch.arange(batch) == 1)
            lengths = torch.arange(1, batch + 1)
            weights = [model.proj_in.weight, model.null_text, model.blocks[1].attention.qkv.weight]
            ours = compiled(model, x, t, conditions, lengths)
            theirs = step(model, x, t, conditions, lengths)
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(torch.autograd.grad(ours, weights), torch.autograd.grad(theirs, weights))


def test_sampling_compiles_without_conditions():
    model = small_dit(depth=1, aligned_dim=0, global_dim=0, modulation="shared", activation="gelu")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1, error_on_recompile=True):
        for batch, time in [(6, 11), (7, 13)]:
            x, t = noisy(batch, time)
            told = Conditions(drop=torch.ones(batch, dtype=torch.bool))
            torch.testing.assert_close(compiled(x, t, told), model(x, t))
