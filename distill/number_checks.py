"""Refusals of numbers that can't be, which many settings share. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable


def check_least(settings: object, names: Iterable[str], prefix: str = "", least: int = 1) -> None:
    """Refuse numbers below `least`, and NaN; settings that are null pass. Raises ValueError."""
    for name in names:
        if (value := getattr(settings, name)) is not None and not value >= least:
            raise ValueError(f"{prefix}{name}: {value}; give {least} or more")


def check_dropout(name: str, dropout: float) -> None:
    """Refuse a share that can't be. Raises ValueError."""
    if not 0 <= dropout < 1:
        raise ValueError(f"{name}: {dropout}; give 0 or more, below 1")
