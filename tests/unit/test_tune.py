"""The search without Ray: the space, budgets, proposals, what is recorded, and what comes out."""

import json
import math
import os
import random
import shlex
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError
from scipy.stats import spearmanr

from data_pipeline.outage import Outage
from data_pipeline.settings import TaskConfig
from distill.settings import StudentConfig, TaskDistillConfig, TeacherConfig
from launcher import runs
from launcher.settings import from_yaml, parse, to_yaml
from tests.integration.test_students import random_teacher
from tests.processes import join_group_of_one
from tune.checks import (
    check,
    check_candidate,
    check_candidates,
    check_population,
    check_read,
    check_scheduler,
    check_search,
    check_workers,
    over_budget,
)
from tune.handover import close, last_change, offer, take_over
from tune.population import check_room, replaced_by
from tune.proposals import Grid, Optuna, proposals
from tune.record import Record, Trial
from tune.result import _cost, best, front, rank_correlation, result, spearman
from tune.search import Candidates, _Known, _labelled, _scheduler, _tell_past
from tune.settings import BudgetConfig, SchedulerConfig, TuneConfig, WorkersConfig
from tune.shape import shape_of
from tune.space import check_space, combinations, drawn, fingerprint, read_space, value_of, with_values
from tune.trial import Jobs, _begin
from tune.workers import _Refusals, line, trials_at_once

BASE = TaskDistillConfig(TeacherConfig("teacher"), TaskConfig("train.tsv", "dev.tsv"))
SPACE = {
    "student.kind": ["transformer", "cnn"],
    "student.layers": {"values": [2, 4], "when": {"student.kind": ["transformer"]}},
    "prediction.optimizer.lr": [1e-4, 1e-3],
}
RANGES = {
    "student.kind": ["transformer", "cnn"],
    "student.layers": {"low": 1, "high": 6, "when": {"student.kind": ["transformer"]}},
    "prediction.optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "prediction.objective.layer_map": ["uniform", [1, 2]],
}
RATE = "prediction.optimizer.lr"
SHAPE = {"parameters": 1000, "megabytes": 0.1, "flops": 500, "latency_ms": 2.0}


def search(**changes: Any) -> TuneConfig:
    return TuneConfig(**{"base": BASE, "space": SPACE, **changes})


# ---- the space


def test_a_grid_is_every_combination_once_and_conditions_hold():
    found = list(combinations(read_space(SPACE), BASE))
    assert len(found) == 2 * 2 + 1 * 2  # a CNN has no layers to vary
    assert all(
        ("student.layers" in values) == (values["student.kind"] == "transformer") for values in found
    )


def test_conditions_may_stand_before_what_they_ask_for():
    turned = dict(reversed(SPACE.items()))
    marks = [
        {json.dumps(v, sort_keys=True) for v in combinations(read_space(s), BASE)} for s in (SPACE, turned)
    ]
    assert marks[0] == marks[1]


def test_a_condition_on_what_does_not_vary_asks_the_base():
    space = {"student.layers": {"values": [2, 4], "when": {"student.kind": ["cnn"]}}}
    assert list(combinations(read_space(space), BASE)) == [{}]
    other = replace(BASE, student=StudentConfig(kind="cnn"))
    assert len(list(combinations(read_space(space), other))) == 2


def test_draws_are_a_function_of_seed_and_number_and_stay_in_range():
    domains = read_space(RANGES)
    draws = [drawn(domains, BASE, 1, number) for number in range(200)]
    assert draws == [drawn(domains, BASE, 1, number) for number in range(200)]
    assert draws != [drawn(domains, BASE, 2, number) for number in range(200)]
    layers = {draw["student.layers"] for draw in draws if "student.layers" in draw}
    assert layers == {1, 2, 3, 4, 5, 6}
    rates = sorted(draw["prediction.optimizer.lr"] for draw in draws)
    assert 1e-5 <= rates[0] < rates[-1] <= 1e-2
    assert 1e-4 < rates[100] < 1e-3  # even in the logarithm: of plain draws half lie above 5e-3


def test_a_candidate_is_the_base_with_its_values_and_nothing_else():
    values = {
        "student.layers": 2,
        "prediction.objective.layer_map": [1, 2],
        "prediction.optimizer.lr": 0.01,
    }
    config = with_values(BASE, values)
    assert {key: value_of(config, key) for key in values} == values
    assert with_values(config, {key: value_of(BASE, key) for key in values}) == BASE


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "empty"),
        ({"student.layer": [2]}, "no such setting"),
        ({"student.layers.more": [2]}, "no such setting"),
        ({"student.layers": ["two"]}, "student.layers"),
        ({"student.layers": 2}, "give a list"),
        ({"student.layers": []}, "one value or more"),
        ({"student.layers": {"low": 4, "high": 2}}, "must be below"),
        ({"prediction.optimizer.lr": {"low": 0, "high": 1, "log": True}}, "above 0 with log"),
        ({"student.layers": {"low": 1, "high": 2, "log": "false"}}, "log: 'false'; give true or false"),
        ({"student.layers": {"low": 1}}, "must be numbers"),
        ({"student.layers": {"values": [1], "low": 1, "high": 2}}, "give a list"),
        ({"student.layers": {"values": [1], "if": {}}}, "give a list"),
        ({"student.layers": {"values": [1], "when": {"student.sort": [1]}}}, "no such setting"),
        ({"student.layers": {"values": [1], "when": {"student.kind": ["transfomer"]}}}, "student.kind"),
        ({"student.layers": {"values": [1], "when": {"student.kind": ["cnn"]}}}, "never one of these"),
        (
            {
                "student.layers": [2, 4],
                "student.heads": {"values": [1], "when": {"student.layers": ["2"]}},
            },
            r"space\.student\.heads\.when\.student\.layers: \['2'\], and it is never one",
        ),
        (
            {
                RATE: {"low": 1e-4, "high": 1e-2},
                "student.heads": {"values": [1], "when": {RATE: [0.1]}},
            },
            "never one of these",
        ),
        ({"student": [{"layers": 2}]}, "a group of settings"),
        ({"task.dev": ["a", "b"]}, "compared"),
        ({"record.keep": [1, 2]}, "compared"),
        ({"student.layers": {"low": True, "high": 4}}, "must be numbers"),
        (
            {"student.layers": {"values": [1], "when": {"student.kind": ["transformer", "transfomer"]}}},
            "space: {'student.kind': 'transfomer'}",
        ),
        (
            {
                "student.layers": {"values": [1], "when": {"student.heads": [1]}},
                "student.heads": {"values": [1], "when": {"student.layers": [1]}},
            },
            "wait for one another",
        ),
        ({"student.layers": [None, 2]}, r"space\.student\.layers: null is none of its values"),
    ],
)
def test_a_space_that_can_not_be_is_refused(space, said):
    with pytest.raises(ValueError, match=said):
        check_space(space, BASE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": RANGES}, "a range has no grid"),
        ({"search": "random"}, "trials: none"),
        ({"search": "optuna"}, "trials: none"),
        ({"trials": 0}, "trials: 0"),
    ],
)
def test_a_search_that_does_not_fit_the_space_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        check_search(search(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"workers": WorkersConfig(processes=0)}, "workers.processes: 0"),
        ({"scheduler": SchedulerConfig("asha", grace=0)}, "scheduler.grace: 0"),
        ({"budget": BudgetConfig(parameters=0)}, "budget.parameters: 0"),
        ({"space": {}}, "space: empty"),
        ({"space": {"student.words.size": [1, 2]}}, "makes use of it"),
        ({"search": "random"}, "trials: none given"),
        ({"scheduler": SchedulerConfig("pbt")}, "pbt varies"),
        ({"workers": WorkersConfig(processes=3)}, "not by 3"),
    ],
)
def test_a_search_is_refused_by_each_of_its_checks(monkeypatch, changes, said):
    def shared(config: TaskDistillConfig, processes: int) -> None:
        if processes > 1:
            raise ValueError(f"not by {processes}")

    monkeypatch.setattr("tune.checks.check_candidate", shared)
    check(search())
    with pytest.raises(ValueError, match=said):
        check(search(**changes))


