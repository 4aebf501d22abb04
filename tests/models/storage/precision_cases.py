"""What the tests of models in lower precisions share: how far results are apart, and clips that are each their own."""

import torch

from small_models import tone


def relative(result, expected):
    """The root mean square of the difference of a float32 ``result`` over that of ``expected``."""
    assert result.dtype == torch.float32
    return float((result - expected).norm() / expected.norm())


def check_that_a_clip_is_its_own(model):
    """Latents of clips in a batch, NaN past each, are near those of each alone: products of other sizes round
    elsewhere."""
    clips = [tone(samples, seed) for seed, samples in enumerate([16_000, 9_001, 640])]
    batch = torch.full((3, 20_000), float("nan"))
    for row, clip in zip(batch, clips, strict=True):
        row[: len(clip)] = clip
    latents = model.encode(batch, lengths=torch.tensor([len(clip) for clip in clips]))
    for row, clip in enumerate(clips):
        alone = model.encode(clip)
        assert relative(latents.mu[row, : int(alone.lengths[0])], alone.mu[0]) < 0.01
