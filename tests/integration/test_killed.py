"""Commands ended by SIGKILL at any moment: the same command with --resume ends as an undisturbed one."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.packing import Row
from tests.helpers import tree, write_documents, write_shards
from tests.processes import DISTILLERY, ENVIRONMENT, of_a_process, typed


def killed(command: list[str], folder: Path, ready: Callable[[], bool]) -> None:
    """Start a command and kill all its processes as soon as `ready` says so."""
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True
        )
        while process.poll() is None and not ready():
            time.sleep(0.005)
        assert process.poll() is None, (folder / "killed.log").read_text()
        below = children(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        for number in below:  # ranks have sessions of their own, and could end before they see it
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()


def test_pregeneration_on_two_processes(tmp_path, tiny_tokenizer):
    write_documents(tmp_path / "corpus.txt", 400, seed=0)
    command = [
        DISTILLERY, "pregenerate", "--corpus.files", '["corpus.txt"]', "--tokenizer", tiny_tokenizer,
        "--packing.max_length", "32", "--rows_per_block", "8", "--shard_mb", "0.004", "--workers", "2",
    ]  # fmt: skip
    typed([*command, "--run", "whole"], tmp_path)
    records = tmp_path / "cut" / "shards" / "pieces"
    killed([*command, "--run", "cut"], tmp_path, lambda: len(list(records.glob("0*.json"))) >= 3)
    kept = {path: path.stat().st_mtime_ns for path in records.glob("0*.json")}
    assert not (tmp_path / "cut" / "shards" / "manifest.json").exists()
    typed([*command, "--run", "cut", "--resume"], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = tree(tmp_path / "whole" / "shards")
    cut = tree(tmp_path / "cut" / "shards")
    assert {name: content for name, content in cut.items() if not name.endswith(".partial")} == whole


def children(process: int) -> list[int]:
    """The processes below one, itself left out."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    below = [int(child) for task in tasks for child in of_a_process(task).split()]
    return below + [grandchild for child in below for grandchild in children(child)]


def workers(process: int) -> list[int]:
    """The processes that tokenise and pack."""
    return [n for n in children(process) if b"spawn_main" in of_a_process(Path(f"/proc/{n}/cmdline"))]


