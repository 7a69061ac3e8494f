"""A watchdog over ranks: where all wait for one that does not come, the run ends and says which.

A thread of every rank beats in the store that the ranks found each other by. When its own main thread has
not moved for too long, it compares: a rank without beats is frozen or gone, one with fewer moves is behind.
Nothing is asked of the others until then, so a step costs an addition.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch

LOOKS = 4  # intervals without a beat after which a rank is silent
SILENCE = 45.0  # seconds without an answer after which the store is unreachable


def connect() -> torch.distributed.Store:
    """A second connection to the store at MASTER_ADDR: the main thread may be waiting on the usual one."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=30))


class Watchdog:
    """Watches one rank's main thread, from the first move until `close`.

    Args:
        name: What is watched; every rank's the same, and another for every watch of a process.
        rank: This rank.
        world: Number of ranks; one alone waits for nobody.
        patience: Seconds without a move after which a rank asks who is missing; 0 for never.
        end: Called once by a thread: on the first rank that finds out with what to say, else with nothing.
        open_store: Connects to the ranks' store.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        world: int,
        patience: float,
        end: Callable[[str], None],
        open_store: Callable[[], torch.distributed.Store] = connect,
    ):
        self.rank, self.world, self.patience, self.end = rank, world, patience, end
        self.moves = 0
        self._name = f"{socket.gethostname()} process {os.getpid()}"
        self._prefix = f"distillery/{name}"
        self._idle = True
        self._closed = threading.Event()
        self._beats = 0  # never twice the same: who asks compares two
        if world > 1 and patience:
            self._store = open_store()
            self._beat()  # before any move: whoever asks finds every rank's
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def move(self) -> None:
        """The main thread got on."""
        self.moves += 1
        self._idle = False

    def rest(self) -> None:
        """The main thread does what may take any time; it is not watched before its next move."""
        self._idle = True

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _watch(self) -> None:
        interval = min(5.0, self.patience / 10)
        seen, stood = 0, 0.0
        while not self._closed.wait(interval):
            # Intervals, not the clock: a whole run may have been suspended.
            stood = 0.0 if self._idle or self.moves != seen else stood + interval
            seen = self.moves
            try:
                self._beat()
                missing = self._missing_in_time(interval) if stood >= self.patience else ""
                if missing and self.moves == seen and not self._closed.is_set():
                    first = self._store.add(f"{self._prefix}/told", 1) == 1
                    self.end(f"{missing}, {stood:.0f} s after the others" if first else "")
                    return
            except (RuntimeError, TimeoutError) as error:  # the store's process has ended, or stands still
                if stood >= self.patience and not self._closed.is_set():
                    reason = " ".join(str(error).split())[:200]
                    self.end(f"no step for {stood:.0f} s, and rank 0's node does not answer ({reason})")
                    return

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"{self._prefix}/{self.rank}", f"{self._beats} {self.moves} {self._name}")

    def _others(self) -> dict[int, tuple[int, int, str]]:
        """Beats, moves and name of every rank."""
        found = {}
        for rank in range(self.world):
            beats, moves, name = self._store.get(f"{self._prefix}/{rank}").decode().split(" ", 2)
            found[rank] = (int(beats), int(moves), name)
        return found

    def _missing_in_time(self, interval: float) -> str:
        """What `_missing` says. Raises TimeoutError where the store is silent: across a network that was
        lost it would wait for ever, its own timeout notwithstanding.
        """
        answer: Future[str] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._missing(interval))
            except RuntimeError as error:
                answer.set_exception(error)

        threading.Thread(target=ask, name="watchdog asks", daemon=True).start()
        try:
            return answer.result(LOOKS * interval + SILENCE)
        except TimeoutError:
            raise TimeoutError(f"silent for {SILENCE:.0f} s") from None

    def _missing(self, interval: float) -> str:
        """Who does not come: the ranks without beats, or else those that are behind; empty for none."""
        before = self._others()
        for _ in range(LOOKS):
            if self._closed.wait(interval):
                return ""
            self._beat()  # another may be asking as well
        after = self._others()
        silent = [rank for rank in after if rank != self.rank and after[rank][0] == before[rank][0]]
        most = max(moves for _, moves, _ in after.values())
        behind = [rank for rank, (_, moves, _) in after.items() if moves < most]
        kind = "gives no sign of life" if silent else "is behind"
        named = [f"rank {rank} ({after[rank][2]}) did not arrive and {kind}" for rank in silent or behind]
        return "; ".join(named[:8])


def end_process(stage: str, folder: Path) -> Callable[[str], None]:
    """What ends a rank whose main thread waits within a library, where no exception reaches it."""

    def end(said: str) -> None:
        if said:
            line = f"{stage}: {said}; --resume continues from the last checkpoint"
            print(f"distillery: error: {line}", file=sys.stderr, flush=True)
            with suppress(OSError):
                (folder / "error.txt").write_text(line + "\n", encoding="utf-8")
        os._exit(1)

    return end
