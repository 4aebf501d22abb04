"""Training data: recordings, stored features and latents, and the batches that are made of them."""
