"""nn.DiTBlock is the block of published models: equal outputs and gradients with their weights copied."""

import copy

import pytest
import torch
import torch.nn.functional as F

from budget import GRADIENT_FACTOR, assert_within_budget
from losatok_ext.nn import DiTBlock, RotaryEmbedding
from nn.published_blocks import (
    F5TTS,
    F5TTSFirstRelease,
    FacebookDiT,
    StableAudio,
    StableAudioPrepended,
    UniFlowAudio,
    UniFlowAudioSOLA,
)

BLOCKS = [FacebookDiT, UniFlowAudio, UniFlowAudioSOLA, F5TTS, F5TTSFirstRelease, StableAudio, StableAudioPrepended]
B, T, S = 3, 11, 6
NO_GRADIENT = "cross_attention.k_bias"
"""Without rotation, a bias of keys moves all scores of a query alike, and softmax does not see it."""
LENGTHS, CONTEXT_LENGTHS = torch.tensor([11, 7, 1]), torch.tensor([6, 1, 4])


def ours_from(theirs):
    block = DiTBlock(theirs.config).double()
    used = set()
    with torch.no_grad():
        for parameter, sources in theirs.pairs(block):
            parameter.copy_(torch.cat(sources))
            used.add(parameter)
        for parameter, source, factor in getattr(theirs, "scaled_pairs", lambda block: [])(block):
            parameter.copy_(factor * source)
            used.add(parameter)
        for parameter in getattr(theirs, "fixed", lambda block: [])(block):
            parameter.fill_(theirs.size**-0.5)
            used.add(parameter)
    assert used == set(block.parameters())
    return block


def inputs_of(theirs):
    sizes = {
        "x": (B, T, theirs.width),
        "condition": (B, theirs.condition_dim),
        "aligned": (B, T, getattr(theirs, "aligned_dim", 0)),
        "context": (B, S, getattr(theirs, "context_dim", 0)),
        "skip": (B, T, theirs.width),
        "shared": (B, 6 * theirs.width),
    }
    names = ["x", "condition", *theirs.extras]
    return {name: torch.randn(sizes[name], dtype=torch.float64) for name in names}


def run_theirs(block, inputs, lengths):
    masks = {"mask": None if lengths is None else torch.arange(T) < lengths[:, None]}
    if "context" in inputs:
        masks["context_mask"] = None if lengths is None else torch.arange(S) < CONTEXT_LENGTHS[:, None]
    return block(**inputs, **masks)


def run_ours(block, inputs, lengths):
    config = block.config
    inputs = {name: x for name, x in inputs.items() if name != "condition" or config.modulation != "none"}
    if "condition" in inputs:
        inputs["condition"] = F.silu(inputs["condition"])
    rope = RotaryEmbedding(config.rotary_dim)(T, inputs["x"].dtype) if config.rotary_dim else None
    context_lengths = CONTEXT_LENGTHS if "context" in inputs and lengths is not None else None
    return block(**inputs, rope=rope, lengths=lengths, context_lengths=context_lengths)


def results(run, block, inputs, lengths, target):
    """The valid rows of the output, and the gradients of inputs and weights."""
    inputs = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = run(block, inputs, lengths)
    if lengths is not None:
        out = torch.where((torch.arange(T) < lengths[:, None])[..., None], out, 0.0)
    out.backward(target.to(out.dtype))
    return out, {name: x.grad for name, x in inputs.items()}


def gradients(theirs, ours):
    """(name, ours, theirs) of every weight that theirs trains."""
    names = {parameter: name for name, parameter in ours.named_parameters()}
    for parameter, sources in theirs.pairs(ours):
        if names[parameter] != NO_GRADIENT:
            yield names[parameter], parameter.grad, torch.cat([source.grad for source in sources])
    for parameter, source, factor in getattr(theirs, "scaled_pairs", lambda block: [])(ours):
        yield names[parameter], parameter.grad, source.grad / factor


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "lengths"])
@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)
def test_equal_outputs_and_gradients(kind, lengths):
    theirs = kind().double()
    ours = ours_from(theirs)
    inputs = inputs_of(theirs)
    target = torch.randn(B, T, theirs.width, dtype=torch.float64)
    exact, exact_grads = results(run_theirs, theirs, inputs, lengths, target)
    result, grads = results(run_ours, ours, inputs, lengths, target)
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(result, exact, **close)
    for name, grad in exact_grads.items():
        if grad is not None:
            torch.testing.assert_close(grads[name], grad, **close, msg=lambda m, n=name: f"{n}: {m}")
    for name, ours_grad, theirs_grad in gradients(theirs, ours):
        assert theirs_grad.abs().max() > 1e-6, f"{name} has no gradient to compare"
        torch.testing.assert_close(ours_grad, theirs_grad, **close, msg=lambda m, n=name: f"{n}: {m}")

    # And in lower precision no further from that than plain PyTorch is.
    for dtype in (torch.float32, torch.bfloat16):
        plain_block, fused_block = copy.deepcopy(theirs).to(dtype), copy.deepcopy(ours).to(dtype)
        plain_block.zero_grad()
        fused_block.zero_grad()
        low = {name: x.to(dtype) for name, x in inputs.items()}
        plain, plain_grads = results(run_theirs, plain_block, low, lengths, target)
        fused, fused_grads = results(run_ours, fused_block, low, lengths, target)
        assert_within_budget(fused, plain, exact, name="out")
        for name, grad in exact_grads.items():
            if grad is not None:
                assert_within_budget(fused_grads[name], plain_grads[name], grad, factor=GRADIENT_FACTOR, name=name)
        for (name, _, exact_grad), (_, fused_grad, plain_grad) in zip(
            gradients(theirs, ours), gradients(plain_block, fused_block), strict=True
        ):
            assert_within_budget(fused_grad, plain_grad, exact_grad, factor=GRADIENT_FACTOR, name=name)
