"""Sizes of updates beside their weights, and what they mean."""
