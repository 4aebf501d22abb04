"""LoSATok for other tools: one module for each, which does not import the tool."""
