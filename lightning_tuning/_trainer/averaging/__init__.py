"""What ``EMAWeights`` does to a fit."""
