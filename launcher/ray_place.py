"""The place `ray`: a driver (launcher/ray_driver.py) runs the job as workers of a Ray cluster.

With the address of a cluster's dashboard, http://..., the driver is submitted to it as a Ray job. What
the user typed goes there in files: Ray gives a job's command to a shell, so ours has nothing typed in it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from data_pipeline.bucket import below, check_bucket, is_bucket
from launcher import submitted
from launcher.jobs import JOBS
from launcher.settings import Launch

DRIVER = ("-m", "launcher.ray_driver")


@dataclass(frozen=True)
class Plan:
    """What the driver is to do: RUN/plan.json.

    Attributes:
        job: The job.
        run: The run folder as the cluster's nodes see it; its URL where it lies in a bucket.
        nodes: Nodes.
        processes: Workers on each.
        gpus: GPUs of each worker.
        cpus: CPUs of each worker; 0 is one.
        max_failures: How often the workers are started anew after a failure.
        resume: Whether a run that the folder already holds is continued.
        address: The cluster's; empty where $RAY_ADDRESS says it, or for a cluster on this machine.
    """

    job: str
    run: str
    nodes: int
    processes: int
    gpus: float
    cpus: float
    max_failures: int
    resume: bool
    address: str


def processes(launch: Launch) -> int:
    """Workers on each node."""
    return launch.processes or launch.gpus_per_node or 1


def plan(job: str, launch: Launch, processes: int) -> Plan:
    """The driver's plan; a pure function of its arguments and $RAY_ADDRESS.

    Raises ValueError for storage that can't hold the run.
    """
    run = str(Path(launch.run).absolute())
    if is_bucket(launch.storage):
        check_bucket("--storage", launch.storage)
        if not JOBS[job].steps:
            jobs = ", ".join(name for name, each in JOBS.items() if each.steps)
            raise ValueError(
                f"--storage: {launch.storage} is a bucket, which holds runs of {jobs}; {job} needs a "
                "folder that every node sees"
            )
        run = below(launch.storage, Path(run).name)
    elif launch.storage:
        if not launch.storage.startswith("/"):
            raise ValueError(
                f"--storage: {launch.storage} is no absolute path; give a folder that every node of the "
                "cluster sees (NFS, EFS, Filestore), such as /mnt/distillery/runs, or one of a bucket, "
                "such as s3://BUCKET/runs"
            )
        run = str(PurePosixPath(launch.storage, Path(run).name))
    return Plan(
        job=job,
        run=run,
        nodes=launch.nodes,
        processes=processes,
        gpus=launch.gpus_per_node / processes,
        cpus=launch.cpus_per_node / processes,
        max_failures=launch.max_failures,
        resume=launch.resume or not launch.storage,  # without storage the run is the one just begun here
        address="" if submits(launch) else launch.address,
    )


def submits(launch: Launch) -> bool:
    """Whether the driver runs on the cluster rather than here."""
    return cluster(launch).startswith(("http://", "https://"))


def cluster(launch: Launch) -> str:
    """The cluster's address; empty for one on this machine."""
    return launch.address or os.environ.get("RAY_ADDRESS", "")


def describe(job: str, launch: Launch, processes: int) -> str:
    """What `start` runs, for --dry-run."""
    text = json.dumps(asdict(plan(job, launch, processes)), indent=2)
    words = submission(launch, "DIR", "ID") if submits(launch) else driver(launch.run)
    return f"# {'DIR' if submits(launch) else launch.run}/plan.json\n{text}\n{shlex.join(words)}"


def driver(folder: str) -> list[str]:
    """The command of the driver on this machine."""
    return [sys.executable, *DRIVER, folder]


def submission(launch: Launch, folder: str, name: str) -> list[str]:
    """The command that submits the driver, with the folder of its files, as the Ray job `name`."""
    words = ["job", "submit", f"--address={cluster(launch)}", f"--submission-id={name}", "--no-wait"]
    return [_ray(), *words, f"--working-dir={folder}", "--", "python", *DRIVER, "."]


def start(job: str, launch: Launch, processes: int) -> int:
    """Run or submit the driver; returns the exit code. Raises ValueError where Ray refuses it."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--on ray needs Ray: pip install -e '.[ray]' in Distillery's folder")
    folder = Path(launch.run)
    planned = plan(job, launch, processes)
    text = json.dumps(asdict(planned), indent=2) + "\n"
    if not submits(launch):
        if not cluster(launch):
            be_alone()
        (folder / "plan.json").write_text(text, encoding="utf-8")
        os.execv(sys.executable, driver(launch.run))  # in place of this process: signals go to the driver
    name = f"distillery-{job}-{secrets.token_hex(4)}"
    with tempfile.TemporaryDirectory() as files:
        shutil.copy(folder / "config.yaml", files)
        Path(files, "plan.json").write_text(text, encoding="utf-8")
        _ask(submission(launch, files, name))
    record = {"place": "ray", "job": name, "address": cluster(launch), "run": planned.run}
    submitted.write(folder, record)
    print(f"submitted {folder} as {name}; follow it with: distillery logs {shlex.quote(launch.run)}")
    return 0


def be_alone() -> None:
    """Set a new token for the Ray to be started here; Ray reads it when it is imported."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def state(record: dict[str, str]) -> tuple[str, str]:
    """What the cluster says of a submitted job that goes on, and its last word on one that has ended."""
    said = _ask([_ray(), "job", "status", f"--address={record['address']}", record["job"]])
    for word in ("PENDING", "RUNNING"):
        if f": {word}" in said:
            return word, ""
    name = f"Job '{record['job']}' "
    words = {"succeeded": "SUCCEEDED", "failed": "FAILED", "was stopped": "STOPPED"}
    return "", next((word for text, word in words.items() if name + text in said), "")


def cancel(record: dict[str, str]) -> None:
    """End a submitted job."""
    _ask([_ray(), "job", "stop", f"--address={record['address']}", record["job"]])


def logs(record: dict[str, str], follow: bool) -> int:
    """Print what a submitted job has said; with `follow`, also what it says until it has ended."""
    words = [_ray(), "job", "logs", f"--address={record['address']}", record["job"]]
    words += ["--follow"] if follow else []
    return subprocess.run(words, check=False, env=_environment()).returncode


def _ray() -> str:
    """Ray's command beside this Python."""
    own = Path(sys.executable).with_name("ray")
    return str(own) if own.exists() else "ray"


def _environment() -> dict[str, str]:
    """The environment for Ray's commands, without variables that would overrule their --address."""
    overrule = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    own = {name: value for name, value in os.environ.items() if name not in overrule}
    return {**own, "RAY_USAGE_STATS_ENABLED": "0"}


def _ask(command: list[str]) -> str:
    """Run one of Ray's commands; returns what it prints. Raises ValueError where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    except FileNotFoundError:
        raise ValueError("--on ray needs Ray: pip install -e '.[ray]' in Distillery's folder") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ValueError(f"ray {command[1]} {command[2]}: {said[-1] if said else done.returncode}")
    return done.stdout + done.stderr