def test_a_scheduler_that_would_hear_of_no_score_in_time_is_refused():
    base = replace(BASE, prediction=replace(BASE.prediction, epochs=1))
    check_search(search(base=base))
    stops = {"base": base, "scheduler": SchedulerConfig("asha")}
    check_search(search(**stops, space={"prediction.epochs": [1, 2]}))
    check_search(search(**{**stops, "base": BASE}))  # once an epoch
    with pytest.raises(ValueError, match=r"scheduler\.name: asha .*give base\.prediction\.evaluate_every"):
        check_search(search(**stops))


@pytest.mark.parametrize(
    ("student", "key", "more", "refused"),
    [
        ({"path": "s"}, "student.layers", {}, "student.path s"),
        ({"path": "s"}, "student.kind", {}, "student.path s"),
        ({"path": "s"}, "student.words.size", {}, "student.path s"),
        ({"path": "s"}, "student.dropout", {}, ""),
        ({"path": "s"}, "student.layers", {"student.path": ["s", None]}, ""),
        ({"path": "s"}, "student.layers", {"student.path": ["s", "t"]}, "student.path s"),
        ({"kind": "cnn"}, "student.heads", {}, "student.kind cnn"),
        ({"kind": "cnn"}, "intermediate.epochs", {}, "student.kind cnn"),
        ({"kind": "cnn"}, "prediction.epochs", {}, ""),
        ({"kind": "cnn"}, "student.heads", {"student.kind": ["cnn", "transformer"]}, ""),
        ({"kind": "cnn"}, "student.heads", {"student.kind": ["cnn", "bilstm"]}, "student.kind cnn"),
        ({}, "student.words.size", {}, "student.kind transformer"),
        ({}, "student.kind", {}, ""),
        ({"cls": "my.Student"}, "student.hidden_size", {}, "student.cls my.Student"),
        ({"cls": "my.Student"}, "student.arguments", {}, ""),
    ],
)
def test_a_setting_that_no_student_makes_use_of_is_refused(student, key, more, refused):
    config = search(base=replace(BASE, student=StudentConfig(**student)), space={key: [1, 2], **more})
    with pytest.raises(ValueError, match=f"{key}: no student of {refused}") if refused else nullcontext():
        check_read(config)


def test_a_condition_says_which_students_make_use_of_a_setting():
    for kinds, refused in ((["transformer"], False), (["cnn", "transformer"], False), (["cnn"], True)):
        varied = {"values": [2, 4], "when": {"student.kind": kinds}}
        space = {"student.kind": ["transformer", "cnn"], "student.layers": varied}
        with pytest.raises(ValueError, match=r"student\.kind cnn") if refused else nullcontext():
            check_read(search(space=space))


def test_numbers_out_of_range_are_refused():
    for name, value in (("processes", 0), ("cpus", 0), ("gpus", -1), ("concurrent", -1), ("retries", -2)):
        with pytest.raises(ValueError, match=f"workers.{name}"):
            check_workers(WorkersConfig(**{name: value}))
    check_workers(WorkersConfig(processes=2, gpus=0))  # no share of a GPU
    with pytest.raises(ValueError, match=r"workers\.gpus: nan; give 0 or more"):
        check_workers(WorkersConfig(gpus=math.nan))
    for gpus in (1.5, math.inf):  # Ray reserves no such share
        with pytest.raises(ValueError, match=f"workers.gpus: {gpus}; give a whole number"):
            check_workers(WorkersConfig(gpus=gpus))
    with pytest.raises(
        ValueError, match=r"workers\.gpus: 0\.5; the 2 processes of a trial need a whole one"
    ):
        check_workers(WorkersConfig(processes=2, gpus=0.5))
    check_workers(WorkersConfig(retries=-1))  # without end
    for name, value in (("grace", 0), ("grace", 1), ("reduction", 1)):
        with pytest.raises(ValueError, match=f"scheduler.{name}"):
            check_scheduler(SchedulerConfig(**{name: value}))


def test_the_command_line_takes_a_space():
    words = ["--base.teacher.path=t", "--base.task.train=a", "--base.task.dev=b"]
    config, _ = parse("tune", [*words, "--space", json.dumps(SPACE)])
    assert config.space == SPACE
    assert from_yaml("tune", to_yaml(config)) == config


# ---- budgets


def test_a_budget_refuses_what_is_above_it_and_says_by_how_much():
    assert over_budget(SHAPE, BudgetConfig()) == ""
    assert over_budget(SHAPE, BudgetConfig(parameters=1000, flops=500, latency_ms=2.0)) == ""
    assert over_budget(SHAPE, BudgetConfig(parameters=999)) == "parameters 1,000 is above the budget's 999"
    assert over_budget(SHAPE, BudgetConfig(latency_ms=1.5)) == "latency_ms 2.0 is above the budget's 1.5"


