"""The same step on any number of processes, micro-batches and ZeRO stages: same gradients, same weights.

Real trainers run over gloo; both launches try every case, and the tests compare what they return.
"""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor

from data_pipeline.settings import TaskConfig
from data_pipeline.stream import CorpusReader
from data_pipeline.tasks import encode_split
from data_pipeline.vocabulary import load_vocabulary
from distill.encoders import Teacher, build_classifier, read_config, save_model, student_shape
from distill.engine import rank, start_processes, world_size
from distill.objective import Objective, count
from distill.schedule import factor
from distill.settings import (
    EngineConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RecordConfig,
    ScheduleConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
)
from distill.sources import CorpusSource, TaskSource
from distill.trainer import Trainer
from tests.processes import join_group_of_one, run_processes

BATCH = 16
STEPS = 3
LABELS = ["negative", "positive"]
LAYERS = [(0, 0), (1, 2), (2, 4)]
# `intermediate` leaves the classifier without a gradient, as the first step of a task does.
OBJECTIVES = {
    "general": ObjectiveConfig(attention=1.0, hidden=1.0),
    "intermediate": ObjectiveConfig(attention=1.0, hidden=1.0),
    "prediction": ObjectiveConfig(logits=1.0, labels=0.5, temperature=2.0),
}
CASES = [("general", 0), ("general", 1), ("general", 2), ("general", 3)]
CASES += [("intermediate", 1), ("prediction", 2)]

Tensors = dict[str, Tensor]


