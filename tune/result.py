"""What a search found: a row for each trial, the best one's recipe, and the front of score against cost.

Read from RUN/trials.jsonl and the trials' own folders alone. Imports no torch and no Ray.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import StatisticsError, correlation
from typing import Any

import yaml

from data_pipeline.whole import write_whole
from distill.charts import front
from distill.legs import spent
from distill.recorded_run import read_metrics
from tune.record import Record, Trial
from tune.settings import TuneConfig, WorkersConfig

ENOUGH = 4  # trials that a rank correlation needs


def result(config: TuneConfig, record: Record) -> dict[str, Any]:
    """Write RUN/best.yaml; returns the summary's figures.

    Raises ValueError where no trial came to its end.
    """
    trials = sorted(record.trials.values(), key=lambda trial: trial.number)
    finished = [trial for trial in trials if trial.status == "finished"]
    if not finished:
        raise _nothing(trials)
    winner = best(finished)
    write_whole(record.folder / "best.yaml", _recipe(winner, record))
    cost = config.minimise or "latency_ms"
    on_front = front([(_score(trial), trial.shape[cost]) for trial in finished])
    costs = {trial.number: _cost(record.run(trial), config.workers) for trial in trials}
    told = [_told(trial, costs[trial.number]) for trial in trials]
    metric = config.base.task.selection
    return {
        "rows": [_row(trial, metric, costs[trial.number]) for trial in finished],
        "search": {
            "metric": metric,
            "against": cost,
            "best": winner.title,
            "front": [trial.title for trial, is_on in zip(finished, on_front, strict=True) if is_on],
            "settings": list(config.space),
            "rank_correlation": rank_correlation(finished),
            "trials": told,
        },
        "steps": sum(one["steps"] for one in told),
        # Of the workers, as reserved: the search itself takes next to nothing.
        "cpu_hours": round(sum(one["cpu_hours"] for one in told), 4),
        "gpu_hours": round(sum(one["gpu_hours"] for one in told), 4),
    }


def _recipe(winner: Trial, record: Record) -> str:
    """The winner's configuration, without the logits that this search has stored: a comment names them."""
    text = (record.run(winner) / "config.yaml").read_text(encoding="utf-8")
    command = ["distillery", "task", "--config", f"{record.folder}/best.yaml"]
    teacher = _entry(yaml.compose(text, yaml.SafeLoader), "teacher")
    outputs, stored = _entry(teacher, "outputs"), f"{record.folder}/label/outputs"
    if outputs.value == stored:
        text = text[: outputs.start_mark.index] + "null" + text[outputs.end_mark.index :]
        command += ["--teacher.outputs", stored]
    past = "# its last settings: it went on from other trials' checkpoints (trials.jsonl)\n"
    return f"# {winner.title}\n{past if winner.changes else ''}#   {shlex.join(command)}\n{text}"


def _entry(mapping: Any, name: str) -> yaml.Node:
    """What a mapping of YAML has under a name, with its place in the text."""
    return next(value for key, value in mapping.value if key.value == name)


def best(finished: list[Trial]) -> Trial:
    """The highest score on dev; of equals the smaller student, then fewer changes, then the earlier trial.

    Fewer changes: a trial that goes on from another's checkpoint has the other's best score as well.
    """
    return min(
        finished,
        key=lambda trial: (-_score(trial), trial.shape["parameters"], trial.changes, trial.number),
    )


def rank_correlation(finished: list[Trial]) -> list[dict[str, Any]]:
    """How alike trials rank on their way and by their scores, at each share where ENOUGH were measured.

    Those that went on from another's checkpoint do not count: their way was the other's.
    """
    found: dict[float, list[tuple[float, float]]] = {}
    for trial in finished:
        for share, score in [] if trial.changes else trial.measured:
            found.setdefault(round(share, 4), []).append((score, _score(trial)))
    return [
        {"share": share, "trials": len(pairs), "spearman": spearman(*zip(*pairs, strict=True))}
        for share, pairs in sorted(found.items())
        if len(pairs) >= ENOUGH
    ]


def spearman(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank; None where all are equal."""
    try:
        return round(correlation(_ranks(xs), _ranks(ys)), 4)
    except StatisticsError:
        return None


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]


def _score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score


def _nothing(trials: list[Trial]) -> ValueError:
    """Why no trial finished."""
    failed = [trial for trial in trials if trial.status == "failed"]
    if stopped := sum(trial.status == "stopped" for trial in trials):
        return ValueError(
            f"no trial came to its end: {stopped} were stopped early, {len(failed)} failed; "
            "`distillery task --run RUN/trials/NAME --resume` goes on with one"
        )
    if failed:
        return ValueError(f"all {len(failed)} trials failed; the first: {failed[0].reason}")
    reason = f"; the first: {trials[0].title}: {trials[0].reason}" if trials else ""
    return ValueError(f"space: none of {len(trials)} candidates can be trained{reason}")


def _row(trial: Trial, metric: str, cost: dict[str, Any]) -> dict[str, Any]:
    """A trial as a row of the table, as `evaluate` has one for each model."""
    shape = trial.shape
    return {
        "name": trial.title,
        "metric": metric,
        "accuracy_mean": trial.score,
        "accuracy_sd": None,
        "seeds": 1,
        **{name: shape[name] for name in ("parameters", "megabytes", "flops")},
        "latency_ms_p50": shape["latency_ms"],
        **cost,
    }


def _told(trial: Trial, cost: dict[str, Any]) -> dict[str, Any]:
    """A trial as the report's section on the search shows it."""
    return {
        "name": trial.title,
        "status": trial.status,
        "values": trial.values,
        "score": trial.last_score,
        **trial.shape,
        **cost,
        "reason": trial.reason,
    }


def _cost(run: Path, workers: WorkersConfig) -> dict[str, Any]:
    """What a trial took: training steps, seconds, and its processes' hours."""
    steps: dict[str, int] = {}
    for row in read_metrics(run / "metrics.jsonl")[0]:
        steps[row["stage"]] = max(row["step"], steps.get(row["stage"], 0))
    seconds = spent(run).get("wall_s", 0.0)
    hours = seconds * workers.processes / 3600
    return {
        "steps": sum(steps.values()),
        "wall_s": round(seconds, 2),
        "cpu_hours": round(hours * workers.cpus, 4),
        "gpu_hours": round(hours * workers.gpus, 4),
    }