# ---- proposals


@pytest.mark.parametrize("kind", ["grid", "random"])
def test_after_a_restart_a_number_is_the_same_candidate(kind):
    config = search(search=kind, trials=5)
    first = proposals(config, 0)
    asked = [first.ask(number) for number in range(5)]
    assert [proposals(config, 3).ask(number) for number in (3, 4)] == asked[3:]
    assert proposals(search(), 0).ask(6) is None


def ended(number: int, values: dict[str, Any], score: float, latency: float = 1.0) -> Trial:
    shape = {**SHAPE, "latency_ms": latency}
    return Trial(number, values, "finished", shape, [(0.5, score / 2)], score)


def test_optuna_learns_what_scores_high_before_and_after_a_restart():
    """The score falls with the distance of log10(lr) from -4."""
    config = search(search="optuna", space=RANGES, trials=40)

    def score(values: dict[str, Any]) -> float:
        return 1 - abs(math.log10(values["prediction.optimizer.lr"]) + 4) / 4

    source, past = Optuna(config), []
    for number in range(20):
        values = source.ask(number)
        past.append(ended(number, values, score(values)))
        source.tell(past[-1])
    again = Optuna(config, past=len(past))
    for trial in past:
        again.tell(trial)
    assert [t.values for t in again.study.trials] == [t.values for t in source.study.trials]
    later = []
    for number in range(20, 40):
        values = again.ask(number)
        later.append(score(values))
        again.tell(ended(number, values, later[-1]))
    chance = [score(drawn(read_space(RANGES), BASE, 0, number)) for number in range(200)]
    assert sum(later) / len(later) > sum(chance) / len(chance) + 0.05


def test_after_a_restart_a_candidate_has_parents_among_the_earlier_ones():
    """NSGA-II mixes what they set, so many of its numbers have been there."""
    config = search(search="optuna", space=RANGES, trials=40, minimise="latency_ms")  # 10 a generation
    source, past = Optuna(config), []
    for number in range(20):
        past.append(ended(number, source.ask(number), 0.5 + number / 100, latency=number + 1))
        source.tell(past[-1])
    again = Optuna(config, past=len(past))
    for trial in past:
        again.tell(trial)
    told = [[(t.values, t.params) for t in each.study.trials] for each in (source, again)]
    assert told[0] == told[1]
    rates = [trial.values["prediction.optimizer.lr"] for trial in past]
    later = [again.ask(number)["prediction.optimizer.lr"] for number in range(20, 30)]
    assert sum(any(rate == pytest.approx(other) for other in rates) for rate in later) > 2


def test_optuna_draws_evenly_in_the_logarithm_and_after_a_restart_others():
    config = search(space={RATE: {"low": 1e-5, "high": 1.0, "log": True}}, search="optuna", trials=40)
    first, again, later = (
        [source.ask(number)[RATE] for number in range(10)]
        for source in (Optuna(config, past) for past in (0, 0, 10))
    )
    assert first == again
    assert not {*first} & {*later}
    assert 2 <= sum(rate < 10**-2.5 for rate in first) <= 8


def test_optuna_counts_the_last_score_of_a_stopped_trial():
    source = Optuna(search(search="optuna", space=RANGES, trials=8))
    source.tell(Trial(0, source.ask(0), "stopped", SHAPE, [(0.25, 0.5), (0.5, 0.75)]))
    assert source.study.best_value == 0.75


def test_optuna_counts_no_failures_and_takes_two_aims():
    config = search(search="optuna", space=RANGES, trials=8, minimise="latency_ms")
    source = Optuna(config)
    for number in range(6):
        values = source.ask(number)
        trial = ended(number, values, 0.5 + number / 100, latency=number + 1)
        source.tell(replace(trial, status="failed", score=None, measured=[]) if number == 3 else trial)
    assert len(source.study.best_trials) == 5  # each better in one aim than the others; the sixth failed


# ---- the record


def test_a_killed_search_reads_what_it_had_written(tmp_path):
    record = Record(tmp_path)
    record.add(0, "begun", values={"student.layers": 2}, shape=SHAPE)
    record.add(1, "refused", values={"student.layers": 9}, shape=SHAPE, reason="too large")
    record.add(0, "measured", share=0.5, score=0.7)
    record.add(2, "begun", values={"student.layers": 4}, shape=SHAPE)
    record.add(0, "finished", score=0.8)
    with record.path.open("a") as file:
        file.write('{"number": 2, "event": "meas')  # killed in the middle of a line
    again = Record(tmp_path)
    assert again.trials == record.trials
    assert again.measurements == [(0, 0.5, 0.7)]
    assert [trial.number for trial in again.unfinished] == [2]
    assert again.trained == 2
    again.add(2, "stopped")
    assert Record(tmp_path).trials[2].status == "stopped"


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / "trials.jsonl").write_text('{"number": 0, "event": "finished"}\n')
    with pytest.raises(ValueError, match="line 1"):
        Record(tmp_path)


def test_a_search_goes_on_with_its_work_shared_out_otherwise(tmp_path):
    """The trial that was in the middle too."""
    space, run = {RATE: [1e-3]}, tmp_path / "run"
    config = search(space=space)
    runs.begin(run, "tune", config)
    record = Record(run)
    record.add(0, "begun", values={RATE: 1e-3}, shape=SHAPE)
    base = replace(BASE, engine=replace(BASE.engine, micro_batch_size=4))
    other = search(space=space, base=base, workers=WorkersConfig(processes=2, cpus=3))
    runs.refuse_other_run(run, other, resume=True)
    trial = Path(Candidates(other, record, JOBS).suggest("a")["run"])
    assert from_yaml("task", (trial / "config.yaml").read_text()).engine.micro_batch_size == 4
    for wrong in (replace(config, trials=3), search(space=space, base=replace(BASE, seed=1))):
        with pytest.raises(ValueError, match="settings differ"):
            runs.refuse_other_run(run, wrong, resume=True)


def test_a_search_that_finds_nothing_new_says_so_once(tmp_path, capsys):
    record = Record(tmp_path)
    record.add(0, "begun", values={RATE: 1e-3}, shape=SHAPE)
    record.add(0, "finished", score=0.5)
    for trials, lines in ((2, 1), (1, 0)):
        config = search(space={RATE: [1e-3]}, search="random", trials=trials)
        candidates = Candidates(config, record, JOBS)
        candidates.prepare()
        assert candidates.suggest("a") == candidates.suggest("b") == "FINISHED"
        assert capsys.readouterr().err.count("100 draws in a row were refused or known") == lines


