"""losatok_ext: fused PyTorch ops for low-dimensional audio latents, and the complete LoSATok stack on top of them."""

from losatok_ext.ops.dispatch import BackendUnavailableError, use_backend

__version__ = "0.1.0"
__all__ = ["BackendUnavailableError", "__version__", "use_backend"]
