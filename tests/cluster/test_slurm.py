"""The same job on a real Slurm: over nodes, through warnings, dead nodes and cancellations."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cluster.conftest import DISTILLERY, ROOT, Slurm, assert_continued, curve, lines, wait_until
from tests.helpers import tree

pytestmark = pytest.mark.cluster


def submitted(slurm: Slurm, run: Path, *words: str) -> str:
    """Submit a job by the command; returns its number."""
    slurm(DISTILLERY, *words, "--on=slurm", f"--run={run}", folder=run.parent)
    return json.loads((run / "place.json").read_text())["job"]


def said(run: Path) -> str:
    """What the job wrote on its way."""
    return "".join(path.read_text(errors="replace") for path in sorted(run.glob("log*.txt")))


def wait_for(slurm: Slurm, run: Path, job: str, state: str) -> None:
    wait_until(lambda: slurm.state(job) == state, f"job {state}", lambda: slurm.state(job) + said(run))


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    """The same losses in the same steps, each step once, and the same student byte by byte."""
    assert curve(run) == curve(undisturbed)
    assert tree(run / "student") == tree(undisturbed / "student")


def test_two_nodes_train_as_two_processes_here_do(slurm, training, undisturbed, tmp_path):
    run = tmp_path / "run"
    job = submitted(slurm, run, *training, "--nodes=2", "--time=10")
    assert f"slurm job {job}" in slurm(DISTILLERY, "status", run)
    assert "finished: " not in slurm(DISTILLERY, "logs", run)  # until the job has ended
    wait_for(slurm, run, job, "COMPLETED")
    assert_as_undisturbed(run, undisturbed)
    assert "finished" in slurm(DISTILLERY, "status", run)
    assert json.loads((run / "summary.json").read_text())["processes"] == 2


def test_a_warned_job_saves_goes_back_into_the_queue_and_continues(slurm, training, undisturbed, tmp_path):
    """Its time limit comes near and Slurm itself warns it; until then the ranks stand still."""
    run = tmp_path / "run"
    job = submitted(slurm, run, *training, "--nodes=2", "--time=60", "--sbatch=[--signal=B:USR1@150]")
    wait_until(lambda: len(lines(run)) > 50, "step 50", lambda: said(run))
    ranks = slurm.processes(f"launcher.rank general {run}")
    for rank in ranks:
        os.kill(rank, signal.SIGSTOP)
    minutes = 2 + slurm.seconds(job) // 60
    slurm("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_until(lambda: "warned" in said(run), "warning", lambda: said(run))
    for rank in ranks:
        os.kill(rank, signal.SIGCONT)
    wait_until(lambda: slurm.restarts(job) == 1, "requeue", lambda: said(run))
    slurm("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    before = lines(run)
    done = len(before)
    assert 50 < done < 200
    assert f"step-{done:08d}" in [path.name for path in (run / "checkpoints" / "general").iterdir()]
    assert f"general: stopped after step {done} of 200" in said(run)
    wait_for(slurm, run, job, "COMPLETED")
    assert slurm.restarts(job) == 1
    assert_continued(run, before)
    assert_as_undisturbed(run, undisturbed)


def test_a_warned_job_that_does_not_stop_in_time_goes_back_as_it_stands(
    slurm, training, undisturbed, tmp_path
):
    run = tmp_path / "run"
    grace = '--sbatch=["--export=ALL,DISTILLERY_GRACE=3"]'
    job = submitted(slurm, run, *training, "--time=20", "--processes=2", grace)
    wait_until(lambda: len(lines(run)) > 60, "step 60", lambda: said(run))
    for rank in slurm.processes(f"launcher.rank general {run}"):
        os.kill(rank, signal.SIGSTOP)
    before = lines(run)
    slurm("scancel", "--batch", "--signal=USR1", job)
    wait_for(slurm, run, job, "COMPLETED")
    assert "not stopped in time" in said(run)
    assert slurm.restarts(job) == 1
    assert_continued(run, before)
    assert_as_undisturbed(run, undisturbed)


def test_a_preempted_job_saves_and_continues_when_nodes_are_free(slurm, training, undisturbed, tmp_path):
    """A job of a higher tier takes all nodes; in its grace time the training writes a checkpoint."""
    run = tmp_path / "run"
    job = submitted(slurm, run, *training, "--nodes=2", "--time=20")
    wait_until(lambda: len(lines(run)) > 60, "step 60", lambda: said(run))
    slurm.preempt(tmp_path)
    before = lines(run)
    done = len(before)
    assert 60 < done < 200
    assert f"general: stopped after step {done} of 200" in said(run)
    assert f"step-{done:08d}" in [path.name for path in (run / "checkpoints" / "general").iterdir()]
    wait_for(slurm, run, job, "COMPLETED")
    assert slurm.restarts(job) == 1
    assert lines(run)[:done] == before
    assert_as_undisturbed(run, undisturbed)


def test_a_job_whose_node_dies_continues_on_the_others(slurm, training, undisturbed, tmp_path):
    run = tmp_path / "run"
    job = submitted(slurm, run, *training, "--nodes=2", "--time=20")
    wait_until(lambda: len(lines(run)) > 120, "step 120", lambda: said(run))
    slurm.bed("kill-node", "n2")
    before = lines(run)
    try:
        wait_for(slurm, run, job, "COMPLETED")
        assert slurm.restarts(job) == 1
        assert_continued(run, before)
        assert_as_undisturbed(run, undisturbed)
        assert "n[1,3]" in slurm("scontrol", "show", "job", "-o", job)
    finally:
        slurm.bed("start-node", "n2")


def test_a_node_that_loses_its_network_is_left_and_its_rank_ends_by_itself(
    slurm, training, undisturbed, tmp_path
):
    """In the middle of a sum: nobody can tell that rank. (Its torchrun waits for the others.)"""
    run = tmp_path / "run"
    job = submitted(slurm, run, *training, "--engine.patience=5", "--nodes=2", "--time=20")
    wait_until(lambda: len(lines(run)) > 60, "step 60", lambda: said(run))
    ranks = set(slurm.processes(f"-u -m launcher.rank general {run}"))
    assert len(ranks) == 2
    slurm.network("n2", "down")
    before = lines(run)
    try:
        wait_until(lambda: not ranks & set(slurm.processes(str(run))), "end", lambda: said(run))
        wait_for(slurm, run, job, "COMPLETED")
        assert slurm.restarts(job) == 1
        assert_continued(run, before)
        assert_as_undisturbed(run, undisturbed)
    finally:
        slurm.network("n2", "up")
        slurm.bed("kill-node", "n2")
        slurm.bed("start-node", "n2")


def test_a_cancelled_job_leaves_no_process(slurm, training, tmp_path):
    run = tmp_path / "run"
    job = submitted(slurm, run, *training, "--nodes=2", "--time=20")
    wait_until(lambda: len(lines(run)) > 5, "step 5", lambda: said(run))
    assert len(slurm.processes(str(run))) >= 4  # torchrun and a rank on each node
    assert "cancelled slurm job" in slurm(DISTILLERY, "cancel", run)
    wait_until(lambda: not slurm.processes(str(run)), "end", lambda: slurm.processes(str(run)))
    wait_until(lambda: slurm.state(job) == "CANCELLED", "job CANCELLED")
    assert slurm.restarts(job) == 0
    assert "ended without finishing" in slurm(DISTILLERY, "status", run)


AWKWARD = """it's a "run" of $(touch owned) `touch owned`; touch owned & 100%j #1"""