def test_a_candidate_is_asked_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tune.search.check_candidate", lambda *_: None)
    later = SimpleNamespace(remote=lambda *_: None)
    monkeypatch.setattr("tune.search._shape", SimpleNamespace(options=lambda **_: later))
    config = search(space={RATE: [1e-3]}, search="random", trials=5)
    candidates = Candidates(config, Record(tmp_path), JOBS)
    assert [candidates._ask(), candidates._ask()] == [True, False]


def test_what_is_above_the_budget_or_can_not_be_measured_is_refused(tmp_path, monkeypatch):
    def get(measured: Any) -> Any:
        if isinstance(measured, Exception):
            raise measured
        return measured

    monkeypatch.setattr("ray.wait", lambda waiting, timeout: (waiting, []))
    monkeypatch.setattr("ray.get", get)
    candidates = Candidates(search(budget=BudgetConfig(parameters=1000)), Record(tmp_path), JOBS)
    candidates.in_vain = 7  # before one that can be trained
    for number, measured in enumerate([SHAPE, {**SHAPE, "parameters": 1001}, RayActorError()]):
        candidates.measuring = Trial(number, {RATE: 0.1 * number}, "refused"), measured
        assert candidates._look(wait=True)
        assert candidates.in_vain == number
    assert [trial.number for trial in candidates.ready] == [0]
    assert [trial.status for trial in Record(tmp_path).trials.values()] == ["begun", "refused", "refused"]


# ---- what comes out


def test_settings_that_end_in_one_word_are_told_apart():
    values = {"intermediate.epochs": 1, "prediction.epochs": 2, "prediction.optimizer.lr": 1e-3}
    title = Trial(7, values, "begun").title
    assert title == "0007 intermediate.epochs=1 prediction.epochs=2 lr=0.001"


def test_the_front_is_what_no_other_beats():
    rng = random.Random(0)
    points = [(rng.randint(0, 9) / 10, rng.randint(1, 9)) for _ in range(60)]
    naive = []
    for a in points:
        beaten = False
        for b in points:
            if b[0] >= a[0] and b[1] <= a[1] and (b[0] > a[0] or b[1] < a[1]):
                beaten = True
        naive.append(not beaten)
    assert front([(score, cost) for score, cost in points]) == naive


def test_of_equal_scores_the_smaller_student_is_best():
    large = ended(0, {}, 0.8)
    small = replace(ended(1, {}, 0.8), shape={**SHAPE, "parameters": 10})
    assert best([large, small, ended(2, {}, 0.7)]) is small


def test_of_equal_scores_the_one_that_earned_it_is_best():
    """A trial that went on from another's checkpoint has the other's best score."""
    receiver, donor = replace(ended(0, {}, 0.8), changes=1), ended(1, {}, 0.8)
    assert best([receiver, donor]) is donor


