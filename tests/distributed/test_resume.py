"""A run that was killed and resumed ends exactly as one that was left alone, dropout and all."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import distill.general
import distill.task
from data_pipeline.settings import TaskConfig
from data_pipeline.whole import CHECKSUMS, checksum
from distill import checkpoints
from distill.encoders import build_classifier, read_config, save_model
from distill.engine import Engine, rank, start_processes, world_size
from distill.mirror import Mirror
from distill.preemption import Stopped
from distill.settings import (
    EngineConfig,
    GeneralConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RecordConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
)
from distill.trainer import Trainer
from tests.helpers import change_manifest, tree
from tests.processes import join_group_of_one, run_processes

SHAPE = StudentConfig(layers=2, hidden_size=24, heads=4, intermediate_size=48, dropout=0.1)
RECORD = RecordConfig(log_every=1, save_every=2)
FAST = OptimizerConfig(lr=1e-3)


class Killed(BaseException):
    """What no code here catches, as a signal that ends the process."""


@pytest.fixture(scope="module", autouse=True)
def group() -> None:
    join_group_of_one()


def general_config(model: str, shards: str, **changes: Any) -> GeneralConfig:
    """A general distillation of 7 steps."""
    rows = json.loads((Path(shards) / "manifest.json").read_text())["rows"]
    objective = ObjectiveConfig(attention=1.0, hidden=1.0)
    config = GeneralConfig(
        teacher=TeacherConfig(model, precision="fp32"),
        shards=shards,
        student=SHAPE,
        stage=StageConfig(epochs=7 / (rows // 16), batch_size=16, objective=objective, optimizer=FAST),
        record=RECORD,
    )
    return replace(config, **changes)


@pytest.fixture(scope="module")
def general(tiny_model, tiny_shards) -> GeneralConfig:
    return general_config(tiny_model, tiny_shards)


@pytest.fixture(scope="module")
def task(tiny_model, tiny_task, tmp_path_factory) -> TaskDistillConfig:
    """A task distillation of 5 steps and 7, the latter measured on dev after every second."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    torch.manual_seed(5)
    model = build_classifier(tiny_model, read_config(tiny_model), ["negative", "positive"])
    save_model(model, folder, tiny_model, model.state_dict(), {})
    like, same = ObjectiveConfig(attention=1.0, hidden=1.0), ObjectiveConfig(logits=1.0)
    return TaskDistillConfig(
        teacher=TeacherConfig(str(folder), precision="fp32"),
        task=TaskConfig(train=f"{tiny_task}/train.tsv", dev=f"{tiny_task}/dev.tsv"),
        student=SHAPE,
        intermediate=StageConfig(epochs=1.0, batch_size=40, objective=like, optimizer=FAST),
        prediction=StageConfig(epochs=1.4, batch_size=40, objective=same, optimizer=FAST, evaluate_every=2),
        record=RECORD,
    )


def run(config: GeneralConfig | TaskDistillConfig, folder: Path) -> dict[str, Any]:
    """Run a job in its folder, from the newest checkpoint there; returns the summary's figures."""
    job = distill.general if isinstance(config, GeneralConfig) else distill.task
    folder.mkdir(exist_ok=True)
    return job.run(config, folder)


@contextmanager
def killed_at(stage: str, step: int) -> Iterator[None]:
    """The process dies in the middle of this step of this stage."""
    train_step = Trainer.train_step

    def step_or_die(trainer: Trainer, number: int) -> Any:
        result = train_step(trainer, number)
        if (trainer.name, number) == (stage, step):
            raise Killed
        return result

    with patch.object(Trainer, "train_step", step_or_die), pytest.raises(Killed):
        yield


@contextmanager
def killed_while_saving(step: int) -> Iterator[None]:
    """The process dies when a checkpoint is written but for its checksum."""
    write = checkpoints.write_whole

    def write_or_die(path: Path, text: str) -> None:
        if f"{step:08d}" in path.parent.name:
            raise Killed
        write(path, text)

    with patch.object(checkpoints, "write_whole", write_or_die), pytest.raises(Killed):
        yield


