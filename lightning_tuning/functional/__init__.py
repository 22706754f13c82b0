"""The craft itself: pure functions and frozen result dataclasses."""
