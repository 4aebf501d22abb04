"""A model in a lower precision, with what does not bear it kept in float32.

Kept: the mel front ends with their batch norm, the position embeddings, the last linear maps of the encoder, so that
latents are float32, the quantizer of them, and the decoder's inverse STFT with the linear layer before it, whose phases
make many turns. Statistics of norms, softmax and sums are taken in float32 by the ops themselves, whatever the dtype of
the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from losatok_ext.models.losatok import LoSATok

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

KEPT = (
    "semantic_encoder.batch_norm.",
    "semantic_encoder.time_position",
    "semantic_encoder.frequency_position",
    "fc_a.",
    "fc_mu.",
    "fc_logvar.",
    "quantizer.",
    "decoder.head.",
)
"""The parameters that stay in float32, by how their names begin."""


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """``"float32"`` or ``"bfloat16"``, or the torch.dtype itself, as a torch.dtype.

    Raises:
        ValueError: another one.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"dtype should be one of {', '.join(map(repr, DTYPES))}, got {dtype!r}")
    assert found is not None
    return found


def cast(model: LoSATok, dtype: torch.dtype) -> LoSATok:
    """``model`` itself with its weights in ``dtype``, those of :data:`KEPT` in float32."""
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{module_name}.{name}" if module_name else name
            parameter.data = parameter.data.to(torch.float32 if full.startswith(KEPT) else dtype)
    return model
