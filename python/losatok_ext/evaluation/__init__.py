"""Measurements of models, each a function that returns a report and a `losatok evaluate` command that writes it."""
