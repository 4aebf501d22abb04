"""The inverse STFT head: it inverts the STFT, and clips end where they end."""

import torch
import torch.nn.functional as F

from losatok_ext import ops
from losatok_ext.nn import ISTFTHead
from losatok_ext.ops.reference.vocoder import overlap_add


def spectrum_of(audio, n_fft, hop):
    """Frames of the STFT that "same" padding inverts: (n_fft - hop) / 2 zeros on either side."""
    pad = (n_fft - hop) // 2
    frames = F.pad(audio, (pad, pad)).unfold(1, n_fft, hop)
    return torch.fft.rfft(frames * torch.hann_window(n_fft))


def waveform(spectrum, lengths=None):
    head = torch.cat([spectrum.abs().log(), spectrum.angle()], dim=-1)
    return ops.polar_istft(head, ISTFTHead(4, 1280, 320).window, 320, lengths)


def test_it_inverts_the_stft():
    audio = torch.randn(2, 320 * 9) / 4  # of magnitudes below 100
    torch.testing.assert_close(waveform(spectrum_of(audio, 1280, 320)), audio, rtol=1e-4, atol=1e-5)


def test_each_clip_ends_at_its_own_end():
    counts = [9, 5, 1, 0]
    audio = torch.randn(4, 320 * 9) / 4
    spectrum = torch.full((4, 9, 641), complex(float("nan"), float("nan")))
    for row, count in enumerate(counts):
        if count:
            spectrum[row, :count] = spectrum_of(audio[row : row + 1, : 320 * count], 1280, 320)[0]
    result = waveform(spectrum, torch.tensor(counts))
    for row, count in enumerate(counts):
        torch.testing.assert_close(result[row, : 320 * count], audio[row, : 320 * count], rtol=1e-4, atol=1e-5)
        assert not result[row, 320 * count :].any()


def test_magnitudes_are_capped_and_gradients_stay_finite():
    head = ISTFTHead(4, 64, 16)
    with torch.no_grad():
        head.out.bias[:33] = 500.0  # exp would be infinite
        head.out.weight.zero_()
    x = torch.randn(1, 6, 4, requires_grad=True)
    audio = head(x)
    assert torch.isfinite(audio).all()
    # 33 bins of magnitude 100 and phase 0: an impulse of 100 at the start of each frame, where the window is 0.
    audio.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(head.out.bias.grad).all()


def test_capped_magnitude_is_a_hundred():
    head = ISTFTHead(2, 64, 16)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
        head.out.bias[3] = 50.0
        flat = head(torch.zeros(1, 8, 2))
        head.out.bias[3] = torch.log(torch.tensor(100.0))
        exact = head(torch.zeros(1, 8, 2))
    torch.testing.assert_close(flat, exact, rtol=1e-5, atol=1e-5)


def test_overlap_add_is_fold():
    frames = torch.randn(3, 7, 24)
    folded = F.fold(frames.transpose(1, 2), (1, 6 * 8 + 24), (1, 24), stride=(1, 8)).flatten(1)
    torch.testing.assert_close(overlap_add(frames, 8), folded)