def curves(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for what the clock and the machine say."""
    clock = {"time", "sequences_per_s", "tokens_per_s", "tflops_per_s", "mfu", "peak_memory_mb"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def assert_same(folder: Path, undisturbed: Path) -> None:
    """The same student, byte by byte, and the same metrics."""
    assert tree(folder / "student") == tree(undisturbed / "student")
    assert curves(folder) == curves(undisturbed)


@pytest.fixture(scope="module")
def undisturbed_general(general, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("general")
    assert run(general, folder)["steps"] == 7
    assert [line["step"] for line in curves(folder)] == [1, 2, 3, 4, 5, 6, 7]
    return folder


@pytest.fixture(scope="module")
def undisturbed_task(task, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("task")
    return folder, run(task, folder)


@pytest.mark.parametrize("step", [0, 1, 4, 6])
def test_a_killed_general_run_ends_as_if_it_had_not_been(general, undisturbed_general, tmp_path, step):
    with killed_at("general", step):
        run(general, tmp_path)
    run(general, tmp_path)
    assert_same(tmp_path, undisturbed_general)


def test_every_step_is_in_a_line_of_metrics(general, undisturbed_general, tmp_path):
    """Whatever is measured and saved between two lines, and after a kill."""
    config = replace(general, record=RecordConfig(log_every=3, save_every=2))
    run(config, tmp_path / "undisturbed")
    lines = curves(tmp_path / "undisturbed")
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 7]
    of_rows = [
        sum(int(line["rows_digest"], 16) for line in each) for each in (lines, curves(undisturbed_general))
    ]
    assert of_rows[0] == of_rows[1]
    with killed_at("general", 5):
        run(config, tmp_path / "killed")
    run(config, tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")


def test_a_run_killed_twice_ends_as_if_it_had_not_been(general, undisturbed_general, tmp_path):
    for step in (2, 5):
        with killed_at("general", step):
            run(general, tmp_path)
    run(general, tmp_path)
    assert_same(tmp_path, undisturbed_general)


def test_a_run_that_was_asked_to_stop_ends_as_if_it_had_not_been(general, undisturbed_general, tmp_path):
    """The wish is a step's vote, counted a step later."""
    with patch("distill.trainer.asked", lambda: True), pytest.raises(Stopped, match="after step 2 of 7"):
        run(general, tmp_path)
    run(general, tmp_path)
    assert_same(tmp_path, undisturbed_general)


def test_a_half_written_checkpoint_is_ignored(general, undisturbed_general, tmp_path):
    with killed_while_saving(4):
        run(general, tmp_path)
    left = sorted(path.name for path in (tmp_path / "checkpoints" / "general").iterdir())
    assert left == ["step-00000002", "step-00000004.partial"]
    run(general, tmp_path)
    assert_same(tmp_path, undisturbed_general)


def flip(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_skipped(general, undisturbed_general, tmp_path, capsys):
    with killed_at("general", 5):
        run(general, tmp_path)
    newest = tmp_path / "checkpoints" / "general" / "step-00000004"
    flip(next(newest.glob("*.safetensors")))
    run(general, tmp_path)
    assert f"{newest} is damaged" in capsys.readouterr().err
    assert_same(tmp_path, undisturbed_general)


def test_without_a_whole_checkpoint_a_run_is_refused(general, tmp_path):
    with killed_at("general", 5):
        run(general, tmp_path)
    checkpoints = tmp_path / "checkpoints" / "general"
    flip(next((checkpoints / "step-00000004").glob("*.safetensors")))
    (checkpoints / "step-00000002" / CHECKSUMS).unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        run(general, tmp_path)


def test_a_half_written_line_of_metrics_is_dropped(general, undisturbed_general, tmp_path):
    with killed_at("general", 4):
        run(general, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "general", "sp')
    run(general, tmp_path)
    assert_same(tmp_path, undisturbed_general)


@pytest.mark.parametrize(
    ("stage", "step"), [("intermediate", 3), ("prediction", 0), ("prediction", 3), ("prediction", 6)]
)
def test_a_killed_task_run_ends_as_if_it_had_not_been(task, undisturbed_task, tmp_path, stage, step):
    with killed_at(stage, step):
        run(task, tmp_path)
    folder, figures = undisturbed_task
    assert run(task, tmp_path) == figures
    assert_same(tmp_path, folder)


def test_the_best_student_outlives_a_kill_after_it(task, tmp_path):
    """The first measurement is the best, and lies before the checkpoint that is resumed from."""
    with falling_scores():
        run(task, tmp_path / "undisturbed")
    with falling_scores(), killed_at("prediction", 5):
        run(task, tmp_path / "killed")
    with falling_scores():
        assert run(task, tmp_path / "killed")["best"]["step"] == 2
    assert tree(tmp_path / "killed" / "student") == tree(tmp_path / "undisturbed" / "student")


def test_dropout_is_for_steps_alone_and_of_equal_students_the_first_is_best(task, tmp_path):
    """A student from a folder comes in eval mode; this teacher keeps its dropout but for its own score."""
    train_step, told = Trainer.train_step, []
    modes: dict[str, set[bool]] = {"step": set(), "dev": set()}
    scores = iter([0.9, 0.5, 0.7, 0.7, 0.6])  # the teacher's, and the student's after steps 2, 4, 6, 7

    def step(trainer: Trainer, number: int) -> Any:
        modes["step"] |= {trainer.objective.student.training, trainer.teacher.model.training}
        return train_step(trainer, number)

    def measure(model: torch.nn.Module, *_: Any) -> dict[str, float]:
        modes["dev"].add(model.training)
        return {"accuracy": next(scores)}

    teacher, student = replace(task.teacher, dropout=True), StudentConfig(path=task.teacher.path)
    config = replace(task, teacher=teacher, student=student)
    with patch.object(Trainer, "train_step", step), patch.object(distill.task, "measure_dev", measure):
        found = distill.task.run(config, tmp_path, on_measure=lambda *one: told.append(one))
    assert modes == {"step": {True}, "dev": {False}}
    assert found["best"] == {"accuracy": 0.7, "step": 4}
    assert [score["accuracy"] for score, _ in told] == [0.5, 0.7, 0.7, 0.6]
    shares = [(1 + 0.2 * steps) / 2.4 for steps in (2, 4, 6, 7)]
    assert [share for _, share in told] == pytest.approx(shares)


@pytest.mark.parametrize("lost", [False, True])
def test_a_best_student_that_no_checkpoint_knows_of_is_the_summarys(task, tmp_path, lost):
    """Better than what is measured after the resume; or a kill between two renames has left none."""
    config = replace(task, record=replace(RECORD, save_every=3))
    with (
        scoring(0.5, 0.2, 0.9),
        killed_at("prediction", 4),
    ):  # at steps 2 and 4; the checkpoint is of step 3
        run(config, tmp_path)
    student = tmp_path / "student"
    best = tree(student)
    assert json.loads(best["best.json"]) == {"stage": "prediction", "accuracy": 0.9, "step": 4}
    if lost:
        student.rename(tmp_path / "student.old")
    with scoring(0.5, 0.1, 0.15, 0.12):  # at 4, 6 and 7
        found = run(config, tmp_path)["best"]
    assert found == {"accuracy": 0.15 if lost else 0.9, "step": 6 if lost else 4}
    assert json.loads((student / "best.json").read_text()) == {"stage": "prediction", **found}
    assert (tree(student) == best) != lost


def falling_scores() -> AbstractContextManager[None]:
    """Every measurement of a process is worse than the one before."""
    return scoring(*(1 / n for n in range(1, 9)))


@contextmanager
def scoring(*accuracies: float) -> Iterator[None]:
    """What the measurements of a process say, one after another; the first is the teacher's."""
    scores = ({"accuracy": accuracy} for accuracy in accuracies)
    with patch("distill.measure.task_metrics", lambda *arguments: next(scores)):
        yield


def test_new_projections_do_not_depend_on_a_kill(task, tmp_path):
    """A second step with projections of its own, killed before its first checkpoint."""
    prediction = replace(task.prediction, objective=ObjectiveConfig(logits=1.0, hidden=1.0))
    config = replace(task, prediction=prediction)
    run(config, tmp_path / "undisturbed")
    with killed_at("prediction", 1):
        run(config, tmp_path / "killed")
    run(config, tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "undisturbed")


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_step_goes_on_with_the_firsts_projections(task, tmp_path, killed):
    """From its first step on, and where it was killed before it had a checkpoint."""
    prediction = replace(task.prediction, objective=ObjectiveConfig(logits=1.0, hidden=1.0))
    config = replace(task, prediction=prediction)
    if killed:
        with killed_at("prediction", 0):
            run(config, tmp_path)
    fit, seen = Trainer.fit, {}

    def noting(trainer: Trainer) -> dict[str, float]:
        begun = trainer.engine.full_state(trainer.objective.projections)
        best = fit(trainer)
        seen[trainer.name] = begun, trainer.engine.full_state(trainer.objective.projections)
        return best

    with patch.object(Trainer, "fit", noting):
        run(config, tmp_path)
    trained, begun = seen["intermediate"][1], seen["prediction"][0]
    assert trained
    assert all(torch.equal(trained[name], weight) for name, weight in begun.items())


def test_padding_that_counts_is_of_the_tasks_length(task, tmp_path):
    """The loss of the paper's code does not depend on the micro-batches."""
    objective = replace(task.intermediate.objective, normalise="all")
    stage = replace(task.intermediate, objective=objective)
    config = replace(task, student=replace(SHAPE, dropout=0.0), intermediate=stage)
    for size in (40, 5):
        with killed_at("prediction", 0):
            run(replace(config, engine=EngineConfig(micro_batch_size=size)), tmp_path / f"{size}")
    one, other = ([row["loss"] for row in curves(tmp_path / f"{size}")] for size in (40, 5))
    assert one == pytest.approx(other, rel=1e-4)


# ---- several processes


def kill_and_resume(model: str, shards: str, folder: str) -> None:
    """On every rank: an undisturbed run and a killed one, resumed, of every ZeRO stage."""
    start_processes()
    for zero in range(4):
        config = general_config(model, shards, engine=EngineConfig(zero=zero))
        run(config, Path(folder, f"undisturbed-{zero}"))
        with killed_at("general", 4):
            run(config, Path(folder, f"killed-{zero}"))
        run(config, Path(folder, f"killed-{zero}"))


def plain_config(model: str, shards: str, zero: int) -> GeneralConfig:
    """Without dropout, whose draws depend on the rank."""
    student = replace(SHAPE, dropout=0.0)
    return general_config(model, shards, student=student, engine=EngineConfig(zero=zero))


def kill(model: str, shards: str, folder: str, stages: list[int]) -> None:
    """On every rank: a killed run of each ZeRO stage."""
    start_processes()
    for zero in stages:
        with killed_at("general", 4):
            run(plain_config(model, shards, zero), Path(folder, f"from-{zero}"))


def resume(model: str, shards: str, folder: str, stages: dict[int, int]) -> None:
    """On every rank: killed runs of a stage go on in another."""
    start_processes()
    for before, after in stages.items():
        run(plain_config(model, shards, after), Path(folder, f"from-{before}"))


def stop(model: str, shards: str, folder: str) -> None:
    """On every rank: a run that only the last rank is asked to stop."""
    start_processes()
    wish = rank() == world_size() - 1
    with patch("distill.trainer.asked", lambda: wish), pytest.raises(Stopped, match="after step 2 of 7"):
        run(general_config(model, shards), Path(folder, "stopped"))
    run(general_config(model, shards), Path(folder, "stopped"))
    run(general_config(model, shards), Path(folder, "undisturbed"))


@pytest.mark.slow
def test_one_process_that_is_asked_stops_both_after_the_same_step(tiny_model, tiny_shards, tmp_path):
    run_processes(stop, 2, tiny_model, tiny_shards, str(tmp_path))
    assert_same(tmp_path / "stopped", tmp_path / "undisturbed")


@pytest.mark.slow
def test_two_killed_processes_end_as_if_they_had_not_been(tiny_model, tiny_shards, tmp_path):
    run_processes(kill_and_resume, 2, tiny_model, tiny_shards, str(tmp_path))
    for zero in range(4):
        assert_same(tmp_path / f"killed-{zero}", tmp_path / f"undisturbed-{zero}")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_run_goes_on_with_other_processes_and_another_zero_stage(
    tiny_model, tiny_shards, tmp_path, before, after
):
    """Each stage after each other; what is left is what sums in another order round otherwise."""
    run_processes(kill, before, tiny_model, tiny_shards, str(tmp_path), [0, 1, 2, 3])
    stages = {0: 3, 1: 2, 2: 0, 3: 1}
    run_processes(resume, after, tiny_model, tiny_shards, str(tmp_path), stages)
    run(plain_config(tiny_model, tiny_shards, 0), tmp_path / "undisturbed")
    whole = load_file(tmp_path / "undisturbed" / "student" / "model.safetensors")
    for stage in stages:
        student = load_file(tmp_path / f"from-{stage}" / "student" / "model.safetensors")
        for name, weight in whole.items():
            assert (student[name] - weight).norm() <= 1e-5 * weight.norm(), (stage, name)


# ---- a full disk


def test_a_checkpoint_that_finds_no_room_ends_the_run_and_costs_nothing(
    general, undisturbed_general, tmp_path
):
    """The last whole one stays, the thread's error surfaces in the main one, and --resume goes on."""
    train_step = Trainer.train_step
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(trainer: Trainer, number: int) -> Any:
        if number == 3:
            trainer.checkpoints.finish(trainer.engine.device)  # the one of step 2, whole whatever the load
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        return train_step(trainer, number)

    message = r"step-00000004\.partial can't be written \(File too large\); make room"
    try:
        with patch.object(Trainer, "train_step", fill), pytest.raises(ValueError, match=message):
            run(general, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (tmp_path / "checkpoints" / "general").glob("step-*[0-9]")] == [
        "step-00000002"
    ]
    run(general, tmp_path)
    assert_same(tmp_path, undisturbed_general)


# ---- a bucket


def test_a_bucket_that_fails_ends_the_run_and_another_node_goes_on(
    general, undisturbed_general, bucket_server, tmp_path, monkeypatch
):
    """In the thread that writes: its error surfaces in the main one, and what was whole before stays."""

    def on(node: str) -> Mirror:
        monkeypatch.setenv("HOME", str(tmp_path / node))
        mirror = Mirror(bucket_server.url("runs/general"))
        mirror.folder.mkdir(parents=True)
        mirror.claim()
        mirror.bring()
        return mirror

    one = on("one")
    bucket_server.refuse = "step-00000004"
    with pytest.raises(ValueError, match=r"^s3://bucket/runs/general\?\S+: .*ACCESS_DENIED"), one.sending():
        run(general, one.folder)
    bucket_server.refuse = ""
    copy = bucket_server.copy("runs/general", tmp_path / "copy")  # is a run folder as any other
    run(general, copy)
    assert_same(copy, undisturbed_general)
    two = on("two")
    assert [path.name for path in two.folder.glob("checkpoints/general/*")] == ["step-00000002"]
    with two.sending():
        run(general, two.folder)
    assert_same(two.folder, undisturbed_general)
    three = on("three")
    assert_same(three.folder, undisturbed_general)
    assert [path.name for path in three.folder.glob("checkpoints/general/*")] == ["step-00000007"]


# ---- a loss that is not finite


@pytest.mark.parametrize(("log_every", "save_every"), [(5, 100), (100, 5)])
def test_a_loss_that_is_not_finite_leaves_its_batch(general, tmp_path, log_every, save_every):
    """Seen with the next line of metrics or before a checkpoint, and told with the step that it was."""
    train_step = Trainer.train_step
    served = []

    def spoil(trainer: Trainer, number: int) -> Any:
        terms, counts = train_step(trainer, number)
        if number == 3:
            served.extend(trainer.source.micro_batches(number))
            terms["loss"] = terms["loss"] * float("nan")
        return terms, counts

    config = replace(general, record=RecordConfig(log_every, save_every))
    message = (
        r"the loss is nan at step 4; its batch is in \S+/non_finite-general-step4-rank\*\.safetensors; .*"
        r" --resume --engine.skip_non_finite 10"
    )
    with patch.object(Trainer, "train_step", spoil), pytest.raises(ValueError, match=message):
        run(config, tmp_path)
    (file,) = tmp_path.glob("non_finite-*")
    assert file.name == "non_finite-general-step4-rank0.safetensors"
    with safe_open(file, "pt") as saved:
        assert saved.metadata() == {"step": "4", "rank": "0"}
        for number, batch in enumerate(served):
            assert torch.equal(saved.get_tensor(f"{number}.ids"), batch.ids)
            assert torch.equal(saved.get_tensor(f"{number}.mask"), batch.mask)
    assert not list(tmp_path.glob("checkpoints/general/*"))


@contextmanager
def spoilt(steps: set[int], what: str, of_rank: int = 0) -> Iterator[None]:
    """The loss of these steps is not a number on one rank, or its gradient alone."""
    train_step, forward, backward = Trainer.train_step, Engine.forward, Engine.backward
    now: list[int] = []

    def step(trainer: Trainer, number: int) -> Any:
        now[:] = [number] if rank() == of_rank and number in steps else []
        return train_step(trainer, number)

    def loss(engine: Engine, *inputs: Any) -> dict[str, torch.Tensor]:
        terms = forward(engine, *inputs)
        return {**terms, "loss": terms["loss"] * float("nan")} if now and what == "loss" else terms

    def gradient(engine: Engine, loss: torch.Tensor) -> None:
        backward(engine, loss * float("inf") if now and what == "gradient" else loss)

    with (
        patch.object(Trainer, "train_step", step),
        patch.object(Engine, "forward", loss),
        patch.object(Engine, "backward", gradient),
    ):
        yield


@contextmanager
def never_taken(step: int) -> Iterator[None]:
    """A step is left out from the start."""
    resume = Trainer._resume

    def resume_without(trainer: Trainer) -> int:
        start = resume(trainer)
        trainer.skipped = {step}
        return start

    with patch.object(Trainer, "_resume", resume_without):
        yield


SKIPS = EngineConfig(skip_non_finite=1)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_step_that_is_not_finite_is_left_out_where_asked_for(general, tmp_path, capsys, what, step):
    """As if it had never been taken: the first of all, one in the middle, the last."""
    config = replace(general, engine=SKIPS)
    with never_taken(step):
        run(config, tmp_path / "without")
    with spoilt({step}, what):
        run(config, tmp_path / "spoilt")
    assert_same(tmp_path / "spoilt", tmp_path / "without")
    assert capsys.readouterr().err.count("; the step is left out") == 1
    assert [line.get("skipped", 0) for line in curves(tmp_path / "spoilt")][-1] == (step < 6)
    assert (tmp_path / "spoilt" / f"non_finite-general-step{step + 1}-rank0.safetensors").is_file()


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(general, tmp_path):
    """Though the metrics, written just before, know of a finite loss only."""
    with (
        spoilt({3}, "gradient"),
        pytest.raises(ValueError, match="the gradient is not finite at step 4; its batch"),
    ):
        run(general, tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoints/general/*")] == ["step-00000002"]


def test_a_killed_run_leaves_out_what_it_has_left_out_before(general, tmp_path):
    config = replace(general, engine=SKIPS)
    with never_taken(2):
        run(config, tmp_path / "without")
    with spoilt({2}, "loss"):
        with killed_at("general", 5):
            run(config, tmp_path / "spoilt")
        run(config, tmp_path / "spoilt")
    assert_same(tmp_path / "spoilt", tmp_path / "without")


def test_a_step_more_than_may_be_left_out_ends_the_run(general, tmp_path):
    message = r"the loss is nan at step 6; .*\(left out before: 1\); .*--engine.skip_non_finite 11"
    with spoilt({3, 5}, "loss"), pytest.raises(ValueError, match=message):
        run(replace(general, engine=SKIPS), tmp_path)


def leave_out(model: str, shards: str, folder: str) -> None:
    """Before a checkpoint, and just after one."""
    for zero, precision in WAYS:
        engine = EngineConfig(zero=zero, precision=precision, skip_non_finite=1)
        config = general_config(model, shards, engine=engine)
        for step in (3, 4):
            name = f"{zero}-{precision}-{step}"
            with never_taken(step):
                run(config, Path(folder, f"without-{name}"))
            with spoilt({step}, "gradient", of_rank=1):
                run(config, Path(folder, f"spoilt-{name}"))


WAYS = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (2, "bf16")]


def test_two_processes_leave_out_a_step_together(tiny_model, tiny_shards, tmp_path):
    run_processes(leave_out, 2, tiny_model, tiny_shards, str(tmp_path))
    for zero, precision in WAYS:
        for step in (3, 4):
            name = f"{zero}-{precision}-{step}"
            assert_same(tmp_path / f"spoilt-{name}", tmp_path / f"without-{name}")


# ---- checkpoints that are not ours


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_hides_a_program_is_refused(general, tmp_path):
    """The program does not run, and neither does the training."""
    with killed_at("general", 2):
        run(general, tmp_path / "killed")
    (hidden,) = (tmp_path / "killed").glob("checkpoints/general/*/*.safetensors")
    torch.save({"module": Trap(tmp_path / "sprung")}, hidden)
    record = {hidden.name: checksum(hidden)}
    (hidden.parent / CHECKSUMS).write_text(json.dumps(record))  # who plants it covers it up
    with pytest.raises(ValueError, match=rf"the checkpoint {hidden} can't be read .*remove its folder"):
        run(general, tmp_path / "killed")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "killed" / "student").exists()


def test_a_checkpoint_of_another_student_is_refused(general, tmp_path):
    with killed_at("general", 2):
        run(general, tmp_path)
    other = replace(general, student=replace(SHAPE, intermediate_size=32))
    with pytest.raises(ValueError, match=r"step-00000002 is of another training: the shape of exp_avg/"):
        run(other, tmp_path)


def test_other_shards_are_refused(tiny_model, tiny_shards, tmp_path):
    """By their manifest; a checkpoint that does not know its data goes on."""
    shards = tmp_path / "shards"
    shutil.copytree(tiny_shards, shards)
    config = general_config(tiny_model, str(shards))
    with killed_at("general", 2):
        run(config, tmp_path / "run")
    change_manifest(shards, documents=1)
    with pytest.raises(
        ValueError, match=rf"the run began with other data: {shards} changed; give the data"
    ):
        run(config, tmp_path / "run")
    forget_data(tmp_path / "run" / "checkpoints" / "general" / "step-00000002")
    run(config, tmp_path / "run")


def forget_data(folder: Path) -> None:
    """Make a checkpoint one of an earlier release."""
    (path,) = folder.glob("*.safetensors")
    tensors, state = checkpoints.read_state(path)
    assert state.pop("data")
    save_file(tensors, path, {"state": json.dumps(state)})
    (folder / CHECKSUMS).write_text(json.dumps({path.name: checksum(path)}))


def test_other_labels_are_refused(task, tmp_path):
    train = tmp_path / "train.tsv"
    text = Path(task.task.train).read_text()
    train.write_text(text)
    config = replace(task, task=replace(task.task, train=str(train)))
    with killed_at("prediction", 2):
        run(config, tmp_path / "run")
    lines = text.splitlines()
    words, label = lines[1].split("\t")
    lines[1] = f"{words}\t{'positive' if label == 'negative' else 'negative'}"
    train.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"^intermediate: the run began with other data: labels changed; "):
        run(config, tmp_path / "run")


def test_the_trap_of_these_tests_works(tmp_path):
    torch.save({"module": Trap(tmp_path / "sprung")}, tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "sprung").is_dir()
