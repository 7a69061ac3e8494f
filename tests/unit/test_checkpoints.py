"""What is on the disk when a checkpoint, a shard or a teacher's outputs have their name."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from data_pipeline.packing import Row
from data_pipeline.settings import TaskConfig
from data_pipeline.shards import ids_dtype, write_shard
from data_pipeline.tasks import Examples
from distill.checkpoints import DAMAGED, NONE, STATE, Checkpoints
from distill.outputs import Split
from distill.settings import TeacherConfig


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


def write(found: Checkpoints, *steps: int) -> None:
    for step in steps:
        state = {"step": step, "best": {}, "engine": {}}
        found._write({"weight/w": torch.ones(2)}, json.dumps(state), step, None)


def test_the_newest_whole_checkpoints_stay(tmp_path, capsys):
    found = Checkpoints(tmp_path, 2, tmp_path / "none")
    assert found.newest() == NONE
    (tmp_path / "step-00000002.partial").mkdir()
    (tmp_path / "step-00000002.partial" / "left").touch()
    write(found, 1, 2, 4)
    assert found._steps() == [2, 4]
    assert not (tmp_path / "step-00000002" / "left").exists()
    (tmp_path / "step-00000004" / STATE).write_bytes(b"oops")
    assert found.newest() == 2
    assert "step-00000004 is damaged" in capsys.readouterr().err
    write(found, 3)
    assert found._steps() == [2, 3]  # the damaged one is gone
    write(found, 4, 5)
    (tmp_path / "step-00000004" / STATE).unlink()
    (tmp_path / "step-00000005" / "checksums.json").write_text("[]")
    assert found.newest() == DAMAGED
    write(found, 3)  # begun before them
    assert (found._steps(), found.newest()) == ([3], 3)
    found.close()


def test_shards_and_stored_outputs_are_on_the_disk_before_they_have_their_names(tmp_path, tiny_tokenizer):
    """What is written after them says that they are whole."""
    fsync, synced = os.fsync, set()

    def noting(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        fsync(file)

    teacher = TeacherConfig(tiny_tokenizer)
    split = Split(tmp_path, Examples(["one"], [], []), TaskConfig("", ""), teacher)
    with patch("os.fsync", noting), patch("os.replace", side_effect=os.replace) as rename:
        write_shard(tmp_path / "shard.tar", [[Row([1, 2], 2)]], ids_dtype(9))
        split.write(0, np.zeros((1, 2)))
        for call in rename.call_args_list:
            assert os.stat(call.args[1]).st_ino in synced
    assert {path.suffix for path in tmp_path.iterdir()} == {".tar", ".safetensors"}
