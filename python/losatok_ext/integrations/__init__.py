"""LoSATok in the tools of others: a module each, which imports nothing of theirs."""