def test_the_best_trials_recipe_is_a_run_of_task(tmp_path):
    config, record = search(), Record(tmp_path)
    for number, values in enumerate(combinations(read_space(SPACE), BASE)):
        trial = record.add(number, "begun", values=values, shape=SHAPE)
        runs.begin(record.run(trial), "task", with_values(BASE, values))
        if number < 3:
            row = {"stage": "prediction", "split": "train", "step": 10 * (number + 1), "time": 2.0}
            (record.run(trial) / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            record.add(number, "finished", score=0.5 + 0.1 * number)
        else:
            record.add(number, "stopped" if number == 3 else "failed", reason="no memory")
    found = result(config, record)
    written = from_yaml("task", (tmp_path / "best.yaml").read_text())
    assert written == with_values(BASE, record.trials[2].values)
    assert [row["accuracy_mean"] for row in found["rows"]] == [0.5, 0.6, 0.7]
    assert found["steps"] == 60
    assert found["search"]["best"] == record.trials[2].title
    assert found["search"]["front"] == [record.trials[2].title]
    assert [trial["reason"] for trial in found["search"]["trials"]][-1] == "no memory"


@pytest.mark.parametrize("name", ["run", "a run: of #1", "run " * 30])
def test_the_best_recipe_holds_for_any_place_whatever_this_ones_name(tmp_path, name):
    """YAML quotes some names, and folds long ones."""
    folder = tmp_path / name
    folder.mkdir()
    record, outputs = Record(folder), f"{folder}/label/outputs"
    trial = record.add(0, "begun", values={}, shape=SHAPE)
    runs.begin(record.run(trial), "task", replace(BASE, teacher=replace(BASE.teacher, outputs=outputs)))
    record.add(0, "finished", score=0.5)
    result(search(), record)
    text = (folder / "best.yaml").read_text()
    assert from_yaml("task", text) == BASE
    (command,) = (line.removeprefix("#") for line in text.splitlines() if "--teacher.outputs" in line)
    assert shlex.split(command)[-2:] == ["--teacher.outputs", outputs]


def test_rank_correlations_are_scipys_and_count_what_finished():
    rng = random.Random(0)
    for _ in range(20):
        xs, ys = ([rng.randint(0, 5) for _ in range(9)] for _ in range(2))  # with ties
        assert spearman(xs, ys) == pytest.approx(spearmanr(xs, ys).statistic, abs=1e-4)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    trials = [ended(number, {}, score) for number, score in enumerate((0.5, 0.6, 0.7, 0.8, 0.9))]
    for trial, early in zip(trials, (0.4, 0.3, 0.2, 0.1, 0.5), strict=True):
        trial.measured = [(0.25, early), (0.5, trial.score)]
    trials[0].measured.pop()
    trials[4].changes = 1  # its way was another's
    assert rank_correlation(trials) == [{"share": 0.25, "trials": 4, "spearman": -1.0}]


def test_a_grid_names_every_candidate_and_then_none():
    source, expected = Grid(search()), list(combinations(read_space(SPACE), BASE))
    assert [source.ask(number) for number in range(len(expected) + 1)] == [*expected, None]


def test_a_grid_that_is_stopped_early_is_in_a_seeded_order():
    plain = search()
    early = replace(plain, scheduler=SchedulerConfig("asha"))
    whole, mixed, again, other = (
        Grid(config).candidates for config in (plain, early, early, replace(early, seed=1))
    )
    assert whole == list(combinations(read_space(SPACE), BASE))
    assert mixed == again
    assert mixed != whole
    assert mixed != other
    assert sorted(map(str, mixed)) == sorted(map(str, whole))


def test_one_and_one_point_nothing_are_the_same_candidate():
    assert fingerprint({"a": 1, "b": [2, 3.0]}) == fingerprint({"b": [2.0, 3], "a": 1.0})
    assert fingerprint({"a": 1}) != fingerprint({"a": True}) != fingerprint({"a": "1"})


def test_a_trial_costs_its_steps_and_all_its_processes(tmp_path):
    steps = [("intermediate", 3), ("intermediate", 5), ("prediction", 2)]
    lines = [json.dumps({"stage": stage, "split": "train", "step": step}) for stage, step in steps]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    legs = [{"wall_s": 1800, "cpu_s": 1, "gpus": 0}] * 2
    (tmp_path / "legs.json").write_text(json.dumps(legs))
    cost = _cost(tmp_path, WorkersConfig(processes=2, cpus=3, gpus=1))
    assert cost == {"steps": 7, "wall_s": 3600, "cpu_hours": 6, "gpu_hours": 2}


def test_a_search_without_a_finished_trial_says_why(tmp_path):
    record = Record(tmp_path)
    record.add(0, "refused", values={}, reason="heads don't divide the width")
    with pytest.raises(ValueError, match="heads don't divide"):
        result(search(), record)
    record.add(1, "begun", values={}, shape=SHAPE)
    record.add(1, "failed", reason="no memory")
    with pytest.raises(ValueError, match="all 1 trials failed; the first: no memory"):
        result(search(), record)
    record.add(2, "begun", values={}, shape=SHAPE)
    record.add(2, "stopped")
    with pytest.raises(ValueError, match="no trial came to its end: 1 were stopped early, 1 failed"):
        result(search(), record)


# ---- what the scheduler and the cluster are asked


def test_a_scheduler_told_of_the_past_decides_as_if_it_had_seen_it(tmp_path):
    """Of four trials the last is the worst at the first rung, so it is stopped."""
    scores = [0.8, 0.7, 0.75, 0.6]
    decisions = []
    for told in (0, 3):  # trials that ended before the search was killed
        record = Record(tmp_path / str(told))
        record.folder.mkdir()
        for number, score in enumerate(scores[:told]):
            record.add(number, "begun", values={}, shape=SHAPE)
            record.add(number, "measured", share=0.25, score=score)
            record.add(number, "stopped")
        scheduler = _scheduler(SchedulerConfig("asha", grace=0.25, reduction=2))
        _tell_past(scheduler, record, "accuracy")
        for number, score in enumerate(scores[told:], start=told):
            trial = _Known(str(number))
            scheduler.on_trial_add(None, trial)
            result = {"share": 0.25, "accuracy": score}
            decisions.append((number, scheduler.on_trial_result(None, trial, result)))
    assert decisions[:4] == [(0, "CONTINUE"), (1, "STOP"), (2, "CONTINUE"), (3, "STOP")]
    assert decisions[4:] == [(3, "STOP")]


def test_a_trial_that_goes_on_after_a_kill_keeps_its_place_in_the_rungs(tmp_path):
    """Its first score, not the first one after the kill, is what others are compared with."""
    record = Record(tmp_path)
    record.add(0, "begun", values={}, shape=SHAPE)
    record.add(0, "measured", share=0.25, score=0.6)
    scheduler = _scheduler(SchedulerConfig("asha", grace=0.25, reduction=2))
    _tell_past(scheduler, record, "accuracy")
    again, other = (
        SimpleNamespace(trial_id=name, config={"run": str(tmp_path / "trials" / folder)})
        for name, folder in (("of Ray", "0000"), ("another", "0001"))
    )
    scheduler.on_trial_add(None, again)
    assert scheduler.on_trial_result(None, again, {"share": 0.45, "accuracy": 0.8}) == "CONTINUE"
    scheduler.on_trial_add(None, other)
    assert scheduler.on_trial_result(None, other, {"share": 0.25, "accuracy": 0.7}) == "CONTINUE"
    for one in (again, other):
        scheduler.on_trial_complete(None, one, {"share": 1.0, "accuracy": 0.8})


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_trial_that_a_killed_search_was_about_to_stop_goes_on(name, tmp_path):
    record = Record(tmp_path)
    for number, score in enumerate((0.8, 0.8, 0.8, 0.1)):
        record.add(number, "begun", values={}, shape=SHAPE)
        record.add(number, "measured", share=0.3, score=score)
    scheduler = _scheduler(SchedulerConfig(name, grace=0.25, reduction=2))
    _tell_past(scheduler, record, "accuracy")
    said = scheduler.on_trial_result(None, _Known("0003"), {"share": 0.4, "accuracy": 0.9})
    assert said == "CONTINUE"


@pytest.mark.parametrize("name", ["none", "asha", "median"])
def test_every_scheduler_takes_shares_of_the_training(name, tmp_path):
    record = Record(tmp_path)
    for number in range(5):
        record.add(number, "begun", values={}, shape=SHAPE)
        for share in (0.1, 0.5):
            record.add(number, "measured", share=share, score=0.8)
        record.add(number, "finished", score=0.8)
    scheduler = _scheduler(SchedulerConfig(name, grace=0.5, reduction=2))
    _tell_past(scheduler, record, "accuracy")
    trial = _Known("new")
    scheduler.on_trial_add(None, trial)
    said = [scheduler.on_trial_result(None, trial, {"share": s, "accuracy": 0.1}) for s in (0.1, 0.5)]
    assert said == ["CONTINUE", "CONTINUE" if name == "none" else "STOP"]


def asha_of_two(grace: float, reduction: int) -> tuple[Any, _Known, _Known]:
    """ASHA, and two trials that it knows."""
    scheduler = _scheduler(SchedulerConfig("asha", grace=grace, reduction=reduction))
    scheduler.set_search_properties("accuracy", "max")
    trials = _Known("first"), _Known("second")
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    return scheduler, *trials


def test_a_trial_measured_at_a_rung_counts_there():
    """3 * 0.1 is more than 0.3."""
    scheduler, good, poor = asha_of_two(grace=0.1, reduction=3)
    for share in (0.1, 0.3):
        scheduler.on_trial_result(None, good, {"share": share, "accuracy": share})
    scheduler.on_trial_result(None, poor, {"share": 0.1, "accuracy": 0.9})
    assert scheduler.on_trial_result(None, poor, {"share": 0.3, "accuracy": 0.2}) == "STOP"


def test_rungs_that_a_trial_was_not_measured_at_hold_nothing_of_it():
    """A transformer is first measured late; what it scores there says nothing of a beginning."""
    scheduler, late, early = asha_of_two(grace=0.0625, reduction=4)
    for share, score in ((0.79, 0.6), (0.85, 0.9)):
        scheduler.on_trial_result(None, late, {"share": share, "accuracy": score})
    told = scheduler.on_trial_result(None, early, {"share": 0.0625, "accuracy": 0.7})
    assert told == "CONTINUE"


@pytest.mark.parametrize("kind", ["transformer", "cnn"])
def test_a_shape_is_measured_once_and_kept(tmp_path, tiny_tokenizer, tiny_task, kind):
    teacher = random_teacher(tmp_path / "teacher", tiny_tokenizer)
    task = TaskConfig(str(tiny_task / "train.tsv"), str(tiny_task / "dev.tsv"), max_length=16)
    student = StudentConfig(kind=kind, layers=1, hidden_size=8, heads=2, intermediate_size=16)
    student.words.size = 8
    config = TaskDistillConfig(TeacherConfig(teacher), task, student)
    join_group_of_one()
    found = shape_of(config, tmp_path / "shapes")
    assert found["parameters"] > 0
    assert found["latency_ms"] > 0
    assert shape_of(config, tmp_path / "shapes") == found


def test_a_candidate_without_a_score_is_refused(tmp_path, tiny_tokenizer, tiny_task):
    teacher = random_teacher(tmp_path / "teacher", tiny_tokenizer)
    task = TaskConfig(str(tiny_task / "train.tsv"), str(tiny_task / "dev.tsv"), max_length=16)
    student = StudentConfig(layers=1, hidden_size=8, heads=2, intermediate_size=16)
    config = TaskDistillConfig(TeacherConfig(teacher), task, student)
    check_candidate(config, 1)
    config.prediction.epochs = 0
    with pytest.raises(ValueError, match="nothing is measured on dev"):
        check_candidate(config, 1)


def test_a_large_grid_is_not_judged_by_its_first_candidates(monkeypatch):
    """The last setting varies fastest: the first hundred have too many layers, all of them."""

    def few_layers(config: TaskDistillConfig, processes: int) -> None:
        if config.student.layers > 6:
            raise ValueError(f"student.layers: {config.student.layers}")

    monkeypatch.setattr("tune.checks.check_candidate", few_layers)
    rates = [1e-4 * number for number in range(1, 121)]
    check_candidates(search(space={"student.layers": [9, 2], RATE: rates}))
    with pytest.raises(ValueError, match=r"student\.layers: 9"):
        check_candidates(search(space={"student.layers": [9, 12], RATE: rates}))


def test_a_trial_that_can_never_fit_is_refused_with_the_arithmetic():
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.0}, {"CPU": 2.0, "memory": 1.0}]
    assert trials_at_once(nodes, {"CPU": 2}, processes=2, wish=0) == 2  # 2 + 1 + 1 places
    assert trials_at_once(nodes, {"CPU": 2}, processes=1, wish=3) == 3
    assert trials_at_once(nodes, {"CPU": 2}, processes=4, wish=9) == 1
    for gpus, held in ((0.1, 10), (0.2, 5), (0.3, 3)):
        assert trials_at_once([{"CPU": 40.0, "GPU": 1.0}], {"CPU": 1, "GPU": gpus}, 1, 0) == held
    with pytest.raises(ValueError, match=r"5 x \(2 CPU\).*4 CPU; 3 CPU; 2 CPU, hold 2 \+ 1 \+ 1 = 4"):
        trials_at_once(nodes, {"CPU": 2}, processes=5, wish=0)
    with pytest.raises(ValueError, match=r"1 \+ 0 \+ 0 = 1"):
        trials_at_once(nodes, {"CPU": 1, "GPU": 1}, processes=2, wish=0)


