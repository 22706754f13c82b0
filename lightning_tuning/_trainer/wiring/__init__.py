"""Experiments behind ``WiringCheck``: a topic a file, and what they watch a program with."""
