"""Pictures of filters, their smoothness, and the rule of ``FilterMonitor``."""