# ---- a population


def population(**changes: Any) -> TuneConfig:
    config = search(
        space={RATE: {"low": 1e-4, "high": 1e-2}},
        search="random",
        trials=4,
        scheduler=SchedulerConfig("pbt"),
    )
    config.base = replace(BASE, prediction=replace(BASE.prediction, evaluate_every=500))
    return replace(config, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"search": "optuna"}, "search: optuna would"),
        ({"space": {"student.layers": [2, 4]}}, "space.student.layers: pbt varies"),
        ({"space": {RATE: {"values": [0.1], "when": {"student.kind": ["cnn"]}}}}, "without conditions"),
        ({"scheduler": SchedulerConfig("pbt", reduction=1.5)}, "scheduler.reduction: 1.5"),
        (
            {"base": replace(BASE, prediction=replace(BASE.prediction, evaluate_every=750))},
            "save_every: 500",
        ),
        ({"base": BASE}, r"save_every: 500; give a divisor of .*evaluate_every \(None\)"),
    ],
)
def test_a_population_that_can_not_be_is_refused(changes, said):
    check_population(population())
    check_population(population(scheduler=SchedulerConfig("pbt", reduction=2)))
    with pytest.raises(ValueError, match=said):
        check_population(population(**changes))


def test_a_population_trains_at_once_or_not_at_all():
    check_room(population(), 4)
    for config in (population(), population(search="grid", space={RATE: [1e-4, 1e-3, 2e-3, 5e-3]})):
        with pytest.raises(ValueError, match="trains all 4 trials at once, and there is room for 3"):
            check_room(config, 3)
    check_room(population(search="grid", trials=3, space={RATE: [1e-4, 1e-3, 2e-3, 5e-3]}), 3)


def at_work(folder: Path, scores: list[float], share: float = 0.25) -> Record:
    """A search whose trials have been measured once."""
    record = Record(folder)
    for number in range(len(scores)):
        record.add(number, "begun", values={RATE: 1e-3 * (number + 1)}, shape=SHAPE)
    for number, score in enumerate(scores):
        record.add(number, "measured", share=share, score=score)
    return record


