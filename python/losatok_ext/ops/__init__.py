"""Fused ops for low-dimensional audio latents, on torch tensors and with gradients where they make sense.

Which implementation runs is told by ``losatok_ext.info()`` and chosen by :func:`losatok_ext.use_backend`.
"""

from losatok_ext.ops.bottleneck import bottleneck_project, normalized_reconstruction_loss
from losatok_ext.ops.time_relation import gram_energy, time_relation_loss

__all__ = ["bottleneck_project", "gram_energy", "normalized_reconstruction_loss", "time_relation_loss"]
