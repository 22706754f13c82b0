"""Why a probe cannot run."""


class CannotProbeError(Exception):
    """A program that steps can't be tried on and put back; the message says why."""
