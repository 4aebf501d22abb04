"""Fitting quantizers to the latents of a trained model."""
