"""The public callbacks, one a file."""
