"""Settings of the search, as dataclasses. Imports no torch and no Ray: the command line reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from distill.settings import TaskDistillConfig

Cost = Literal["latency_ms", "parameters", "flops"]
EDGE = 1e-9  # for quotients that are rounded down: 0.3 / 0.1 is less than 3


@dataclass
class BudgetConfig:
    """What a student may cost. A candidate above it is refused before its training begins.

    Args:
        parameters: Most parameters, word vectors and embeddings included.
        flops: Most floating-point operations of a forward pass over a dev example of median length.
        latency_ms: Longest median latency of single dev examples, in milliseconds: forwards of the
            untrained student on a worker's CPUs or GPU.
    """

    parameters: int | None = None
    flops: int | None = None
    latency_ms: float | None = None


@dataclass
class SchedulerConfig:
    """Which trials are stopped early or changed, by their dev scores on the way.

    Args:
        name: `none`; `asha` (asynchronous successive halving): of the trials that come as far as a rung,
            those below the best 1/reduction are stopped; `median`: those whose best is worse than
            the median of the others' means are; `pbt` (population based training): none is stopped,
            but the worst go on from the best ones' checkpoints, with settings changed.
        grace: Share of a trial's training before which it is not stopped: asha's first rung. Of pbt
            the share from one comparison to the next.
        reduction: Of asha: from one rung to the next, the share of the training grows by this factor
            and the trials that go on become fewer by it. Of pbt: the worst 1/reduction take over
            from the best 1/reduction.
    """

    name: Literal["none", "asha", "median", "pbt"] = "none"
    grace: float = 0.25
    reduction: float = 4.0


@dataclass
class WorkersConfig:
    """What a trial runs on.

    Args:
        processes: Processes of each trial, on as many nodes as it takes.
        spread: Put them on different nodes as far as possible; otherwise close together.
        cpus: CPUs of each process.
        gpus: GPUs of each process.
        concurrent: Trials at once at most; 0 is as many as the cluster holds.
        retries: How often the processes of a trial are started anew after a failure, to continue from
            its last checkpoint; -1 is without end.
    """

    processes: int = 1
    spread: bool = False
    cpus: int = 1
    gpus: float = 0.0
    concurrent: int = 0
    retries: int = 1


@dataclass
class TuneConfig:
    """Settings of `distillery tune`: a search over configurations of `distillery task`.

    Args:
        base: The settings of every trial, those of `distillery task`.
        space: What varies, {SETTING: VALUES, ...}, such as `student.layers: [2, 4]`. VALUES is a list;
            or {low: 1.0e-5, high: 1.0e-3, log: true}, whole numbers where both ends are; or
            {values: [...], when: {SETTING: [...]}}, which varies only where another setting has one
            of these values, and keeps the base's value elsewhere.
        search: `grid` takes every combination; `random` draws them; `optuna` draws them by what the
            others scored (TPE, or NSGA-II with `minimise`).
        trials: Candidates that are trained at most; needed by random and optuna.
        minimise: What the front sets the score against, by default the latency; where it is given,
            optuna looks for small values of it too.
        budget: What a student may cost.
        scheduler: Which trials are stopped early or changed.
        workers: What a trial runs on.
        seed: Seed of what is drawn; the trials' own is `base.seed`.
    """

    base: TaskDistillConfig
    space: dict[str, Any]
    search: Literal["grid", "random", "optuna"] = "grid"
    trials: int | None = None
    minimise: Cost | None = None
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    seed: int = 0
