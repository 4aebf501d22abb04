"""The generator of latents: a diffusion transformer, its conditions and its configuration."""
