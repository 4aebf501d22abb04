"""The waveform of an edited clip: only the parts that the edit changes are decoded, the rest is copied bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from losatok_ext.generation.edit_plan import EditPlan, Run
from losatok_ext.models import LoSATok

FADE_TOKENS = 2
"""Number of tokens on each side of a span in which the recording fades into the decoded audio (80 ms at 25 Hz)."""


@torch.no_grad()
def splice(
    model: LoSATok, plan: EditPlan, edited: Tensor, original: Tensor, keep: str = "decoded", fade: int = FADE_TOKENS
) -> Tensor:
    """The waveform of a clip after an edit.

    Args:
        model: the tokenizer, in eval mode.
        plan: of the edit.
        edited: [T', d], the latents after the edit.
        original: [N], the waveform before the edit at the model's rate; N is within the clip's last tokens.
        keep: what ``original`` is. ``"decoded"``: the decoded latents before the edit. The result equals the decoded
            ``edited`` (to rounding): it differs from ``original`` up to ``model.decoder.context_tokens`` (21) tokens
            beside generated ones, and is equal bit for bit elsewhere. ``"recording"``: the recording that was encoded.
            It is kept bit for bit except ``fade`` tokens beside generated ones, where it fades into the decoded audio.
        fade: number of tokens.

    Returns:
        [N + samples of the tokens inserted] float32 on the CPU; to the last token's end where some are added there.

    Raises:
        ValueError: shapes do not fit together, or ``keep`` is something else.
    """
    size, context = model.samples_per_token, model.decoder.context_tokens
    if keep not in ("decoded", "recording"):
        raise ValueError(f"keep should be 'decoded' or 'recording', got {keep!r}")
    if edited.dim() != 2 or len(edited) != len(plan.source):
        raise ValueError(f"edited should have the plan's {len(plan.source)} tokens, got {list(edited.shape)}")
    if original.dim() != 1 or original.numel() > plan.tokens * size:
        raise ValueError(f"original should have at most {plan.tokens * size} samples, got {list(original.shape)}")
    margin = context if keep == "decoded" else fade
    original = original.detach().float().cpu()
    end = len(edited) * size
    if not plan.continues:
        end -= plan.tokens * size - original.numel()
    padded = torch.cat([original, original.new_zeros(plan.tokens * size - original.numel())])
    audio = padded.new_zeros(len(edited) * size)
    for run in plan.runs():
        if run.source is not None:
            kept = padded[run.source * size : (run.source + run.stop - run.start) * size]
            audio[run.start * size : run.stop * size] = kept
    for start, stop in _reached(plan.runs(), margin, len(edited)):
        left, right = max(start - context, 0), min(stop + context, len(edited))
        window = model.decode(edited[None, left:right])[0].float().cpu()
        decoded = window[(start - left) * size : (stop - left) * size]
        if keep == "decoded":
            audio[start * size : stop * size] = decoded
            continue
        weight = _fades(plan.generated[start:stop], fade, size)
        # Where the weight is 0 the recording is copied: 1 * x + 0 * y would lose the sign of a zero.
        mixed = torch.lerp(audio[start * size : stop * size], decoded, weight)
        audio[start * size : stop * size] = torch.where(weight == 0, audio[start * size : stop * size], mixed)
    return audio[:end]


def _reached(runs: list[Run], margin: int, tokens: int) -> list[tuple[int, int]]:
    """Generated tokens and ``margin`` tokens beside them, as (start, stop) that neither touch nor overlap."""
    found: list[tuple[int, int]] = []
    for run in runs:
        if run.source is None:
            start, stop = max(run.start - margin, 0), min(run.stop + margin, tokens)
            if found and start <= found[-1][1]:
                start = found.pop()[0]
            found.append((start, stop))
    return found


def _fades(generated: Tensor, fade: int, size: int) -> Tensor:
    """Weight of the decoded waveform at each sample: 1 in generated tokens, falling to 0 over ``fade`` tokens."""
    inside = generated.repeat_interleave(size)
    position = torch.arange(len(inside))
    far = len(inside) + fade * size
    before = torch.where(inside, position, -far).cummax(0).values  # the last generated sample up to here
    after = torch.where(inside, position, 2 * far).flip(0).cummin(0).values.flip(0)
    distance = torch.minimum(position - before, after - position).float()
    return (1 - distance / (fade * size + 1)).clamp(0, 1)
