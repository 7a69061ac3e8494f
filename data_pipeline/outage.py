"""Failures that may be gone at the next attempt, as a user's mistakes are not."""


class Outage(ValueError):
    """A store that does not answer, a folder that is still held, a processor that computes wrong."""
