"""What goes wrong now and may not the next time, where other mistakes stay."""


class Outage(ValueError):
    """A store that does not answer, a folder that is still held, a processor that computes wrong."""
