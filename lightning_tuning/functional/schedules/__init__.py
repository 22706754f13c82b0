"""Schedules of learning rate and momentum, as functions of the step."""
