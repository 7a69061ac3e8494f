"""What the search refuses before it starts. Imports no torch and no Ray."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from itertools import product
from typing import Any

from distill.checks import check_task_distill
from distill.number_checks import check_least
from distill.part_checks import compares_answers, stages_of
from distill.settings import TaskDistillConfig
from distill.student_checks import unread
from tune.settings import BudgetConfig, SchedulerConfig, TuneConfig, WorkersConfig
from tune.space import Values, check_space, combinations, drawn, read_space, with_values

LOOKED_AT = 100  # candidates at most, until one is found that can be trained
DECIDING = ("path", "cls", "kind")  # settings of a student that say which others it makes use of
# What pbt may change at a checkpoint: the optimizer's state brings back its other settings, and a student
# keeps its shape.
CHANGED = (
    "prediction.optimizer.lr",
    *(f"prediction.objective.{name}" for name in ("logits", "logits_mse", "labels", "temperature")),
)


def check(config: TuneConfig) -> None:
    """Refuse a search that can't work."""
    for package in ("ray", "optuna") if config.search == "optuna" else ("ray",):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"tune needs {package}: pip install -e '.[tune]' in Distillery's folder")
    check_workers(config.workers)
    check_scheduler(config.scheduler)
    for name, value in vars(config.budget).items():
        if value is not None and not value > 0:
            raise ValueError(f"budget.{name}: {value}; give a number above 0, or null")
    check_space(config.space, config.base)
    check_read(config)
    check_search(config)
    check_candidates(config)
    if config.scheduler.name == "pbt":
        check_population(config)


def check_read(config: TuneConfig) -> None:
    """Refuse a setting that no candidate's student uses: trials that differ in it alone are the same."""
    domains, base = read_space(config.space), config.base.student
    found = []
    for name in DECIDING:
        domain = domains.get(f"student.{name}")
        values = domain.choices if domain else ()
        found.append(values if domain and not domain.when else (*values, getattr(base, name)))
    kinds = [dict(zip(DECIDING, values, strict=True)) for values in product(*found)]
    for key, domain in domains.items():
        when = {other.removeprefix("student."): values for other, values in domain.when}
        students = [
            replace(base, **kind)
            for kind in kinds
            if all(value in when.get(name, (value,)) for name, value in kind.items())
        ]
        idle = [unread(student) for student in students]
        if idle and all(f"{key}.".startswith(tuple(f"{name}." for name in names)) for _, names in idle):
            name = f"student.{idle[0][0]}"
            raise ValueError(
                f"space.{key}: no student of {name} {getattr(students[0], idle[0][0])} makes use of it; "
                f"leave it out, or vary {name} too"
            )


def check_search(config: TuneConfig) -> None:
    """Refuse a way of searching that does not fit the space."""
    if config.search == "grid":
        for key, domain in read_space(config.space).items():
            if not domain.choices:
                raise ValueError(f"space.{key}: a range has no grid; give a list, or search: random")
    elif config.trials is None:
        raise ValueError(f"trials: none given; search: {config.search} needs a number")
    check_least(config, ["trials"])
    check_measured(config)


def check_measured(config: TuneConfig) -> None:
    """Refuse a scheduler where trials are measured at their ends alone: it could stop none of them."""
    stage, name = config.base.prediction, config.scheduler.name
    varied = {"prediction.evaluate_every", "prediction.epochs"} & {*config.space}
    if name != "none" and not varied and stage.evaluate_every is None and 0 < stage.epochs <= 1:
        raise ValueError(
            f"scheduler.name: {name} compares trials on their way, and these are measured at their ends "
            "alone; give base.prediction.evaluate_every"
        )


def check_population(config: TuneConfig) -> None:
    """Refuse what trials can't hand over to one another, or be compared by on the way."""
    if config.search == "optuna":
        raise ValueError(
            "search: optuna would learn from scores that other settings earned; give random or grid"
        )
    for key, domain in read_space(config.space).items():
        if key not in CHANGED or domain.when:
            raise ValueError(
                f"space.{key}: pbt varies, without conditions, what may change within a training: "
                f"{', '.join(CHANGED)}; set it in base"
            )
    if config.scheduler.reduction < 2:
        raise ValueError(f"scheduler.reduction: {config.scheduler.reduction}; give 2 or more with pbt")
    every, save = config.base.prediction.evaluate_every, config.base.record.save_every
    if not every or every % save:
        raise ValueError(
            f"base.record.save_every: {save}; give a divisor of base.prediction.evaluate_every ({every}) "
            "with pbt: a trial takes over what another was measured with"
        )


def check_candidates(config: TuneConfig) -> None:
    """Refuse what no candidate can be trained with, such as data that can't be read.

    The base itself may be no candidate, and some candidates may be impossible: they are told in the table.
    """
    refused: list[ValueError] = []
    for values in _looked_at(config):
        try:
            return check_candidate(with_values(config.base, values), config.workers.processes)
        except ValueError as error:
            refused.append(error)
    raise refused[0]


def _looked_at(config: TuneConfig) -> list[Values]:
    """A sample of the candidates: of a large grid from everywhere, for neighbours in it are much alike."""
    domains = read_space(config.space)
    if config.search != "grid":
        return [drawn(domains, config.base, config.seed, number) for number in range(LOOKED_AT)]
    grid = list(combinations(domains, config.base))
    some = random.Random(config.seed).sample(range(len(grid)), min(LOOKED_AT, len(grid)))
    return [grid[number] for number in sorted(some)]


def check_candidate(config: TaskDistillConfig, processes: int) -> None:
    """Refuse what can't be trained, or would have no score to be compared by."""
    check_task_distill(config, processes)
    if not compares_answers(list(stages_of(config).values())[-1]):
        raise ValueError(
            "prediction: the last stage compares neither logits nor labels, so nothing is measured on dev"
        )


def check_workers(workers: WorkersConfig) -> None:
    """Refuse numbers of workers that can't be."""
    for name, least in (("processes", 1), ("cpus", 1), ("gpus", 0), ("concurrent", 0), ("retries", -1)):
        check_least(workers, [name], "workers.", least)
    if not (workers.gpus < 1 or float(workers.gpus).is_integer()):
        raise ValueError(f"workers.gpus: {workers.gpus}; give a whole number, or a share of one below 1")
    if workers.processes > 1 and 0 < workers.gpus < 1:
        raise ValueError(
            f"workers.gpus: {workers.gpus}; the {workers.processes} processes of a trial need a whole one "
            "each; give 1, or workers.processes 1"
        )


def check_scheduler(scheduler: SchedulerConfig) -> None:
    """Refuse a grace and a reduction of which no rungs can be made."""
    if not 0 < scheduler.grace < 1:
        raise ValueError(f"scheduler.grace: {scheduler.grace}; give a share above 0 and below 1")
    if not scheduler.reduction > 1:
        raise ValueError(f"scheduler.reduction: {scheduler.reduction}; give more than 1")


def over_budget(shape: dict[str, Any], budget: BudgetConfig) -> str:
    """Why the budget refuses a shape; empty where it does not."""
    for name, most in vars(budget).items():
        if most is not None and shape[name] > most:
            return f"{name} {shape[name]:,} is above the budget's {most:,}"
    return ""
