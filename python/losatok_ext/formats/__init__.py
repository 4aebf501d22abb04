"""File formats of this package, read and written: latents and codes."""
