"""Real clusters on this machine, brought up and taken down by the scripts of a test bed."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import of_a_process

ROOT = Path(__file__).parents[2]
TESTBED = Path(os.environ.get("DISTILLERY_TESTBED", ROOT.parent / "shared" / "testbed"))
DISTILLERY = Path(sys.executable).with_name("distillery")
NUMBER = os.getpid() % 100  # beds of several test runs don't meet
SECONDS = 300  # until a test gives up; none is judged by its time


def needs(script: str, commands: dict[str, str]) -> Path:
    """A script of the test bed; skips, saying why, where it or a command that it needs is not there."""
    path = TESTBED / script
    if not path.is_file():
        pytest.skip(f"no test bed in {TESTBED}; set DISTILLERY_TESTBED")
    if os.geteuid() != 0:
        pytest.skip("the test bed needs root")
    places = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := sorted(
        {package for name, package in commands.items() if not shutil.which(name, path=places)}
    ):
        pytest.skip(f"the test bed needs: apt-get install {' '.join(missing)}")
    spaces = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "true"]
    if subprocess.run(spaces, capture_output=True, check=False).returncode:
        pytest.skip("the test bed needs namespaces, and this machine makes none")
    return path


def call(*command: Any, environment: dict[str, str], folder: Path | None = None) -> str:
    """Run a command that must end well; returns what it prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def wait_until(ready: Callable[[], Any], what: str, tell: Callable[[], Any] = str) -> None:
    """Wait for something to be so; fails after SECONDS, with what `tell` knows."""
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"no {what} in {SECONDS} s: {tell()}"
        time.sleep(0.1)


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, a half-written last one left out."""
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def curve(run: Path) -> list[tuple[int, float]]:
    """Step and loss of each line."""
    return [(line["step"], line["loss"]) for line in lines(run)]


def assert_continued(run: Path, before: list[dict[str, Any]]) -> None:
    """A checkpoint was continued from: the times of what was recorded up to it are those of before."""
    kept = [row for row in lines(run) if row in before]
    assert len(kept) >= 50  # `training` saves every 50th step
    assert kept == before[: len(kept)]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of commands: one thread for each process, this very source."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # no other cluster
    return {**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


@pytest.fixture(scope="session")
def training(tiny_model: str, tiny_shards: str) -> list[str]:
    """A general distillation of 200 steps, every one of them recorded, with dropout."""
    rows = json.loads((Path(tiny_shards) / "manifest.json").read_text())["rows"]
    return [
        "general", "--teacher.path", tiny_model, "--teacher.precision", "fp32", "--shards", tiny_shards,
        "--student.layers", "2", "--student.hidden_size", "24", "--student.heads", "4",
        "--student.intermediate_size", "48", "--student.dropout", "0.1", "--stage.optimizer.lr", "1e-3",
        "--stage.batch_size", "16", "--stage.epochs", str(200 / (rows // 16)),
        "--record.save_every", "50", "--record.log_every", "1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, environment, training) -> Path:
    """The run folder of that training on this machine, as two processes."""
    run = tmp_path_factory.mktemp("local") / "run"
    call(DISTILLERY, *training, "--processes=2", f"--run={run}", environment=environment)
    assert [step for step, _ in curve(run)] == list(range(1, 201))
    return run


class Slurm:
    """The cluster of a test: n1, n2 and n3."""

    def __init__(self, script: Path, folder: Path, environment: dict[str, str]):
        bed = {
            "SLURM_BED_DIR": str(folder),
            "SLURM_BED_NAME": f"ds{NUMBER}",
            "SLURM_BED_NET": f"198.18.{100 + NUMBER}",
        }
        self.script, self.environment = script, environment | bed

    def bed(self, *words: str) -> str:
        return call(self.script, *words, environment=self.environment)

    def __call__(self, *command: Any, folder: Path | None = None) -> str:
        """A command on the cluster's login node."""
        return call(*command, environment=self.environment, folder=folder)

    def preempt(self, folder: Path) -> None:
        """Let a job of a higher tier take all nodes for a moment. The bed puts what they ran back into the
        queue (PreemptMode=REQUEUE), after ten seconds of grace.
        """
        urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true"]
        self("sbatch", "--wait", *urgent, folder=folder)

    def network(self, node: str, way: str) -> None:
        """Plug a node's cable in (`up`) or pull it (`down`)."""
        switch = f"{self.environment['SLURM_BED_NAME']}-sw"
        call("ip", "-n", switch, "link", "set", node, way, environment=self.environment)

    def state(self, job: str) -> str:
        """Slurm's word for a job."""
        return self("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip()

    def shown(self, job: str, name: str) -> str:
        """A field of what scontrol shows of a job."""
        words = self("scontrol", "show", "job", "-o", job).split()
        return next(word for word in words if word.startswith(f"{name}=")).partition("=")[2]

    def restarts(self, job: str) -> int:
        """How often it went back into the queue."""
        return int(self.shown(job, "Restarts"))

    def seconds(self, job: str) -> int:
        """How long it has been running."""
        hours, minutes, seconds = map(int, self.shown(job, "RunTime").split(":"))
        return 3600 * hours + 60 * minutes + seconds

    def processes(self, word: str) -> list[int]:
        """Processes of this cluster's jobs, on all of its nodes, whose command line holds a word."""
        of_the_bed = f"SLURM_CONF={self.environment['SLURM_CONF']}\0".encode()
        return [
            int(folder.name)
            for folder in Path("/proc").glob("[0-9]*")
            if word in of_a_process(folder / "cmdline").decode(errors="replace").replace("\0", " ")
            and of_the_bed in of_a_process(folder / "environ")
        ]


@pytest.fixture(scope="session")
def slurm(environment) -> Iterator[Slurm]:
    """A Slurm of three nodes, each in namespaces of its own."""
    tools = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
    script = needs("slurm-up", {**tools, "ip": "iproute2"})
    # munge wants a path that everybody may pass through, as pytest's are not
    cluster = Slurm(script, Path(tempfile.gettempdir()) / f"slurm-bed-{os.getpid()}", environment)
    try:
        cluster.bed("up", "-n", "3", "-m", "netns")
        settings = cluster.bed("env").split("'")
        cluster.environment["SLURM_CONF"] = settings[1]
        yield cluster
    finally:
        cluster.bed("down")