@pytest.mark.parametrize("event", ["interrupt", "term", "a worker is killed", "the parent is killed"])
def test_a_pregeneration_that_is_disturbed_ends_in_order(tmp_path, tiny_tokenizer, event):
    """One line, no traceback, no process left behind; and it can be continued."""
    write_documents(tmp_path / "corpus.txt", 3000, seed=0)
    command = [
        DISTILLERY, "pregenerate", "--corpus.files", '["corpus.txt"]', "--tokenizer", tiny_tokenizer,
        "--packing.max_length", "32", "--shard_mb", "0.004", "--workers", "2", "--run", "run",
    ]  # fmt: skip
    process = in_a_terminal(command, tmp_path)
    records = tmp_path / "run" / "shards" / "pieces"
    while len(list(records.glob("0*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.005)
    started = children(process.pid)
    if event == "interrupt":
        os.killpg(process.pid, signal.SIGINT)
    elif event == "term":
        process.terminate()
    elif event == "a worker is killed":
        os.kill(workers(process.pid)[0], signal.SIGKILL)
    else:
        os.kill(started[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    if event == "interrupt":
        assert process.returncode == 130
        assert "continue from the last checkpoint with: distillery pregenerate --run run --resume" in said
    elif event == "term":
        assert process.returncode == 75
        assert "continue with: distillery pregenerate --run run --resume" in said
    elif event == "a worker is killed":
        assert process.returncode == 2
        assert "a worker was killed" in said
    assert_ended(started)
    typed([*command, "--resume"], tmp_path)
    assert (tmp_path / "run" / "shards" / "manifest.json").is_file()


@pytest.fixture(scope="module")
def general(tiny_model, tiny_shards) -> list[str]:
    """A general distillation on two processes."""
    return [
        DISTILLERY, "general", "--processes", "2", "--teacher.path", tiny_model,
        "--shards", tiny_shards, "--student.layers", "2", "--student.hidden_size", "24",
        "--student.heads", "4", "--student.intermediate_size", "48", "--student.dropout", "0.1",
        "--stage.batch_size", "8", "--stage.epochs", "2", "--stage.optimizer.lr", "1e-3",
        "--record.save_every", "5", "--record.log_every", "1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(general, tmp_path_factory) -> Path:
    """The folder in which it was run undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    typed([*general, "--run", "run"], folder)
    return folder / "run"


def assert_as_undisturbed(cut: Path, whole: Path) -> None:
    """The same weights and the same losses, but for rounding."""
    ours, theirs = (load_file(folder / "student" / "model.safetensors") for folder in (cut, whole))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-6)
    assert losses(cut) == pytest.approx(losses(whole), abs=1e-6)


def test_general_distillation_on_two_processes(tmp_path, general, whole):
    metrics = tmp_path / "cut" / "metrics.jsonl"
    killed(
        [*general, "--run", "cut"],
        tmp_path,
        lambda: metrics.is_file() and metrics.read_text().count("\n") > 17,
    )
    assert not (tmp_path / "cut" / "student").exists()
    typed([*general, "--run", "cut", "--resume"], tmp_path)
    assert_as_undisturbed(tmp_path / "cut", whole)
    assert_all_legs_count(tmp_path / "cut", whole)


def assert_all_legs_count(cut: Path, whole: Path) -> None:
    """The cost of a run that was resumed once is that of both its legs."""
    legs, summary = (json.loads((cut / name).read_text()) for name in ("legs.json", "summary.json"))
    assert [leg["processes"] for leg in legs] == [2, 2]
    assert min(leg["wall_s"] for leg in legs) > 0
    assert min(leg["cpu_s"] for leg in legs) > 0
    assert summary["wall_s"] == round(sum(leg["wall_s"] for leg in legs), 2)
    assert summary["cpu_hours"] == round(sum(leg["cpu_s"] for leg in legs) / 3600, 4)
    assert len(json.loads((whole / "legs.json").read_text())) == 1


def test_a_distillation_that_is_asked_to_stop_leaves_a_checkpoint(tmp_path, general, whole):
    """Asked as early as its ranks exist, and all of them at once, as Slurm does."""
    command = [*general, "--run", "cut"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while (
        sum(b"launcher.rank" in of_a_process(Path(f"/proc/{n}/cmdline")) for n in children(process.pid)) < 3
    ):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGUSR1)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 75, said
    done = len(losses(tmp_path / "cut"))
    assert 0 < done < len(losses(whole))
    assert f"general: stopped after step {done} of" in said
    assert "--run cut --resume" in said
    assert "Traceback" not in said
    typed([*command, "--resume"], tmp_path)
    assert_as_undisturbed(tmp_path / "cut", whole)
    assert_all_legs_count(tmp_path / "cut", whole)


def in_a_terminal(command: list[str], folder: Path) -> subprocess.Popen:
    """Start a command as the foreground's: `Ctrl-C` is then a SIGINT to its group."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the background ignores it
    )


def assert_ended(processes: list[int]) -> None:
    """Nothing is left of them, or will be in a moment."""
    deadline = time.monotonic() + 30
    while any(of_a_process(Path(f"/proc/{number}/cmdline")) for number in processes):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.05)


def test_what_all_ranks_refuse_is_said_once(tmp_path, general, tiny_shards):
    """With exit code 2 and nothing of torchrun's; what only a rank can see, such as a damaged block."""
    shutil.copytree(tiny_shards, tmp_path / "shards")
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.write_bytes(bytes(byte ^ 1 for byte in shard.read_bytes()))
    done = typed([*general, "--shards", "shards", "--run", "run"], tmp_path, code=2)
    said = [line for line in done.stderr.splitlines() if not line.startswith("general: ")]  # progress
    assert len(said) == 1, done.stderr
    assert said[0].startswith("distillery general: error: shards: shards/")
    assert "Traceback" in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_one_machine_listens_to_nobody_else(tmp_path, general, processes):
    """torch would open its store to the network, and torchrun unpickle what is found there."""
    command = [*general, "--processes", str(processes), "--stage.epochs", "100", "--run", "run"]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        while len(losses(tmp_path / "run")) < 1:
            assert process.poll() is None
            time.sleep(0.005)
        began = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        sockets = [one for each in began for one in each.net_connections("inet")]
        for each in reversed(began):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended with its children
                each.kill()
    listening = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("processes", "steps", "send"), [(1, 0, os.killpg), (1, 3, os.kill), (2, 3, os.killpg)]
)
def test_ctrl_c_leaves_a_checkpoint(tmp_path, general, whole, processes, steps, send):
    """At a rank's first breath, and amid its steps; told as a terminal does, or the launcher alone."""
    command = [*general, "--processes", str(processes), "--run", "a cut"]
    process = in_a_terminal(command, tmp_path)
    while len(losses(tmp_path / "a cut")) < steps or not children(process.pid):
        assert process.poll() is None
        time.sleep(0.005)
    send(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    done = len(losses(tmp_path / "a cut"))
    assert steps < done < len(losses(whole))
    assert (tmp_path / "a cut" / "checkpoints" / "general" / f"step-{done:08d}").is_dir()
    assert said.count("Ctrl-C again ends at once") == 1
    assert f"general: stopped after step {done} of" in said
    again = " --processes 2" if processes == 2 else ""
    assert f"continue with: distillery general --run 'a cut' --resume{again}\n" in said
    assert "Traceback" not in said
    assert "failed" not in said
    typed([*command, "--resume"], tmp_path)
    assert len(losses(tmp_path / "a cut")) == len(losses(whole))
    if processes == 2:
        assert_as_undisturbed(tmp_path / "a cut", whole)


def test_a_second_ctrl_c_ends_all_processes_at_once(tmp_path, general):
    """Where a rank stands still, the others wait for it and would for long."""
    process = in_a_terminal([*general, "--run", "cut"], tmp_path)
    while len(losses(tmp_path / "cut")) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    started = children(process.pid)
    ranks = [n for n in started if b"RANK=1\0" in of_a_process(Path(f"/proc/{n}/environ"))]
    os.kill(ranks[0], signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGINT)
    while "Ctrl-C again ends at once" not in process.stderr.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "checkpoint with: distillery general --run cut --resume --processes 2" in said
    assert "Traceback" not in said
    assert_ended(started)


@pytest.mark.slow
def test_a_rank_that_stands_still_is_named(tmp_path, general):
    """The others wait no longer than asked; what is left continues."""
    process = subprocess.Popen(
        [*general, "--engine.patience", "2", "--run", "cut"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "cut" / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < 7:
        assert process.poll() is None
        time.sleep(0.005)
    ranks = [n for n in children(process.pid) if b"RANK=1\0" in of_a_process(Path(f"/proc/{n}/environ"))]
    os.kill(ranks[0], signal.SIGSTOP)
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.count("did not arrive and gives no sign of life") == 1, said
    assert f"general: rank 1 ({os.uname().nodename} process {ranks[0]}) did not arrive" in said
    assert "continues from the last checkpoint" in said


def losses(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line)["loss"] for line in lines]


# Serves the rows of steps `first` to `last` to a file, a line a step, as slowly as a training would.
SERVE = """
import json, sys, time
from data_pipeline.stream import CorpusReader, StreamConfig
shards, out = sys.argv[1:3]
rank, world, workers, first, last = map(int, sys.argv[3:])
reader = CorpusReader(shards, 12, 0, rank, world, config=StreamConfig(workers))
with open(out, "a") as file:
    for step in range(first, last):
        file.write(json.dumps([step, reader.step(step).ids[:, 0].tolist()]) + "\\n")
        file.flush()
        time.sleep(0.002)
"""


def served(path: Path) -> dict[int, list[int]]:
    """Step -> rows, a line that the kill cut off left out."""
    steps = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            step, rows = json.loads(line)
        except json.JSONDecodeError:
            continue
        steps[step] = rows
    return steps


@pytest.mark.parametrize(("before", "after", "workers"), [(1, 3, 0), (4, 2, 1), (2, 1, 4)])
def test_the_loader_in_real_processes(tmp_path, before, after, workers):
    """Killed anywhere, each rank elsewhere, and resumed on other ranks: every row once, in its step."""
    blocks = [[Row([40 * n + i], 1) for i in range(40)] for n in range(30)]
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", blocks, size=2000)
    steps = 1200 // 12

    def start(phase: str, rank: int, world: int, first: int) -> subprocess.Popen:
        words = [str(tmp_path / "shards"), str(tmp_path / f"{phase}-{rank}")]
        numbers = map(str, (rank, world, workers, first, steps))
        root = Path(__file__).parents[2]
        return subprocess.Popen([sys.executable, "-c", SERVE, *words, *numbers], cwd=root)

    processes = [start("before", rank, before, 0) for rank in range(before)]
    random.seed(before)
    for rank, process in enumerate(processes):
        while len(served(tmp_path / f"before-{rank}")) < 10 + random.randrange(20):
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
        process.wait()
    done = min(len(served(tmp_path / f"before-{rank}")) for rank in range(before))  # the checkpoint's step
    assert 10 <= done < steps
    for process in [start("after", rank, after, done) for rank in range(after)]:
        assert process.wait() == 0
    seen: list[int] = []
    for phase, world, part in (("before", before, range(done)), ("after", after, range(done, steps))):
        ranks = [served(tmp_path / f"{phase}-{rank}") for rank in range(world)]
        for step in part:
            rows = [row for rank in ranks for row in rank[step]]
            assert len(rows) == 12
            seen += rows
    assert sorted(seen) == list(range(1200))
