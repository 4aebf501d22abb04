"""The trials of tools/torture.py: each makes things go wrong in one way, and says what did not hold."""
