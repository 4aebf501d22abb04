"""Sampling from a generator: new clips, and edits of recorded ones."""