def test_an_array_makes_slices_and_names_stay_as_they_are(slurm, tiny_corpus, tiny_tokenizer, tmp_path):
    """Two slices on two nodes, in names that a shell would take apart, give the bytes of one process."""
    corpus = tmp_path / f"{AWKWARD}.txt"
    corpus.write_bytes(Path(tiny_corpus).read_bytes())
    words = [
        "pregenerate", f"--corpus.files={json.dumps([str(corpus)])}", "--tokenizer", tiny_tokenizer,
        "--packing.max_length=32", "--rows_per_block=8", "--shard_mb=0.004", "--workers=1",
    ]  # fmt: skip
    slurm(DISTILLERY, *words, f"--run={tmp_path / 'here'}")
    run = tmp_path / AWKWARD
    submitted(slurm, run, *words, "--nodes=2", "--time=5")
    wait_until((run / "summary.json").is_file, "summary", lambda: said(run))
    assert tree(run / "shards") == tree(tmp_path / "here" / "shards")
    assert "finished" in slurm(DISTILLERY, "status", run)
    assert list(tmp_path.rglob("owned")) == []


def test_a_warning_to_one_slice_of_an_array_leaves_the_others(slurm, tiny_corpus, tiny_tokenizer, tmp_path):
    """The last one, whose job has the number of the array. It stands still, and goes back as it stands."""
    run = tmp_path / "run"
    words = ["pregenerate", f"--corpus.files=[{tiny_corpus}]", "--tokenizer", tiny_tokenizer, "--workers=1"]
    grace = '--sbatch=["--export=ALL,DISTILLERY_GRACE=1"]'
    job = submitted(slurm, run, *words, "--nodes=2", "--time=5", grace)
    last = f"launcher.rank pregenerate {run}/slice-2-of-2"
    wait_until(lambda: slurm.processes(last), "slice 2", lambda: said(run))
    for rank in slurm.processes(last):
        os.kill(rank, signal.SIGSTOP)
    slurm("scancel", "--batch", "--signal=USR1", f"{job}_2")
    wait_until((run / "slice-2-of-2" / "summary.json").is_file, "summary", lambda: said(run))
    assert "not stopped in time" in (run / "log-2.txt").read_text()
    assert "warned" not in (run / "log-1.txt").read_text()
    assert [slurm.restarts(f"{job}_{number}") for number in (1, 2)] == [0, 1]


def test_the_script_works_by_hand(slurm, tiny_corpus, tiny_tokenizer, tmp_path):
    """A recipe alone says which job it is; the environment file chooses the Python."""
    recipe, lines_of_bash = tmp_path / "my recipe.yaml", tmp_path / "my environment.sh"
    recipe.write_text(f"corpus: {{files: ['{tiny_corpus}']}}\ntokenizer: {tiny_tokenizer}\nworkers: 1\n")
    python = DISTILLERY.with_name("python")
    lines_of_bash.write_text(f"export MARK='said $(by hand)'; DISTILLERY_PYTHON={python}; echo \"$MARK\"\n")
    environment = f"--export=ALL,DISTILLERY_ENVIRONMENT={lines_of_bash}"
    script = ROOT / "slurm" / "train.sbatch"
    slurm("sbatch", "--wait", environment, "--time=5", script, recipe, "--run", "runs/x", folder=tmp_path)
    assert (tmp_path / "runs" / "x" / "shards" / "manifest.json").is_file()
    (log,) = tmp_path.glob("slurm-*.out")
    assert "said $(by hand)" in log.read_text()


def test_what_sbatch_refuses_is_one_line(slurm, training, tmp_path):
    words = [*training, "--on=slurm", f"--run={tmp_path / 'run'}", "--partition=none"]
    with pytest.raises(AssertionError, match=r"distillery general: error: sbatch: .*invalid partition"):
        slurm(DISTILLERY, *words)
    assert not (tmp_path / "run").exists()
