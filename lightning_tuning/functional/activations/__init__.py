"""Statistics of layers, and what they mean."""
