"""A wish that a job stop: Ctrl-C, or SIGUSR1 or SIGTERM where its machine is about to be taken away."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL: stopped as asked; the same command goes on from there
NOTHING_KEPT = 76  # stopped as asked; the same command begins anew
INTERRUPTED = 130  # stopped by Ctrl-C, as a shell has it
HELD = (signal.SIGINT, signal.SIGTERM)  # blocked by whoever started this process, until it listens
STEP = "stopping after the next step, with a checkpoint"

_asked = False
_interrupted = False
_file: Path | None = None


class Stopped(BaseException):
    """The job stopped because it was asked to, and can be resumed."""


def listen(at_once: bool) -> None:
    """Take SIGUSR1, SIGTERM and SIGINT as the wish to stop, from now on: `at_once` by raising Stopped, or
    KeyboardInterrupt for SIGINT, otherwise by `asked`, for training to answer between two steps. A second
    SIGINT raises always.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        global _asked
        first, _asked = not _asked, True
        if at_once and first:  # a second would break off the stopping that the first began
            raise Stopped("stopped, as asked")

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _asked, _interrupted
        again, stopping = _interrupted, _asked
        _asked = _interrupted = True
        if again or (at_once and not stopping):
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background
        signal.signal(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def tell(wish: str) -> None:
    """Say what the first Ctrl-C asks for, in a signal handler: print may be what it interrupts."""
    os.write(2, b"\n" * os.isatty(2) + f"{wish}; Ctrl-C again ends at once\n".encode())


def watch(file: Path) -> None:
    """Take it as the wish, too, when this file is there: for a process that no signal reaches."""
    global _file
    _file = file


def asked() -> bool:
    """Whether this process was asked to stop."""
    return _asked or (_file is not None and os.path.exists(_file))


def interrupted() -> bool:
    """Whether it was asked by Ctrl-C."""
    return _interrupted


def exit_code(interrupted: bool, resumes: bool) -> int:
    """The exit code of a job that stopped as asked: by Ctrl-C or not, able to resume or not."""
    if interrupted:
        return INTERRUPTED
    return EXIT_CODE if resumes else NOTHING_KEPT
