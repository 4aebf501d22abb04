"""The loop that all stages share: steps, checkpoints, validation, logs and processes."""
