"""Corpora mixed, damaged and verified, by the user's door."""

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline import pregenerate
from data_pipeline.settings import CorpusConfig, PackingConfig, PregenerateConfig
from data_pipeline.store import ShardFolder
from data_pipeline.stream import Damage
from distill.general import DamageRecord
from tests.helpers import write_documents
from tests.processes import DISTILLERY, typed


@pytest.fixture
def damaged(tiny_shards, tmp_path) -> tuple[Path, str]:
    """A copy of the shards, and the file of it that has a flipped bit in its first block."""
    folder = Path(shutil.copytree(tiny_shards, tmp_path / "damaged"))
    block = ShardFolder(str(folder)).manifest.blocks[0]
    content = bytearray((folder / block.shard).read_bytes())
    content[block.offset + block.size - 1] ^= 1
    (folder / block.shard).write_bytes(content)
    return folder, block.shard


def general(folder: Path, teacher: str, *words: str, code: int = 0) -> str:
    """What a general distillation says of errors."""
    command = [
        DISTILLERY, "general", "--teacher.path", teacher, "--student.layers", "2",
        "--student.hidden_size", "24", "--student.heads", "4", "--student.intermediate_size", "48",
        "--stage.batch_size", "8", "--record.log_every", "5", *words,
    ]  # fmt: skip
    return typed(command, folder, code).stderr


def test_a_mixture_with_damage_is_trained_on_and_told(tmp_path, tiny_model, tiny_tokenizer, damaged):
    other = PregenerateConfig(
        corpus=CorpusConfig([str(write_documents(tmp_path / "other.txt", 20, seed=7))]),
        tokenizer=tiny_tokenizer,
        packing=PackingConfig(method="full", max_length=24),
        workers=1,
    )
    pregenerate.run(other, tmp_path / "other")
    folder, shard = damaged
    mixture = json.dumps({str(folder): 3, str(tmp_path / "other" / "shards"): 1})
    said = general(
        tmp_path,
        tiny_model,
        "--processes",
        "2",
        "--shards",
        mixture,
        "--stream.damaged",
        "skip",
        "--run",
        "run",
    )
    assert f"warning: skipped 8 rows: shards: {folder}/{shard} is damaged at byte 512" in said
    (note,) = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    assert note.startswith("1 blocks of 8 rows were damaged or missing and skipped: ")
    assert note.count(shard) == 1  # told once, whichever ranks found it
    assert "damaged or missing and skipped" in (tmp_path / "run" / "report.html").read_text()


def test_damage_found_on_the_way_is_one_line(tmp_path, tiny_model, damaged):
    folder, shard = damaged
    said = general(tmp_path, tiny_model, "--shards", str(folder), "--run", "run", code=2)
    assert "Traceback" not in said
    assert f"distillery general: error: shards: {folder}/{shard} is damaged at byte 512 (checksum" in said
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()


def test_verify_names_every_damaged_file_and_shows_the_rest(tmp_path, tiny_shards, damaged):
    folder, shard = damaged
    verify = [DISTILLERY, "pregenerate", "--verify"]
    whole = typed([*verify, tiny_shards], tmp_path)
    assert "every checksum is right" in whole.stdout
    rows = ShardFolder(tiny_shards).manifest.rows
    assert f"{rows:,}" in whole.stdout
    assert "rows by length in tokens" in whole.stdout
    broken = typed([*verify, str(folder)], tmp_path, code=1)
    assert f"{shard}: the file's checksum differs" in broken.stdout
    assert f"{shard} is damaged at byte 512" in broken.stdout
    assert "2 faults" in broken.stdout
    none = typed([*verify, str(tmp_path / "none")], tmp_path, code=2)
    assert "no manifest.json" in none.stderr
    assert not (tmp_path / "runs").exists()


def test_half_a_line_of_a_killed_rank_is_no_block(tmp_path):
    record = DamageRecord(tmp_path)
    record(Damage("shard 1 is damaged", 8))
    with record.path.open("a") as file:
        file.write('{"message": "shard 2')
    assert record.notes() == ["1 blocks of 8 rows were damaged or missing and skipped: shard 1 is damaged"]
    record(Damage("shard 2 is damaged", 8))
    assert "2 blocks of 16 rows" in record.notes()[0]
    assert len(record.path.read_text().splitlines()) == 3
