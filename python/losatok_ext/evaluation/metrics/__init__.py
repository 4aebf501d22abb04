"""Measures of sound and of features, each a function of tensors or arrays."""
