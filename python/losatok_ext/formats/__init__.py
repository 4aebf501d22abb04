"""File formats of this package, read and written: latents and codes."""

from losatok_ext.formats.latent_files import LatentFile, LatentHeader, load_latents, save_latents
from losatok_ext.formats.latent_storage import StoreOptions

__all__ = ["LatentFile", "LatentHeader", "StoreOptions", "load_latents", "save_latents"]
