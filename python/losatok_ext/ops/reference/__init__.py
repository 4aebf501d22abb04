"""Each op in plain PyTorch: its definition, and the oracle of every test. Never optimised, and exact in float64."""
