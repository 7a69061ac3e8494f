"""A wish that a job stop, told by SIGUSR1 or SIGTERM: its machine is about to be taken away."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: the same command goes on where this one stopped

_asked = False
_file: Path | None = None


class Stopped(BaseException):
    """The job stopped because it was asked to, and can be resumed."""


def listen(at_once: bool) -> None:
    """Take SIGUSR1 and SIGTERM as the wish to stop, from now on: `at_once` by raising Stopped, otherwise
    by `asked`, for training to answer between two steps.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        global _asked
        first, _asked = not _asked, True
        if at_once and first:  # another would break off what the first has set going
            raise Stopped("stopped, as asked")

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, ask)


def watch(file: Path) -> None:
    """Take it as the wish, too, that this file is there: for a process that no signal reaches."""
    global _file
    _file = file


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked or (_file is not None and os.path.exists(_file))
