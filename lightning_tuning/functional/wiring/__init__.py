"""Rules of ``WiringCheck``: from evidence to findings."""
