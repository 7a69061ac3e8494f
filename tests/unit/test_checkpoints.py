"""What is on the disk when a checkpoint has its name."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from distill.checkpoints import Checkpoints


def test_what_a_checkpoint_goes_with_is_on_the_disk_before_it_has_its_name(tmp_path):
    """No file of it, and no line of metrics before it, is lost by a machine that dies then."""
    metrics, target = tmp_path / "metrics.jsonl", tmp_path / "checkpoints" / "step-00000005"
    metrics.write_text('{"step": 5}\n')
    fsync, synced = os.fsync, set()

    def noting(file: int) -> None:
        assert not target.exists()
        synced.add(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        fsync(file)

    found = Checkpoints(target.parent, 2, metrics)
    state: dict[str, Any] = {"step": 5, "best": {}, "engine": {}}
    with patch("os.fsync", noting):
        found._write({"weight/w": torch.ones(3)}, json.dumps(state), 5, None)
    found.close()
    assert {"metrics.jsonl", *(path.name for path in target.iterdir())} <= synced
    assert found.newest() == 5