def test_the_worst_of_a_population_goes_on_from_the_best(tmp_path):
    config = population()
    record = at_work(tmp_path, [0.7, 0.9, 0.6, 0.8])
    found = [replaced_by(trial, record, config) for trial in record.trials.values()]
    assert found[:2] + found[3:] == [None] * 3
    donor, values = found[2]
    assert donor.number == 1
    assert 1e-4 <= values[RATE] <= 1e-2
    assert replaced_by(record.trials[2], Record(tmp_path), config) is None  # a trial of another record
    again = Record(tmp_path)
    assert replaced_by(again.trials[2], again, config) == (again.trials[1], values)
    record.add(2, "measured", share=0.3, score=0.5)
    assert replaced_by(record.trials[2], record, config) is None  # 0.25 has been compared
    record.add(2, "measured", share=0.5, score=0.5)
    assert replaced_by(record.trials[2], record, config)
    record.add(1, "finished", score=0.9)
    assert replaced_by(record.trials[2], record, config)[0].number == 3


def test_some_of_the_worst_go_on_from_some_of_the_best(tmp_path):
    record = at_work(tmp_path, [0.1 * number for number in range(8)])
    donors: dict[int, set[int]] = {}
    for seed in range(20):
        config = population(seed=seed, scheduler=SchedulerConfig("pbt", reduction=4))
        for trial in record.trials.values():
            if found := replaced_by(trial, record, config):
                donors.setdefault(trial.number, set()).add(found[0].number)
    assert donors == {0: {6, 7}, 1: {6, 7}}


def test_a_trial_measured_at_a_multiple_of_the_grace_is_compared_there(tmp_path):
    """0.3 / 0.1 is less than 3."""
    record = at_work(tmp_path, [0.7, 0.9, 0.6, 0.8])
    record.add(2, "measured", share=0.3, score=0.6)
    assert replaced_by(record.trials[2], record, population(scheduler=SchedulerConfig("pbt", grace=0.1)))


@pytest.mark.parametrize("scores", [[0.5], [0.5, 0.5]])
def test_a_trial_with_none_better_keeps_its_own(tmp_path, scores):
    record = at_work(tmp_path, scores)
    assert [replaced_by(trial, record, population()) for trial in record.trials.values()] == [None] * len(
        scores
    )


def test_values_beside_another_stay_in_their_domain():
    space = read_space({"a": [1, 5, 9], "b": {"low": 1.0, "high": 4.0}, "c": {"low": 2, "high": 9}})
    rng = random.Random(0)
    near = {
        key: [domain.near(4 if key == "c" else 1, rng) for _ in range(300)] for key, domain in space.items()
    }
    assert set(near["a"]) == {1, 5, 9}
    assert near["a"].count(9) < 60 < near["a"].count(5)  # only as any
    assert all(1 <= value <= 4 for value in near["b"])
    assert {1.0, 1.2} < set(near["b"])
    assert set(near["c"]) == set(range(2, 10))


def test_a_change_is_read_again_with_the_others_past(tmp_path):
    record = at_work(tmp_path, [0.6, 0.9])
    record.add(0, "changed", values={RATE: 5e-3}, donor=1, changes=1)
    record.add(1, "measured", share=0.5, score=0.95)
    assert Record(tmp_path).trials == record.trials
    changed = record.trials[0]
    assert (changed.values, changed.changes, changed.status) == ({RATE: 5e-3}, 1, "begun")
    assert changed.measured == [(0.25, 0.9)]


# ---- checkpoints of another trial

CHANGE = {"values": {RATE: 5e-3}, "donor": 1, "changes": 1}


def trial_folder(run: Path, step: int, said: str, measured: int | None = None) -> Path:
    """A trial's folder after a checkpoint, every file of which says whose it is."""
    for folder in (f"checkpoints/prediction/step-{step:08d}", "student"):
        (run / folder).mkdir(parents=True)
        (run / folder / "weights").write_text(said)
    (checksums,) = [path / "checksums.json" for path in run.glob("checkpoints/*/*")]
    checksums.write_text('{"weights": ""}')
    row = {"stage": "prediction", "split": "dev", "step": measured or step, "said": said}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return run


def said(run: Path) -> set[str]:
    """Whose weights, student and curves lie in a folder."""
    texts = {path.read_text() for path in run.rglob("weights")}
    return texts | {json.loads((run / "metrics.jsonl").read_text())["said"]}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    run, donor = (trial_folder(tmp_path / name, step, name) for name, step in (("own", 20), ("given", 30)))
    (run / "summary.json").write_text("{}")  # of a training that ended before it saw what it was offered
    return run, donor


def test_what_is_offered_stays_when_the_donor_goes_on(pair):
    run, donor = pair
    assert offer(run, "stop", donor, CHANGE)
    for name in ("checkpoints", "student"):
        shutil.rmtree(donor / name)
    (donor / "metrics.jsonl").write_text("")
    assert said(run / "stop") == {"given"}
    assert last_change(run, "stop") == CHANGE
    take_over(run, "stop")
    assert said(run) == {"given"}
    assert [path.name for path in run.glob("checkpoints/*/*")] == ["step-00000030"]
    assert last_change(run, "stop") == CHANGE
    left = {path.name for path in run.iterdir()}
    assert left == {"checkpoints", "student", "metrics.jsonl", "changed.json"}


@pytest.mark.parametrize("moves", range(5))
def test_a_half_made_hand_over_is_made_again(pair, monkeypatch, moves):
    """Killed after every number of moves."""
    run, donor = pair
    assert offer(run, "stop", donor, CHANGE)
    move: Callable[..., None] = os.replace
    done = []

    def killed(*paths: Path) -> None:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(move(*paths))

    with monkeypatch.context() as patch:
        patch.setattr("tune.handover.os.replace", killed)
        patch.setattr(Path, "rmdir", lambda _: killed())
        with pytest.raises(KeyboardInterrupt):
            take_over(run, "stop")
    assert last_change(run, "stop") == CHANGE
    take_over(run, "stop")
    assert said(run) == {"given"}
    assert not (run / "stop").exists()


def test_a_trial_at_its_end_is_offered_nothing_and_offers_nothing(pair):
    run, donor = pair
    assert close(run, "stop")
    assert not close(run, "stop")
    assert not offer(run, "stop", donor, CHANGE)
    assert not offer(donor, "stop", run, CHANGE)
    assert not (run / "stop.partial").exists()
    assert said(run) == {"own"}


def test_a_trial_that_was_offered_something_is_not_at_its_end(pair):
    run, donor = pair
    assert offer(run, "stop", donor, CHANGE)
    assert not close(run, "stop")
    assert not offer(donor, "stop", run, CHANGE)  # what it has now is not what it was measured with


