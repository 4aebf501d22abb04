"""Quantizers under torch.compile: one graph, once, in eval and while they learn."""

import copy

import pytest
import torch

from losatok_ext.nn import (
    GroupedConfig,
    ResidualLFQConfig,
    ResidualVQConfig,
    SimVQConfig,
    VectorQuantizer,
    VQConfig,
    build_quantizer,
)
from nn.quantizer_cases import CONFIGS, DIM, batch, total

LEARNING = {
    "vq": CONFIGS["vq-rotation-projected"],
    "vq-learned-cosine": CONFIGS["vq-learned-cosine"],
    "rvq-dropout": ResidualVQConfig(codebook_size=16, stages=2, dropout=0.5, shared=True, stage_gradients=True),
    "rvq-grouped": GroupedConfig(
        2, ResidualVQConfig(codebook_size=8, stages=2, dropout=0.5, dropout_multiple_of=2, dead_below=0.0)
    ),
    "simvq-directional": SimVQConfig(codebook_size=16, gradient="directional"),
    "rfsq": CONFIGS["rfsq"],
    "rlfq": ResidualLFQConfig(bits=3, stages=2, dropout=0.5),
    "lfq": CONFIGS["lfq"],
}
CASES = [(config, True) for config in LEARNING.values()] + [
    (CONFIGS[name], False) for name in ("rvq", "fsq-two", "affine")
]


@pytest.mark.parametrize(("config", "training"), CASES, ids=[*LEARNING, "rvq-eval", "fsq-eval", "affine-eval"])
def test_compiles_whole_and_once(config, training):
    torch._dynamo.reset()
    quantizer = build_quantizer(config, DIM)
    quantizer(batch())  # the start, which happens once
    quantizer.train(training)
    twin = copy.deepcopy(quantizer)
    compiled = torch.compile(
        lambda x, lengths: quantizer(x, lengths), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for clips, time in ((6, 20), (4, 31), (2, 7)):  # no two sizes of the first alike, lest they be taken for one
            x = batch(clips, time, seed=time)
            lengths = torch.full((clips,), time - 1)
            results = []
            for module in (compiled, twin):
                torch.manual_seed(time)
                own = x.clone().requires_grad_()
                result = module(own, lengths)
                (grad,) = torch.autograd.grad(total(result), own)
                results.append((result.codes, result.quantized, grad, *result.losses.values()))
            for ours, eager in zip(*results, strict=True):
                torch.testing.assert_close(ours, eager)
    for ours, eager in zip(quantizer.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, eager)


def test_the_start_compiles_too():
    torch._dynamo.reset()
    quantizer = VectorQuantizer(VQConfig(codebook_size=6, kmeans_iterations=1), DIM)
    twin = copy.deepcopy(quantizer)
    compiled = torch.compile(lambda x: quantizer(x), fullgraph=True, backend="aot_eager")
    for step in range(2):
        for module in (compiled, twin):
            torch.manual_seed(step)
            module(batch(seed=step))
    assert quantizer.codebooks.ready
    torch.testing.assert_close(quantizer.codebook, twin.codebook)
