"""The tokenizer: its configuration, encoders, decoder and latents."""