@pytest.mark.parametrize("damage", ["measured since", "being removed", "none yet"])
def test_what_is_not_of_one_moment_is_not_offered(tmp_path, monkeypatch, damage):
    monkeypatch.setattr("tune.handover.WAIT", 0.01)
    measured = 40 if damage == "measured since" else None
    run, donor = (
        trial_folder(tmp_path / "own", 20, "own"),
        trial_folder(tmp_path / "given", 30, "given", measured),
    )
    if damage == "being removed":
        (donor / "checkpoints/prediction/step-00000030/weights").unlink()
    if damage == "none yet":
        shutil.rmtree(donor / "checkpoints")
    assert not offer(run, "stop", donor, CHANGE)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "metrics.jsonl", "student"]


JOBS = Jobs(begin=runs.begin, rank=lambda place: None, stop="stop")


def test_the_search_changes_the_worst_and_hears_of_its_old_workers_no_more(tmp_path):
    config, record = population(), at_work(tmp_path, [0.6, 0.9])
    run, donor = (trial_folder(record.run(record.trials[number]), 20, str(number)) for number in (0, 1))
    candidates = Candidates(config, record, JOBS)
    assert [candidates.suggest(name) for name in "ab"] == [{"run": str(run)}, {"run": str(donor)}]
    candidates.on_trial_result("a", {"share": 0.5, "accuracy": 0.5, "changes": 0})
    changed = record.trials[0]
    assert changed.changes == 1
    assert changed.values == record.trials[1].values  # as they are: changed ones can't be trained here
    assert changed.measured == [(0.25, 0.9)]
    candidates.on_trial_result("a", {"share": 0.75, "accuracy": 0.5, "changes": 0})
    assert changed.measured == [(0.25, 0.9)]
    assert _begin(run, BASE, JOBS) == 1
    assert from_yaml("task", (run / "config.yaml").read_text()) == with_values(BASE, changed.values)
    assert said(run) == {"1"}
    assert _begin(run, BASE, JOBS) == 1  # started anew
    candidates.on_trial_result("a", {"share": 0.5, "accuracy": 0.95, "changes": 1})
    assert changed.measured == [(0.25, 0.9), (0.5, 0.95)]
    assert Record(tmp_path).trials == record.trials


def test_a_failed_trial_is_not_told_to_be_resumed(tmp_path):
    """What a search has seen fail it does not try again."""
    candidates = Candidates(population(), record := at_work(tmp_path, [0.6]), JOBS)
    candidates.suggest("a")
    last = "ValueError: the loss is nan; leave such steps out by engine.skip: --resume --engine.skip 10"
    (record.run(record.trials[0]) / "error.txt").write_text(f"Traceback\n{last}\n")
    candidates.on_trial_complete("a", error=True)
    assert record.trials[0].reason == "ValueError: the loss is nan; leave such steps out by engine.skip"


def test_a_finished_trials_checkpoints_go_at_once_and_those_of_others_stay(tmp_path):
    record = at_work(tmp_path, [0.6, 0.9, 0.8])
    folders = [trial_folder(record.run(trial), 20, "x") for trial in record.trials.values()]
    (folders[0] / "summary.json").write_text(json.dumps({"best": {"accuracy": 0.7}}))
    (folders[2] / "error.txt").write_text("Traceback\nValueError: it has no labels\n")
    candidates = Candidates(population(), record, JOBS)
    for name in "abc":
        candidates.suggest(name)
        for _ in range(2):  # as a trial that goes on from its checkpoint does
            candidates.on_trial_result(name, {"share": 0.3, "accuracy": 0.8, "changes": 0})
        last = {"share": 1.0 if name == "a" else 0.5, "accuracy": 0.95}
        candidates.on_trial_complete(name, last, error=name == "c")
    trials = list(record.trials.values())
    shares = [[share for share, _ in trial.measured] for trial in trials]
    assert shares == [[0.25, 0.3], [0.25, 0.3, 0.5], [0.25, 0.3]]
    assert [trial.status for trial in trials] == ["finished", "stopped", "failed"]
    assert [trial.last_score for trial in trials] == [0.7, 0.95, 0.8]
    assert trials[2].reason == "ValueError: it has no labels"
    assert [(run / "checkpoints").exists() for run in folders] == [False, True, True]
    assert [(run / "stop").exists() for run in folders] == [False, True, False]  # who is asked to stop
    assert all((run / "student").exists() for run in folders)


def test_trials_share_the_teachers_logits_where_these_are_the_same_for_all(tmp_path):
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "summary.json").touch()  # computed before
    labelled = _labelled(search(), tmp_path, JOBS)
    assert labelled == replace(BASE, teacher=replace(BASE.teacher, outputs=f"{tmp_path}/label/outputs"))
    for key, value in (("teacher.path", "other"), ("task.max_length", 64)):
        assert _labelled(search(space={key: [value]}), tmp_path, JOBS) == BASE
    for changes in ({"dropout": True}, {"outputs": "elsewhere"}):
        own = replace(BASE, teacher=replace(BASE.teacher, **changes))
        assert _labelled(search(base=own), tmp_path, JOBS) == own


def test_a_search_killed_before_it_recorded_a_change_does_so(tmp_path):
    record = at_work(tmp_path, [0.6, 0.9])
    run = record.run(record.trials[0])
    donor = trial_folder(record.run(record.trials[1]), 20, "1")
    run.mkdir()
    assert offer(run, "stop", donor, CHANGE)
    for _ in range(2):  # at the second restart it has been
        record = Record(tmp_path)
        Candidates(population(), record, JOBS).suggest("a")
        assert (record.trials[0].changes, record.trials[0].values) == (1, CHANGE["values"])
    assert record.path.read_text().count("changed") == 1


@pytest.mark.parametrize(
    ("raised", "ends"),
    [
        ([RuntimeError("a peer closed the connection"), ValueError("it has no labels")], True),
        ([Outage("s3://bucket does not answer")], False),
        ([ValueError("it has no labels"), Outage("rank 0 could not write")], False),
        ([RuntimeError("out of memory"), RayActorError()], False),
    ],
)
def test_a_refusal_of_a_rank_ends_a_run_and_no_failure_does(raised, ends):
    """Ray Train starts workers anew unless a callback raises; what one has raised is told in a line."""
    with pytest.raises(ControllerError) if ends else nullcontext() as found:
        _Refusals().after_exception(None, dict(enumerate(raised)))
    if ends:
        assert line(found.value) == "it has no labels"
