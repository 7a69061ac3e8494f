"""Runs a job on a Ray cluster: `python -m launcher.ray_driver FOLDER` of plan.json and config.yaml.

A training runs under Ray Train, whose workers are the ranks. When a worker or its node is lost Ray Train
starts all anew, and they continue from the run folder's last checkpoint; the folder lies where every node
sees it, or a bucket mirrors it (distill/mirror.py). Other jobs run as tasks: one, or a slice of a
pregeneration on each node.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import ray.train
from ray.autoscaler.sdk import request_resources
from ray.train.collective import barrier

from data_pipeline.bucket import is_bucket
from distill import preemption
from distill.mirror import STOP, Mirror
from distill.part_checks import runs_beside
from distill.run_folder import held
from distill.student_checks import is_of_words
from launcher import jobs, runs
from launcher.local import cores
from launcher.rank import LEASE, execute, first, quiet
from launcher.ray_place import Plan
from launcher.settings import from_yaml
from tune.settings import WorkersConfig
from tune.trial import process_resources
from tune.workers import cause, fitting, line, nodes, reserved, slots, take_place, train, warn_of_idle_gpus

# Seconds that nodes have to join the cluster before a search begins: those of a cloud install much first.
JOINING = 900.0
# Seconds that Ray gives a head to answer again; then it ends the process without a word of how to go on.
SILENCE = float(os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", "60"))  # noqa: SIM112 (Ray's name)
SUMMARY = "summary.json"


def main(folder: str) -> int:
    """Run the job to its end; returns the exit code."""
    plan = Plan(**json.loads(Path(folder, "plan.json").read_text(encoding="utf-8")))
    text = Path(folder, "config.yaml").read_text(encoding="utf-8")
    config, run = from_yaml(plan.job, text), Path(plan.run)
    job, mirror = jobs.JOBS[plan.job], None
    try:
        if is_bucket(plan.run):
            refuse_apart(plan.job, config, plan.nodes)
            mirror = Mirror(plan.run)
            mirror.bring_settings()
            run = mirror.folder
        runs.refuse_other_run(run, config, plan.resume)
        if (run / SUMMARY).is_file():
            print(f"{plan.run} is finished; see {plan.run}/{SUMMARY}")
            return 0
        jobs.check(plan.job, config, plan.nodes * plan.processes if job.parallel else 1)
        if (run / "config.yaml").is_file():
            runs.go_on(run, config)
        else:
            runs.claim(run, plan.job, config)
        if mirror:
            mirror.send_settings()
    except (ValueError, OSError) as error:
        said = " ".join(str(error).split()).replace(str(run), plan.run)
        print(f"distillery {plan.job}: error: {said}", file=sys.stderr)
        return 2
    interrupts = _listen(job, run / STOP, mirror)
    try:
        _run(plan, config, run, mirror)
    except (preemption.Stopped, KeyboardInterrupt) as stop:
        print(f"{str(stop) or 'interrupted'}; {jobs.again(plan.job)}", file=sys.stderr)
        return preemption.exit_code(bool(interrupts), job.resumes)
    except Exception as error:
        details = traceback.format_exc()
        (run / "error.txt").write_text(details, encoding="utf-8")
        if mirror:
            with suppress(ValueError):  # it may be the bucket that failed
                mirror.bucket.put("error.txt", details.encode())
        said = f"{line(error)} (details: {run}/error.txt)".replace(str(run), plan.run)
        print(f"distillery {plan.job}: error: {said}", file=sys.stderr)
        return 2 if isinstance(cause(error), ValueError) else 1
    print(f"finished: {plan.run}")
    return 0


def refuse_apart(job: str, config: Any, nodes: int) -> None:
    """Refuse what several nodes can do only with a folder that all of them see. Raises ValueError."""
    if nodes == 1 or job not in ("task", "finetune"):
        return
    student = config.student if job == "task" else config.shape
    if student and is_of_words(student):
        what, instead = "a student of whole words writes its vocabulary", ""
    elif job == "task" and not (config.teacher.outputs or runs_beside(config)):
        what, instead = "this teacher's logits are written", ", or run `distillery label` before"
    else:
        return
    raise ValueError(
        f"--storage: {what} into a folder that every node sees, and a bucket is none; "
        f"give --nodes 1{instead}"
    )


def _listen(job: jobs.Job, stop: Path, mirror: Mirror | None = None) -> list[int]:
    """Take SIGUSR1 and SIGTERM as the wish to stop, and the first Ctrl-C too where the job can stop and go
    on; any other Ctrl-C raises KeyboardInterrupt. Returns the list that every Ctrl-C is added to.
    """
    stop.unlink(missing_ok=True)
    if mirror:
        mirror.bucket.remove(STOP)
    interrupts: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if not job.resumes:
            raise preemption.Stopped("stopped, as asked")
        stop.touch()
        if mirror:
            mirror.bucket.put(STOP, b"")

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        searches = signal.getsignal(signal.SIGUSR1) is not ask  # which is Ray Tune's then
        if len(interrupts) > 1 or not (job.parallel or searches):
            raise KeyboardInterrupt
        preemption.tell(preemption.STEP if job.steps else "stopping where it can go on later")
        signal.raise_signal(signal.SIGUSR1)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, ask)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background
        signal.signal(signal.SIGINT, interrupt)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    return interrupts


def _run(plan: Plan, config: Any, run: Path, mirror: Mirror | None) -> None:
    """Run the job on the cluster. Raises Stopped where it stopped as asked."""
    connect(plan.job, plan.address)
    if not (plan.address or os.environ.get("RAY_ADDRESS")):
        refuse_without_room(plan)
    if jobs.JOBS[plan.job].schedules:
        with room(plan.nodes, config.workers, run / STOP):
            _run_here(plan.job, run)
    elif jobs.JOBS[plan.job].parallel:
        train_as_workers(plan, run)
        ended = mirror.bucket.get(SUMMARY) is not None if mirror else (run / SUMMARY).is_file()
        if not ended:
            raise preemption.Stopped("stopped, as asked")
    else:
        run_tasks(plan, config, run)


def connect(job: str, address: str = "") -> None:
    """Join the cluster at an address, else at $RAY_ADDRESS, else start one on this machine.

    Raises ValueError where none answers. SIGTERM then does what SIGUSR1 does: Ray's own end would abort.
    """
    if ray.is_initialized():
        return
    # A submitted driver finds RAY_ADDRESS set. Never the cluster last started here: it may be dead.
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(address=address, num_cpus=cores(os.environ) if address == "local" else None)
    except ConnectionError:
        raise ValueError(f"no Ray cluster answers at {address}") from None
    except ray.exceptions.AuthenticationError as error:
        raise ValueError(f"the Ray cluster at {address}: {line(error)}") from None
    except SystemExit:  # of Ray's handler of SIGTERM
        raise preemption.Stopped("stopped, as asked") from None
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGUSR1))
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_end_without, args=(job, head), daemon=True).start()


def _end_without(job: str, head: str) -> None:
    """End this process of a job, in one line, when the head of its cluster (HOST:PORT) answers no more."""
    host, _, port = head.rpartition(":")
    tries, silent = max(1, int(SILENCE / 6) - 1), 0  # each waits five seconds, and one at most to connect
    while silent < tries:
        time.sleep(5)
        silent += 1
        with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            silent = 0
    lost = f"Ray's head at {head} answers no more: it was killed, or its node is lost"
    print(f"{lost}; {jobs.again(job)}", file=sys.stderr, flush=True)
    os._exit(1)  # Ray's own threads wait for the head


@contextmanager
def room(wanted: int, workers: WorkersConfig, stop: Path) -> Iterator[None]:
    """While a search runs, ask the autoscaler for room for `workers.concurrent` trials, or for one.

    First wait for as many nodes as are wanted, each with room for a process (a cloud's head has none), and
    for one trial's room: what a search runs at a time it counts once, at its start.

    Raises Stopped where that is asked for meanwhile: the search, not begun, would not hear of it.
    """
    resources = process_resources(workers)
    request_resources(bundles=[resources] * workers.processes * max(1, workers.concurrent))
    begun = time.monotonic()
    try:
        while True:
            held = [count for count in slots(nodes(), resources) if count]
            if len(held) >= wanted and sum(held) >= workers.processes:
                break
            if stop.exists():
                raise preemption.Stopped("stopped before the search began, as asked")
            if time.monotonic() - begun > JOINING:
                print(
                    f"after {JOINING:.0f} s {len(held)} of {wanted} nodes have joined, with room for "
                    f"{sum(held)} processes: on with those",
                    file=sys.stderr,
                )
                break
            time.sleep(0.5)
        yield
    finally:
        request_resources(bundles=[])


def refuse_without_room(plan: Plan) -> None:
    """Refuse what a Ray of this machine alone can't hold: Ray would wait forever. Raises ValueError."""
    job, what = jobs.JOBS[plan.job], f"{plan.job}, without an --address,"
    if not job.schedules:  # a search checks the room for its trials itself
        workers = plan.nodes * plan.processes if job.parallel else 1
        fitting(nodes(), reserved(plan.cpus, plan.gpus), workers, what)
    elif plan.nodes > 1:
        raise ValueError(f"{what} has this machine alone, and --nodes is {plan.nodes}; give an --address")


def train_as_workers(plan: Plan, run: Path) -> None:
    """Run a training as Ray Train workers, plan.processes on each of plan.nodes nodes."""
    warn_of_idle_gpus("--gpus-per-node", plan.gpus)
    train(
        rank,
        {
            "job": plan.job,
            "run": str(run),
            "each": str(plan.processes),
            "bucket": plan.run if is_bucket(plan.run) else "",
        },
        workers=plan.nodes * plan.processes,
        resources=reserved(plan.cpus, plan.gpus),
        retries=plan.max_failures,
        spread=plan.processes == 1,
    )


def rank(loop_config: dict[str, str]) -> None:
    """One rank, in a Ray Train worker: Ray has set torchrun's variables, and joined the process group.

    With `share` in it, it belongs to a trial of a search: every score on dev goes to Ray, and under that
    name the share of the training that is done.
    """
    take_place(loop_config.get("home", ""))
    mirror = Mirror(loop_config["bucket"]) if loop_config.get("bucket") else None
    run, share = mirror.folder if mirror else Path(loop_config["run"]), loop_config.get("share", "")

    def report(scores: dict[str, float], done: float) -> None:
        if done < 1:  # the trial tells the last one, when all has been written
            ray.train.report({share: done, **scores})

    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    if first() and (wanted := loop_config.get("each", here)) != here:
        print(
            f"warning: Ray put {here} workers on one node, where {wanted} were meant to be", file=sys.stderr
        )
    if mirror:
        _bring(mirror, loop_config["job"])
    # A step's votes are summed, so one rank's is enough; pieces are each rank's own.
    if first() or not jobs.JOBS[loop_config["job"]].steps:
        preemption.watch(run / STOP)
    try:
        with mirror.sending() if mirror and first() else nullcontext():
            more: dict[str, Any] = {"on_measure": report} if share else {}
            _run_here(loop_config["job"], run, **more)
    except preemption.Stopped as stop:  # no failure, after which Ray would start it anew
        if first():
            print(stop, file=sys.stderr)


def _bring(mirror: Mirror, job: str) -> None:
    """Bring the run to every node. Rank 0 claims it before, so that all bring the same."""
    if first():
        mirror.claim()
    barrier()
    if os.environ["LOCAL_RANK"] == "0":
        mirror.folder.mkdir(parents=True, exist_ok=True)
        with held(mirror.folder, LEASE):
            mirror.bring()
    barrier()
    if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        config = from_yaml(job, (mirror.folder / "config.yaml").read_text(encoding="utf-8"))
        refuse_apart(job, config, nodes=2)  # Ray may put workers on more nodes than it was asked to


def run_tasks(plan: Plan, config: Any, run: Path) -> None:
    """Run a job that is no training as a task, or a pregeneration as a slice on each node."""
    slices = plan.nodes if hasattr(config, "slice") else 1
    task = ray.remote(_slice).options(
        num_cpus=plan.cpus or 1,
        num_gpus=plan.gpus,
        max_retries=plan.max_failures,
        scheduling_strategy="SPREAD",
    )
    common = plan.job, str(run), os.getcwd(), int(plan.cpus)
    ray.get([task.remote(*common, number, slices) for number in range(1, slices + 1)])


def _slice(job: str, run: str, home: str, cpus: int, number: int, slices: int) -> None:
    """Run slice `number` of the job in a folder of its own; of one slice alone, the job itself."""
    take_place(home)
    if slices == 1:
        _run_here(job, Path(run), cpus)
        return
    whole = from_yaml(job, Path(run, "config.yaml").read_text(encoding="utf-8"))
    config, folder = runs.as_slice(whole, run, number, slices)
    own = Path(folder)
    if not (own / "config.yaml").is_file():
        runs.begin(own, job, config)
    _run_here(job, own, cpus)
    runs.tell_whole_run(own)


def _run_here(job: str, folder: Path, cpus: int = 0, **more: Any) -> None:
    """Run this process's part of a job in its begun folder; `more` as for `execute`.

    A job that would take a worker for each core takes `cpus`, where Ray has reserved so many.
    """
    quiet()
    with held(folder, LEASE) if first() else nullcontext():
        if (folder / SUMMARY).is_file():
            return
        config = from_yaml(job, (folder / "config.yaml").read_text(encoding="utf-8"))
        if cpus and getattr(config, "workers", None) == 0:
            config = replace(config, workers=cpus)
        execute(job, config, folder, **more)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
