"""What ``UpdateRatioMonitor`` does to a trainer."""
