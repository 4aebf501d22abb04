"""The magnitude of the mel loss has a gradient of its own: it is PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from losatok_ext.audio.stft import centred_magnitude
from losatok_ext.nn.losses import MultiScaleMelLoss


def plain(audio, window, hop):
    size = window.numel()
    frames = F.pad(audio, (size // 2, size // 2)).unfold(1, size, hop)[:, : audio.shape[1] // hop + 1]
    return torch.fft.rfft(frames * window).abs()


@pytest.mark.parametrize(("size", "hop"), [(16, 4), (32, 8), (12, 6), (8, 8)])
@pytest.mark.parametrize("samples", [1, 33, 64])
def test_the_gradient_of_the_magnitude(size, hop, samples):
    audio = torch.randn(2, samples, dtype=torch.float64, requires_grad=True)
    window = torch.hann_window(size, dtype=torch.float64) + 0.1
    torch.testing.assert_close(centred_magnitude(audio, window, hop), plain(audio, window, hop))
    assert torch.autograd.gradcheck(lambda x: centred_magnitude(x, window, hop), (audio,))
    weights = torch.randn_like(plain(audio, window, hop))
    (ours,) = torch.autograd.grad((centred_magnitude(audio, window, hop) * weights).sum(), audio)
    (theirs,) = torch.autograd.grad((plain(audio, window, hop) * weights).sum(), audio)
    torch.testing.assert_close(ours, theirs)


def test_silence_takes_no_gradient_and_no_nan():
    audio = torch.zeros(1, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(centred_magnitude(audio, torch.hann_window(16), 4).sum(), audio)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_target_takes_no_gradient_and_the_mask_holds():
    loss = MultiScaleMelLoss([16, 32], [4, 8], 16000)
    audio, target = torch.randn(2, 128, requires_grad=True), torch.randn(2, 128, requires_grad=True)
    lengths = torch.tensor([128, 50])
    loss(audio, target, lengths).backward()
    assert target.grad is None
    assert audio.grad[1, :50].abs().min() > 0
    assert not audio.grad[1, 50:].any()
