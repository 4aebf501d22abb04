"""Groups of features, each with a quantizer of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losatok_ext.nn.quantizers.base import Quantized, Quantizer
from losatok_ext.nn.quantizers.config import GroupedConfig


class GroupedQuantizer(Quantizer):
    """A quantizer for each of G equal groups of neighbouring features; with :class:`ResidualVQ`, grouped residual VQ.

    Grouped residual VQ is that of HiFi-Codec (Yang et al. 2023, arXiv 2305.02765); with :class:`VectorQuantizer` it is
    product quantization. Each group has codebooks and linear maps of its own. The losses are summed over the groups.
    With ``dropout``, a clip uses as many stages in one group as in the others.

    Args:
        config: of the quantizer.
        dim: d, features of the latents, a multiple of G.
        groups: the quantizers, of d / G features each.

    Attributes:
        groups: the quantizers of the groups, in the order of the features.

    Codes are [..., n G] for latents [..., d], n codes per token of a group: the first code of every group, then the
    second of every group, and so on. So the first codes of all groups are the first codes of a token, and of residual
    quantizers the first q G codes can be decoded too, q <= n.
    """

    config: GroupedConfig

    def __init__(self, config: GroupedConfig, dim: int, groups: list[Quantizer]) -> None:
        super().__init__(config, dim, dim, code_dim=True)
        self.groups = nn.ModuleList(groups)

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizers of the groups."""
        return [group for group in self.groups if isinstance(group, Quantizer)]

    @property
    def codebook_size(self) -> int:
        """That of the quantizer of a group."""
        return self.quantizers[0].codebook_size

    @property
    def bits_per_token(self) -> float:
        """The sum over the groups."""
        return sum(group.bits_per_token for group in self.quantizers)

    def _draw_stages(self, batch: int, device: torch.device) -> Tensor | None:
        return self.quantizers[0]._draw_stages(batch, device)

    def _parts(self, frames: Tensor) -> list[tuple[Quantizer, Tensor]]:
        groups = self.quantizers
        return list(zip(groups, frames.chunk(len(groups), dim=-1), strict=True))

    def _forward(self, frames: Tensor, lengths: Tensor | None, used: Tensor | None) -> Quantized:
        results = [group._forward(part, lengths, used) for group, part in self._parts(frames)]
        losses: dict[str, Tensor] = {}
        for result in results:
            for name, value in result.losses.items():
                losses[name] = losses[name] + value if name in losses else value
        quantized = torch.cat([result.quantized for result in results], dim=-1)
        return Quantized(quantized, self._merged([result.codes for result in results]), losses)

    def _codes_of(self, frames: Tensor, lengths: Tensor | None) -> Tensor:
        return self._merged([group._codes_of(part, lengths) for group, part in self._parts(frames)])

    def _merged(self, codes: list[Tensor]) -> Tensor:
        """The codes of the groups, [B, T] or [B, T, n] each, as [B, T, n G]."""
        return torch.stack(codes, dim=-1).flatten(2)

    def _decode(self, codes: Tensor) -> Tensor:
        groups = self.quantizers
        first, count = groups[0], codes.shape[-1]
        if count % len(groups) or (not first.code_dim and count != len(groups)):
            raise ValueError(
                f"codes should have shape [..., n {len(groups)}], n codes of each of the {len(groups)} groups, "
                f"got {list(codes.shape)}"
            )
        parts = codes.unflatten(-1, (-1, len(groups))).unbind(-1)
        return torch.cat(
            [
                group.decode(part if group.code_dim else part.squeeze(-1))
                for group, part in zip(groups, parts, strict=True)
            ],
            dim=-1,
        )
