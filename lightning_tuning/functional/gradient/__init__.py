"""Differences against gradients, and what they mean."""
