"""What a rank says of an error: one line where a user can mend it, nothing of mistakes of ours."""

import errno
import os
import subprocess

import pytest

from launcher import rank
from launcher.rank import told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_takes_no_more_is_told(number):
    assert "continue with --resume" in told(OSError(number, os.strerror(number)))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_memory_that_runs_out_is_told_with_what_to_lower(error):
    assert "lower engine.micro_batch_size" in told(error)


def test_mistakes_of_ours_keep_their_traceback():
    for error in (KeyError("a"), RuntimeError("shapes differ"), ConnectionResetError(104, "reset")):
        assert told(error) == ""


def test_a_source_whose_git_is_slow_has_no_commit(monkeypatch):
    def run(command, **settings):
        raise subprocess.TimeoutExpired(command, settings["timeout"])

    monkeypatch.setattr(rank, "_hardware", str)
    monkeypatch.setattr(rank.subprocess, "run", run)
    assert rank.describe_machine()["commit"] == "unknown"
