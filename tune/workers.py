"""Ray Train workers as the ranks of a job, and whether a cluster holds them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback

from data_pipeline.outage import Outage
from tune.settings import EDGE

Rank = Callable[[dict[str, str]], None]  # what each worker runs, given its job and run folder


def train(
    rank: Rank,
    loop_config: dict[str, str],
    workers: int,
    resources: dict[str, float],
    retries: int,
    spread: bool,
    callbacks: Iterable[Any] = (),
) -> None:
    """Run `rank` in `workers` workers, to the end; after a failure all start anew, up to `retries` times.

    Args:
        rank: A module's function: workers import it.
        loop_config: Its argument: `job` and `run`, the run folder, in which Ray keeps its own files too.
        workers: How many.
        resources: What Ray reserves for each.
        retries: How often they are started anew; -1 is without end.
        spread: One on each node as far as may be; else close together.
        callbacks: Ray Train's, such as the one that tells Ray Tune of measurements.

    Raises what Ray Train raises when the workers have failed too often, or one has refused to run.
    """
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # take_place changes to `home` instead
    gpus = bool(resources.get("GPU"))
    told: list[Any] = [*callbacks, _Refusals()]
    trainer = ray.train.torch.TorchTrainer(
        rank,
        train_loop_config={**loop_config, "home": os.getcwd()},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker=resources,
            placement_strategy="SPREAD" if spread else "PACK",
        ),
        torch_config=ray.train.torch.TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name=f"attempt-{ray.get_runtime_context().get_job_id()}",
            storage_path=str(Path(loop_config["run"], "ray")),
            failure_config=FailureConfig(max_failures=retries),
            callbacks=told,
        ),
    )
    _fit(trainer)


class _Refusals(UserCallback):
    """Ends the run when a rank refuses to run: after a restart it would refuse again.

    Ray Train starts workers anew after whatever they raise, but not after what a callback raises.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = [cause(error) for error in worker_exceptions.values()]
        if any(isinstance(error, Outage) for error in causes):
            return
        for error in causes:
            if isinstance(error, ValueError):
                raise ControllerError(error)


def _fit(trainer: ray.train.torch.TorchTrainer) -> None:
    """Train outside the main thread, in which Ray Train would take Ctrl-C for itself and abort."""
    if threading.current_thread() is not threading.main_thread():
        trainer.fit()
        return
    done: Future[Any] = Future()

    def fit() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=fit, name="train", daemon=True).start()
    done.result()


def take_place(home: str) -> None:
    """Make a worker see what it is meant to: paths from `home`, and only the GPUs reserved for it.

    Ray starts workers in the folder where its node was started, and shows all GPUs to those without one.
    """
    if home and Path(home).is_dir():  # not where the driver was submitted, whose folder is its node's
        os.chdir(home)
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def warn_of_idle_gpus(setting: str, gpus: float) -> None:
    """Warn where the cluster has GPUs and `setting` asks for none."""
    idle = sum(node.get("GPU", 0) for node in nodes())
    if idle and not gpus:
        print(f"warning: {setting} is 0: the cluster's {idle:g} GPUs are not used", file=sys.stderr)


def reserved(cpus: float, gpus: float) -> dict[str, float]:
    """What Ray reserves for a worker."""
    return {"CPU": cpus or 1, **({"GPU": gpus} if gpus else {})}


def slots(nodes: list[dict[str, float]], resources: dict[str, float]) -> list[int]:
    """How many workers each node holds when nothing else runs there."""
    return [min(int(node.get(name, 0) / need + EDGE) for name, need in resources.items()) for node in nodes]


def fitting(nodes: list[dict[str, float]], resources: dict[str, float], processes: int, what: str) -> int:
    """How many processes the nodes hold. Raises ValueError where `what` needs more."""
    found = slots(nodes, resources)
    if sum(found) < processes:
        need = ", ".join(f"{value:g} {name}" for name, value in resources.items())
        have = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in resources) for node in nodes)
        raise ValueError(
            f"{what} needs {processes} x ({need}), and the cluster's nodes, with {have}, hold "
            f"{' + '.join(map(str, found))} = {sum(found)} such processes; give fewer or smaller ones"
        )
    return sum(found)


def trials_at_once(
    nodes: list[dict[str, float]], resources: dict[str, float], processes: int, wish: int
) -> int:
    """How many trials run at a time. Raises ValueError where the cluster can't hold one."""
    most = fitting(nodes, resources, processes, "workers: a trial") // processes
    return min(wish, most) if wish else most


def cause(error: BaseException) -> BaseException:
    """What a worker raised, without Ray's wrapping."""
    while inner := getattr(error, "cause", None) or getattr(error, "controller_failure", error.__cause__):
        error = inner
    failures = getattr(error, "worker_failures", None)
    return cause(next(iter(failures.values()))) if failures else error


def line(error: BaseException) -> str:
    """What a worker raised, as one line."""
    return (" ".join(str(cause(error)).split()) or type(error).__name__)[:500]


def nodes() -> list[dict[str, Any]]:
    """What each living node of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
