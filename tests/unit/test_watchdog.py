"""The watchdog names the rank that the others wait for, and nobody where all get on."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from distill import watchdog
from distill.watchdog import Watchdog

PATIENCE = 1.2  # long beside what a busy machine keeps a thread from its beat


@pytest.fixture
def watch() -> Callable[..., Watchdog]:
    """Makes the watchdog of a rank of three; what it says goes to a list."""
    store = torch.distributed.HashStore()
    made = []

    def start(rank: int, said: list[str]) -> Watchdog:
        made.append(Watchdog("test", rank, 3, PATIENCE, said.append, lambda: store))
        return made[-1]

    yield start
    for one in made:
        one.close()


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def line(said: list[str]) -> str:
    """The one line of all ranks; the others, which may find out at the same moment, say nothing."""
    until(lambda: any(said))
    (found,) = filter(None, said)
    return found


def test_a_frozen_rank_is_named(watch):
    said: list[str] = []
    ranks = [watch(rank, said) for rank in range(3)]
    for rank in ranks:
        rank.move()
    ranks[1].close()  # no beats any more, as of a stopped process
    found = line(said)
    assert "rank 1 (" in found
    assert "did not arrive and gives no sign of life" in found
    assert "rank 0" not in found
    assert "rank 2" not in found


def test_a_rank_that_stands_still_beside_a_living_thread_is_named(watch):
    said: list[str] = []
    ranks = [watch(rank, said) for rank in range(3)]
    for rank in (*ranks, *ranks[:2]):
        rank.move()
    found = line(said)
    assert "rank 2 (" in found
    assert "did not arrive and is behind" in found


def test_ranks_that_get_on_or_rest_are_left_alone(watch):
    said: list[str] = []
    moving, *resting = (watch(rank, said) for rank in range(3))
    for rank in resting:
        rank.move()
        rank.rest()
    for _ in range(30):
        moving.move()
        time.sleep(PATIENCE / 10)
    assert not said


class Unreachable:
    """A store that takes words and never answers, as behind a network that was lost."""

    def set(self, key: str, value: str) -> None:
        pass

    def get(self, key: str) -> bytes:
        threading.Event().wait()
        raise AssertionError


def test_a_store_that_never_answers_ends_the_wait(monkeypatch):
    monkeypatch.setattr(watchdog, "SILENCE", 0.2)
    said: list[str] = []
    Watchdog("test", 1, 2, PATIENCE, said.append, Unreachable).move()
    until(lambda: said)
    assert "rank 0's node does not answer (silent for 0 s)" in said[0]


def test_one_rank_alone_and_no_patience_need_no_store():
    threads = threading.active_count()
    Watchdog("alone", 0, 1, 1.0, pytest.fail)
    Watchdog("never", 0, 2, 0.0, pytest.fail)
    assert threading.active_count() == threads
