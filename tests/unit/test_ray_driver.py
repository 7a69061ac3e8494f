"""What the driver does before a search begins."""

import pytest

from distill.preemption import Stopped
from launcher import ray_driver


@pytest.fixture
def joined(monkeypatch):
    """The nodes at each look; no time passes between two."""
    looks: list[int] = []
    monkeypatch.setattr(ray_driver, "nodes", lambda: range(looks.pop(0)))
    monkeypatch.setattr(ray_driver.time, "sleep", lambda _: None)
    return looks


def test_a_search_waits_for_nodes_that_are_joining(joined, tmp_path):
    joined += [0, 1, 1, 2]
    ray_driver.wait_for_nodes(2, tmp_path / "stop")
    assert joined == []


def test_it_goes_on_with_what_there_is(joined, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray_driver, "JOINING", -1.0)
    joined += [1]
    ray_driver.wait_for_nodes(2, tmp_path / "stop")
    assert "1 of 2 nodes have joined: on with those" in capsys.readouterr().err


def test_it_begins_no_search_where_a_stop_was_asked_for(joined, tmp_path):
    (tmp_path / "stop").touch()
    joined += [1]
    with pytest.raises(Stopped):
        ray_driver.wait_for_nodes(2, tmp_path / "stop")
