"""The place `node`: one node's part of a job in a Slurm allocation. slurm/train.sbatch starts it on each.

What it needs to know it reads from the environment: Slurm's variables, and the nodes' names, by the script.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from launcher import local, runs, submitted
from launcher.jobs import JOBS
from launcher.settings import Launch, default_run, from_yaml, given

OPTIONS_OF_A_LAUNCH = {field.name.replace("_", "-") for field in fields(Launch)}
FLAGS = ("resume", "dry-run")
WAIT_S = 120.0  # a shared file system may take a minute to show a new file

processes = local.processes


def describe(job: str, launch: Launch, processes: int) -> str:
    """What `start` runs, for --dry-run."""
    return shlex.join(local.command(job, launch.run, processes, rendezvous(os.environ)))


def start(job: str, launch: Launch, processes: int) -> int:
    """Run this node's processes to their end; returns the exit code."""
    hosts = os.environ.get("DISTILLERY_HOSTS", "").split()
    if is_first(os.environ):
        _remember(Path(launch.run), os.environ)
    if (cpus := local.cores(os.environ)) < processes:
        print(
            f"warning: {processes} processes share {cpus} CPUs on this node; --cpus-per-node asks for more",
            file=sys.stderr,
        )
    if len(hosts) > 1:
        peer = hosts[1] if is_first(os.environ) else hosts[0]
        os.environ.update(network(os.environ, *interface_to(peer)))
    code = local.run_processes(job, launch.run, processes, rendezvous(os.environ))
    if code == 0:
        runs.tell_whole_run(Path(launch.run))
    return code


def _remember(folder: Path, environment: Mapping[str, str]) -> None:
    """Where sbatch was called by hand, keep the job's number in its run folder, for `status` and others."""
    job = environment.get("SLURM_JOB_ID")
    if job and "SLURM_ARRAY_TASK_ID" not in environment and submitted.read(folder).get("job") != job:
        record = {"place": "slurm", "job": job, "run": str(folder.absolute())}
        log = environment.get("DISTILLERY_LOG", "")
        if Path(log).is_file():  # in salloc it is a terminal or pipe
            record["log"] = log
        submitted.write(folder, record)


def is_first(environment: Mapping[str, str]) -> bool:
    """Whether this is the first node, which alone begins the run folder."""
    return environment.get("SLURM_NODEID", "0") == "0"


def wait_for_the_first(folder: Path) -> None:
    """Wait until the first node has begun the run folder. Raises ValueError where it doesn't appear."""
    deadline = time.monotonic() + WAIT_S
    while not (folder / "config.yaml").is_file():
        if time.monotonic() > deadline:
            raise ValueError(
                f"--run: {folder}: no run in it after {WAIT_S:.0f} s; does every node see that folder, "
                "and has the first refused to begin it?"
            )
        time.sleep(0.2)


def as_begun(arguments: list[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments of a requeued job: its run folder's settings in place of those that were typed.

    A recipe may have been changed or removed since. Where no run was begun in the folder, as by an array,
    whose tasks have folders of their own, the arguments stay.
    """
    if not is_back(environment) or not {"--on=node", "--on=ray"} & {*arguments}:
        return arguments
    job, typed = arguments[0], [*given(arguments[1:])]
    stored = Path(dict(typed).get("run", default_run(job)), "config.yaml")
    if not stored.is_file():
        return arguments
    options = [
        f"--{flag}" if flag in FLAGS else f"--{flag}={value}"
        for flag, value in typed
        if flag in OPTIONS_OF_A_LAUNCH
    ]
    return [job if job in JOBS else str(stored), f"--config={stored}", *options]


def is_back(environment: Mapping[str, str]) -> bool:
    """Whether Slurm has requeued this job."""
    return environment.get("SLURM_RESTART_COUNT", "0") != "0"


def settings(name: str, config: Any, launch: Launch, environment: Mapping[str, str]) -> Any:
    """The settings of a requeued job: its run folder's, for a recipe may have changed since."""
    stored = Path(launch.run, "config.yaml")
    if not is_back(environment) or not stored.is_file():
        return config
    return from_yaml(name, stored.read_text(encoding="utf-8"))


def own_part(config: Any, launch: Launch, environment: Mapping[str, str]) -> tuple[Any, Launch]:
    """The settings with which this node runs: in a job array, one slice of a pregeneration.

    Raises ValueError for an array of another job, or one with gaps.
    """
    launch = replace(launch, nodes=int(environment.get("SLURM_STEP_NUM_NODES", "1")))
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return config, launch
    if not hasattr(config, "slice"):
        raise ValueError("an array makes slices of a pregeneration; submit other jobs without --array")
    first, last, number = (int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("MIN", "MAX", "ID"))
    slices = last - first + 1
    if slices != int(environment.get("SLURM_ARRAY_TASK_COUNT", slices)):
        raise ValueError(f"an array with gaps leaves slices unmade; submit it with --array=1-{slices}")
    config, folder = runs.as_slice(config, launch.run, number - first + 1, slices)
    return config, replace(launch, run=folder)


def rendezvous(environment: Mapping[str, str]) -> tuple[str, ...]:
    """torchrun's options for where the nodes of this job meet: at the first, by its `static` rendezvous,
    which unlike `c10d` unpickles nothing.

    Raises ValueError where the nodes' names did not come here.
    """
    hosts = environment.get("DISTILLERY_HOSTS", "").split()
    if (nodes := int(environment.get("SLURM_STEP_NUM_NODES", "1"))) > max(1, len(hosts)):
        raise ValueError(
            f"DISTILLERY_HOSTS names {len(hosts)} of {nodes} nodes; start this by slurm/train.sbatch, "
            "and let srun pass its environment on"
        )
    if len(hosts) < 2:
        return local.STANDALONE
    job = environment["SLURM_JOB_ID"]
    port = environment.get("DISTILLERY_PORT") or str(20000 + int(job) % 12000)
    options = {
        "nnodes": str(len(hosts)),
        "node-rank": environment.get("SLURM_NODEID", "0"),
        "master-addr": hosts[0],
        "master-port": port,
        "rdzv-id": f"{job}-{environment.get('SLURM_RESTART_COUNT', '0')}",
        "rdzv-conf": "timeout=900",
    }
    if address := environment.get("DISTILLERY_ADDRESS"):
        options["local-addr"] = address
    return tuple(f"--{name}={value}" for name, value in options.items())


def interface_to(peer: str) -> tuple[str, str]:
    """Address and network interface by which this node reaches another; empty where they can't be told.

    Raises ValueError where its name has no address.
    """
    import psutil

    try:
        family, _, _, _, where = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    except socket.gaierror as error:
        raise ValueError(
            f"{socket.gethostname()} finds no address of the node {peer} ({error.strerror}); "
            "mend the names there, or leave that node out"
        ) from None
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)  # sends nothing
        address = probe.getsockname()[0]
    names = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if address in [entry.address for entry in addresses]
    ]
    return address, names[0] if names else ""


def network(environment: Mapping[str, str], address: str, interface: str) -> dict[str, str]:
    """Variables that keep the processes' connections on an interface; those that the user has set stay."""
    ours = {"DISTILLERY_ADDRESS": address}
    if interface:
        ours |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {name: value for name, value in ours.items() if not environment.get(name)}
