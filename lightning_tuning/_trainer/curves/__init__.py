"""What ``LossCurveDiagnosis`` takes from a fit."""
