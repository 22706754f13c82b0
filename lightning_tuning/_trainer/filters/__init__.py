"""What ``FilterMonitor`` reads during a fit."""
