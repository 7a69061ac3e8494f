"""Signals that wait while processes are started."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_held(*signals: signal.Signals) -> Iterator[None]:
    """Let signals wait, here until the end, and in processes that are started inside until they listen."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
