"""Writing shards: recordings, and features or latents computed once."""
