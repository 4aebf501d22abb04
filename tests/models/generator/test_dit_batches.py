"""A clip's output is the same alone, in any batch and behind any padding; so are the gradients of the weights."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generator.dit_cases import all_conditions, noisy, small_dit

NAN = float("nan")
DIT = small_dit()
OTHER = small_dit(activation="gelu", gate="sigmoid(1-g)", qk_norm="layer", norm_weights="affine", modulation="shared")


def spoil(x, lengths, fill):
    """``x`` [B, T, C] with ``fill`` past each length."""
    return torch.where((torch.arange(x.shape[1]) < lengths[:, None])[..., None], x, fill)


def padded(x, extra):
    return torch.nn.functional.pad(x, (0, 0, 0, extra))


def only(conditions, row, frames):
    """Item ``row`` alone, its text and aligned features cut to their lengths."""
    item = conditions[[row]]
    size = int(item.text_lengths[0])
    return dataclasses.replace(item, text=item.text[:, :size], aligned=item.aligned[:, :frames])


@settings(max_examples=15, deadline=None)
@given(
    frames=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    extra=st.integers(0, 5),
    fill=st.sampled_from([NAN, 0.0, 1e30, float("inf")]),
    drop=st.integers(0, 3),
    model=st.sampled_from([DIT, OTHER]),
)
def test_any_batch_and_any_padding(frames, extra, fill, drop, model):
    batch, time = len(frames), max(frames) + extra
    lengths = torch.tensor(frames)
    x, t = noisy(batch, time)
    conditions = all_conditions(batch, time)
    conditions = dataclasses.replace(conditions, drop=torch.arange(batch) == drop)
    spoilt = dataclasses.replace(
        conditions,
        text=spoil(conditions.text, conditions.text_lengths, fill),
        aligned=spoil(conditions.aligned, lengths, fill),
    )
    with torch.no_grad():
        together = model(spoil(x, lengths, fill), t, spoilt, lengths)
        for row, count in enumerate(frames):
            alone = model(x[[row], :count], t[[row]], only(conditions, row, count))
            torch.testing.assert_close(together[row, :count], alone[0], rtol=1e-4, atol=1e-4)
            assert not together[row, count:].any()


def test_padding_changes_no_gradient():
    lengths = torch.tensor([9, 4, 0])
    x, t = noisy(3, 9)
    conditions = all_conditions(3, 9)
    grads = []
    for extra, fill in ((0, 0.0), (6, NAN)):
        DIT.zero_grad()
        told = dataclasses.replace(
            conditions,
            text=spoil(padded(conditions.text, extra), conditions.text_lengths, fill),
            aligned=spoil(padded(conditions.aligned, extra), lengths, fill),
        )
        given_x = spoil(padded(x, extra), lengths, fill).requires_grad_()
        DIT(given_x, t, told, lengths)[:, :9].square().sum().backward()
        grads.append([given_x.grad[:, :9], *(p.grad.clone() for p in DIT.blocks.parameters()), DIT.proj_in.weight.grad])
        assert not given_x.grad[:, 9:].any()
    for first, second in zip(*grads, strict=True):
        torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5 * float(first.abs().max().clamp(min=1)))


def test_positions_are_relative_to_nothing_but_order():
    # Rotary embedding sees distances only: a clip of equal frames has equal outputs at all of them.
    x = torch.randn(1, 1, 8).expand(1, 9, 8)
    with torch.no_grad():
        out = DIT(x, torch.tensor(0.3))
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=1e-4, atol=1e-4)
    shuffled, _ = noisy(1, 9)
    with torch.no_grad():
        forwards, backwards = DIT(shuffled, torch.tensor(0.3)), DIT(shuffled.flip(1), torch.tensor(0.3))
    assert (forwards - backwards.flip(1)).abs().max() > 1e-2
