"""Measurements behind ``GradientCheck``."""
