"""Ensembles that a Trainer evaluates like any module."""
