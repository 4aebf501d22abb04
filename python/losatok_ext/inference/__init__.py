"""Jobs on the models: latent files, and encoding and decoding many recordings."""
