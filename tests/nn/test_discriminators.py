"""Discriminators against their papers written out for one clip, and that nothing past a clip's end is heard."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from losatok_ext.nn.adversarial import discriminator_loss
from losatok_ext.nn.discriminators import DISCRIMINATORS, Discriminators, MultiFrequencyDiscriminator

KINDS = tuple(DISCRIMINATORS)
SMALL = {
    "mfd": {"hops": (8, 16), "channels": (64, 128), "scale": 0.5},
    "mpd": {"periods": (2, 5), "scale": 1 / 16},
    "mrd": {"resolutions": ((32, 6, 20), (64, 10, 48)), "scale": 1 / 8},
    "msstft": {"windows": (64, 16), "scale": 1 / 8},
}
LENGTHS = (200, 131, 1)


def small(kind):
    return DISCRIMINATORS[kind](**SMALL[kind]).double()


def clips():
    audio = torch.randn(len(LENGTHS), 200, dtype=torch.float64)
    return audio, torch.tensor(LENGTHS)


def weight(conv):
    """The kernel that weight normalisation makes: g v / |v|, the norm over all but the output channel."""
    g, v = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    return g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def spectrum(clip, n_fft, hop, size):
    """[T, F] of one clip, silence beyond its ends, by the definition of the transform."""
    window = F.pad(torch.hann_window(size).double(), ((n_fft - size) // 2, -((size - n_fft) // 2)))
    count = len(clip) // hop + 1
    longer = F.pad(clip, (n_fft // 2, n_fft))
    turn = torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(n_fft)).double() * (-2 * torch.pi / n_fft)
    frames = torch.stack([longer[t * hop : t * hop + n_fft] * window for t in range(count)])
    return torch.complex(frames @ turn.cos().T, frames @ turn.sin().T)


def plane(kind, index, clip):
    """What a part looks at, [1, C, T, W], as the papers have it."""
    if kind == "mpd":
        period = SMALL[kind]["periods"][index]
        return F.pad(clip, (0, -len(clip) % period)).view(1, 1, -1, period)
    if kind == "mrd":
        return spectrum(clip, *SMALL[kind]["resolutions"][index]).abs()[None, None]
    hop = SMALL["mfd"]["hops"][index] if kind == "mfd" else SMALL["msstft"]["windows"][index] // 4
    complex_plane = spectrum(clip, 4 * hop, hop, 4 * hop) / (4 * hop) ** 0.5
    return torch.stack([complex_plane.real, complex_plane.imag])[None]


# Per layer: kernel, stride and dilation over (time, width), and the slope of the leaky ReLU.
PAPERS = {
    "mfd": ([((3, 3), (stride, stride), (1, 1)) for stride in (1, 2, 1, 2, 1, 2, 1)], 0.2),
    "mpd": ([((5, 1), (stride, 1), (1, 1)) for stride in (3, 3, 3, 3, 1)] + [((3, 1), (1, 1), (1, 1))], 0.1),
    "mrd": ([((9, 3), (stride, 1), (1, 1)) for stride in (1, 2, 2, 2)] + [((3, 3), (1, 1), (1, 1))] * 2, 0.2),
    "msstft": (
        [((3, 9), (1, 1), (1, 1))]
        + [((3, 9), (1, 2), (dilation, 1)) for dilation in (1, 2, 4)]
        + [((3, 3), (1, 1), (1, 1))] * 2,
        0.2,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_clip_of_a_batch_is_judged_as_the_paper_judges_it_alone(kind):
    model = small(kind)
    layers, slope = PAPERS[kind]
    audio, lengths = clips()
    spoiled = torch.where(torch.arange(200) < lengths[:, None], audio, float("nan"))
    results = model(spoiled, lengths)
    assert len(results) == 2
    for index, scores in enumerate(results):
        assert len(scores.maps) + 1 == len(scores.lengths) == len(layers)
        for row, length in enumerate(LENGTHS):
            x = plane(kind, index, audio[row, :length])
            found = [*scores.maps, scores.logits.unsqueeze(1)]
            for number, (kernel, stride, dilation) in enumerate(layers):
                conv = model.parts[index].convs[number]
                padding = [(k - 1) // 2 * d for k, d in zip(kernel, dilation, strict=True)]
                assert conv.kernel_size == kernel
                x = F.conv2d(x, weight(conv), conv.bias, stride, padding, dilation)
                x = F.leaky_relu(x, slope) if number + 1 < len(layers) else x
                count = x.shape[2]
                assert scores.lengths[number][row] == count
                torch.testing.assert_close(found[number][row, :, :count], x[0], rtol=1e-9, atol=1e-12)
                assert not found[number][row, :, count:].any()
            assert x.shape[1] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_lengths_every_frame_is_judged(kind):
    model, (audio, _) = small(kind), clips()
    whole = model(audio, torch.full((3,), 200))
    for plain, masked in zip(model(audio), whole, strict=True):
        assert plain.lengths is None
        assert torch.equal(plain.logits, masked.logits)
        assert all(torch.equal(a, b) for a, b in zip(plain.maps, masked.maps, strict=True))


@settings(max_examples=12, deadline=None)
@given(kind=st.sampled_from(KINDS), length=st.integers(0, 90), longer=st.integers(0, 60), seed=st.integers(0, 99))
def test_padding_changes_nothing(kind, length, longer, seed):
    torch.manual_seed(seed)
    model = small(kind)
    clip = torch.randn(1, 90, dtype=torch.float64)
    padded = torch.cat([clip[:, :length], torch.full((1, 90 - length + longer), float("nan"))], dim=1).double()
    ours, theirs = model(padded, torch.tensor([length])), model(clip, torch.tensor([length]))
    for one, other in zip(ours, theirs, strict=True):
        found, expected = [*one.maps, one.logits[:, None]], [*other.maps, other.logits[:, None]]
        for a, b, counts in zip(found, expected, one.lengths, strict=True):
            torch.testing.assert_close(a[:, :, : counts[0]], b[:, :, : counts[0]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_padded_batch(kind):
    model = small(kind)
    audio, lengths = torch.randn(2, 40, dtype=torch.float64, requires_grad=True), torch.tensor([40, 23])

    def judge(x):
        scores = model(x, lengths)
        return [s.logits for s in scores] + [m.sum((1, 2, 3)) for s in scores for m in s.maps]

    assert torch.autograd.gradcheck(judge, (audio,), fast_mode=True)
    spoiled = torch.where(torch.arange(40) < lengths[:, None], audio.detach(), float("nan")).requires_grad_(True)
    sum(score.sum() for score in judge(spoiled)).backward()
    assert torch.isfinite(spoiled.grad).all()
    assert spoiled.grad[1, :23].all()
    assert not spoiled.grad[1, 23:].any()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_silence_has_a_gradient_without_nan():
    model = Discriminators(KINDS, 1 / 32)
    audio = torch.zeros(1, 3000, requires_grad=True)
    sum(scores.logits.sum() for scores in model(audio)).backward()
    assert torch.isfinite(audio.grad).all()


def test_published_sizes():
    """HiFi-GAN's periods have 41.1 M weights; the others by their layers, as (in, out, kernel)."""

    def count(kind):
        return sum(p.numel() for n, p in DISCRIMINATORS[kind]().named_parameters() if not n.endswith("original0"))

    assert count("mpd") == 41_092_165
    channels = [[c // d for d in (32, 16, 8, 4, 2, 1)] for c in (256, 512, 512)]
    expected = sum(9 * a * b + b for c in channels for a, b in zip([2, *c], [*c, 1], strict=True))
    assert count("mfd") == expected
    assert len(MultiFrequencyDiscriminator().parts[0].convs) == 7
    stack = 27 * 32 + 3 * 27 * 32 * 32 + 9 * 32 * 32 + 9 * 32 + 5 * 32 + 1
    assert count("mrd") == 3 * stack
    assert count("msstft") == 5 * (stack + 27 * 32)


def test_autocast_rounds_the_networks_and_not_the_spectra():
    model = Discriminators(("mfd", "mrd"), 1 / 32)
    audio = torch.randn(1, 4000) * 1e-3
    seen = []
    for discriminator in model.values():
        for part in discriminator.parts:
            part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(audio)
    assert {plane.dtype for plane in seen} == {torch.float32}
    assert {s.logits.dtype for s in scores} == {torch.bfloat16}
    plain = list(seen)
    seen.clear()
    model(audio)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"kinds should be one or more of 'mfd', .* got \['mfd', 'mfd'\]"):
        Discriminators(["mfd", "mfd"])
    with pytest.raises(ValueError, match=r"got \['msd'\]"):
        Discriminators(["msd"])
    with pytest.raises(ValueError, match="scale should be positive, got 0"):
        Discriminators(["mfd"], 0)
    with pytest.raises(ValueError, match=r"audio should have shape \[B, N\] with N >= 1, got \[2, 0\]"):
        small("mfd")(torch.zeros(2, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_to_tell_tones_from_noise(kind):
    model = Discriminators([kind], 1 / 8)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.8, 0.99))
    time, losses = torch.arange(800) / 16000, []
    while len(losses) < 80 and (not losses or losses[-1] > 1.5):
        tones = 0.3 * torch.sin(2 * torch.pi * (200 + 600 * torch.rand(4, 1)) * time)
        loss = discriminator_loss(model(tones), model(0.2 * torch.randn(4, 800)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.0, abs=0.1)  # it knows nothing
    assert losses[-1] < 1.5