def trainer_of(case: str, zero: int, micro: int | None, paths: dict[str, str], folder: Path) -> Trainer:
    """A trainer as the jobs build it, over this process's share."""
    torch.manual_seed(rank())  # only rank 0's weights may count
    student = build_student(paths)
    objective = Objective(student, OBJECTIVES[case], LAYERS, 32)
    return Trainer(
        name=case,
        objective=objective,
        teacher=Teacher(
            TeacherConfig(paths["teacher"], precision="fp32"),
            torch.device("cpu"),
            layers=LAYERS[-1][1] if case == "general" else None,
        ),
        source=source_of(case, paths, micro or BATCH // world_size()),
        stage=StageConfig(
            batch_size=BATCH,
            objective=OBJECTIVES[case],
            optimizer=OptimizerConfig(lr=1e-2, clip=0.5, eps=0.01),  # with a small eps Adam hides the clip
            schedule=ScheduleConfig(name="constant", warmup=0.0),
        ),
        engine_config=EngineConfig(zero=zero, micro_batch_size=micro),
        record=RecordConfig(),
        seed=0,
        folder=folder,
    )


def build_student(paths: dict[str, str]) -> torch.nn.Module:
    shape = StudentConfig(layers=2, hidden_size=24, heads=4, intermediate_size=48)
    return build_classifier(None, student_shape(shape, read_config(paths["teacher"])), LABELS)


def source_of(case: str, paths: dict[str, str], micro: int) -> CorpusSource | TaskSource:
    if case == "general":
        return CorpusSource(CorpusReader(paths["shards"], BATCH, 0, rank(), world_size()), micro)
    task = TaskConfig(train=paths["train"], dev=paths["train"])
    data = encode_split(task.train, task, load_vocabulary(paths["teacher"]), LABELS)
    return TaskSource(data, BATCH, micro, 0, rank(), world_size())


def train(paths: dict[str, str]) -> dict[str, dict[str, Tensors]]:
    """Every case in one group of processes: the first step's gradients, and the weights after all."""
    start_processes()
    if world_size() == 1:  # ZeRO 0 on the whole batch is what all is compared with
        chosen = [("whole", case, 0, None) for case in OBJECTIVES]
        chosen += [("accumulated", case, zero, BATCH // 4) for case, zero in CASES]
    else:
        chosen = [("whole", case, zero, None) for case, zero in CASES]
    return {
        f"{case} {zero} {split}": steps(trainer_of(case, zero, micro, paths, Path(paths["runs"])))
        for split, case, zero, micro in chosen
    }


def steps(trainer: Trainer) -> dict[str, Tensors]:
    start = trainer.engine.full_state(trainer.objective)
    gradients: Tensors = {}
    trainer.engine.train()
    with patch.object(trainer.engine, "step", noting_gradients(trainer, gradients)):
        trainer.train_step(0)
    for step in range(1, STEPS):
        trainer.train_step(step)
    weights = trainer.engine.full_state(trainer.objective)
    trainer.engine.close()
    return {"start": start, "gradients": gradients, "weights": weights}


def noting_gradients(trainer: Trainer, gradients: Tensors) -> Callable[[float], None]:
    """The engine's step, noting first the gradients that it is about to apply."""
    engine_step = trainer.engine.step

    def step(lr: float) -> None:
        if trainer.engine.engine.is_gradient_accumulation_boundary():
            for name, parameter in trainer.objective.named_parameters():
                gradient = safe_get_full_grad(parameter)
                size = getattr(parameter, "ds_shape", parameter.shape)
                gradients[name] = torch.zeros(size) if gradient is None else gradient.clone()
        engine_step(lr)

    return step


@pytest.fixture(scope="module")
def paths(tiny_model, tiny_shards, tiny_task, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("gradients")
    torch.manual_seed(5)
    teacher = build_classifier(tiny_model, read_config(tiny_model), LABELS)
    save_model(teacher, folder / "teacher", tiny_model, teacher.state_dict(), {})
    return {
        "teacher": str(folder / "teacher"),
        "shards": tiny_shards,
        "train": str(tiny_task / "train.tsv"),
        "runs": str(folder / "runs"),
    }


@pytest.fixture(scope="module")
def alone(paths) -> dict[str, dict[str, Tensors]]:
    join_group_of_one()
    return train(paths)


@pytest.fixture(scope="module")
def together(paths) -> list[dict[str, dict[str, Tensors]]]:
    return run_processes(train, 2, paths)


def assert_close(one: Tensors, other: Tensors) -> None:
    """Every tensor to 1e-5 of its norm; those that are nothing but rounding, of the largest's."""
    assert one.keys() == other.keys()
    largest = max(tensor.norm() for tensor in other.values())
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= 1e-5 * other[name].norm() + 1e-8 * largest, name


@pytest.mark.parametrize(("case", "zero"), CASES)
def test_gradients_are_the_same_on_two_processes(alone, together, case, zero):
    key = f"{case} {zero} whole"
    assert_close(together[0][key]["gradients"], alone[f"{case} 0 whole"]["gradients"])


@pytest.mark.parametrize(("case", "zero"), CASES)
def test_weights_are_the_same_on_two_processes(alone, together, case, zero):
    assert_close(together[0][f"{case} {zero} whole"]["weights"], alone[f"{case} 0 whole"]["weights"])


@pytest.mark.parametrize(("case", "zero"), CASES)
def test_gradients_are_the_same_in_micro_batches(alone, case, zero):
    key = f"{case} {zero} accumulated"
    assert_close(alone[key]["gradients"], alone[f"{case} 0 whole"]["gradients"])


@pytest.mark.parametrize(("case", "zero"), CASES)
def test_weights_are_the_same_in_micro_batches(alone, case, zero):
    assert_close(alone[f"{case} {zero} accumulated"]["weights"], alone[f"{case} 0 whole"]["weights"])


@pytest.mark.parametrize(("case", "zero"), CASES)
def test_both_processes_hold_the_same_trained_student(together, case, zero):
    first, second = (result[f"{case} {zero} whole"] for result in together)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    assert any(not torch.equal(w, first["start"][name]) for name, w in first["weights"].items())


def test_every_step_has_the_schedules_rate(paths, tmp_path):
    join_group_of_one()
    trainer = trainer_of("prediction", 0, None, paths, tmp_path)
    trainer.stage.schedule = ScheduleConfig(name="linear", warmup=0.2)
    used, rate = {}, trainer.stage.optimizer.lr
    for step in (0, 1, trainer.total // 2, trainer.total - 1):
        trainer.train_step(step)
        used[step] = [group["lr"] for group in trainer.engine.optimizer.param_groups]
    trainer.engine.close()
    expected = {step: rate * factor(trainer.stage.schedule, step, trainer.total) for step in used}
    assert len(set(expected.values())) == 4
    for step, rates in used.items():
        assert rates == pytest.approx([expected[step]] * 2)


@pytest.mark.parametrize("case", OBJECTIVES)
def test_gradients_are_those_of_the_whole_batch_without_an_engine(alone, paths, case):
    """One process, one batch, plain autograd."""
    torch.manual_seed(0)
    student = build_student(paths)
    objective = Objective(student, OBJECTIVES[case], LAYERS, 32).train()
    (batch,) = source_of(case, paths, BATCH).micro_batches(0)
    teacher = Teacher(TeacherConfig(paths["teacher"], precision="fp32"), torch.device("cpu"))
    signal = teacher.signal(batch, {0, 2, 4}, {2, 4})
    objective(batch, signal, count(batch, "valid").float())["loss"].backward()
    expected = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in objective.named_parameters()
    }
    assert_close(alone[f"{case} 0 whole"]["gradients"], expected)
