"""Semantic encoders, and how they are found by name."""
