"""Ranks that take other rows than theirs, or hold other weights, are seen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from distill.agreement import digest, rows_apart, weights_apart
from distill.encoders import Batch, build_classifier, read_config, save_model
from distill.engine import rank, start_processes
from tests.processes import run_processes


def a_batch(rows: list[list[int]], width: int = 8) -> Batch:
    """Rows padded with 0 to a width."""
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return Batch(ids, mask, torch.zeros_like(ids))


ROWS = [[5, 6, 7], [7, 6, 5, 4], [9], [5, 6, 8]]


def test_a_digest_is_the_same_in_any_order_batches_and_padding():
    whole = digest(a_batch(ROWS))
    assert whole == digest(a_batch(ROWS[::-1], 11))
    assert whole == digest(a_batch(ROWS[:1])) + digest(a_batch(ROWS[1:], 4))
    padded = a_batch(ROWS)
    padded.ids[padded.mask == 0] = 99
    assert whole == digest(padded)


@pytest.mark.parametrize(
    "others",
    [
        [*ROWS[:3], ROWS[2]],  # one twice, one never
        [[6, 5, 7], *ROWS[1:]],
        [[5, 6, 8], [7, 6, 5, 4], [9], [5, 6, 6]],
        [[5, 6], [7, 7, 6, 5, 4], [9], [5, 6, 8]],
        ROWS[:3],
    ],
)
def test_other_rows_have_another_digest(others):
    assert digest(a_batch(others)) != digest(a_batch(ROWS))


def test_rows_and_positions_that_are_not_the_steps_are_named():
    assert rows_apart([40, 41], 16, 32, 81) == ""
    assert "in steps 41 to 42 the ranks took 31 rows" in rows_apart([40, 41], 16, 31, 81)
    assert "or other steps" in rows_apart([40, 41], 16, 32, 80)


def apart_after(change: str) -> Tensor:
    """How far the weights of two processes are apart when rank 1 has changed one."""
    start_processes()
    torch.manual_seed(0)
    module = nn.Linear(300, 200).bfloat16() if change == "bf16" else nn.Linear(300, 200)
    if rank() == 1:
        with torch.no_grad():
            weight = module.weight[7, 9]
            if change == "bit":
                weight.view(torch.int32).bitwise_xor_(1)
            elif change == "sign of all":
                module.weight.neg_()
            elif change == "nan":
                weight.fill_(float("nan"))
            elif change == "bf16":
                weight.add_(0.5)
    return torch.tensor(weights_apart(module))


def apart_after_each(changes: list[str]) -> dict[str, Tensor]:
    return {change: apart_after(change) for change in changes}


def test_weights_of_other_bits_are_measured_on_every_rank():
    changes = ["none", "bit", "sign of all", "nan", "bf16"]
    for found in run_processes(apart_after_each, 2, changes):
        assert found["none"].tolist() == []
        assert found["bit"][0] == 0
        assert 0 < found["bit"][1] < 1e-8
        assert found["sign of all"][1] == pytest.approx(2, rel=0.1)
        assert found["nan"][1].isnan()
        assert found["bf16"][1] > 1e-3


def running_means(paths: dict[str, str]) -> Tensor:
    """A rank's running mean after a training of two steps, in a student that has one."""
    from tests.distributed.test_gradients import trainer_of

    start_processes()
    with patch("tests.distributed.test_gradients.build_student", with_running_mean(paths)):
        trainer = trainer_of("prediction", 0, None, paths, Path(paths["runs"]))
    trainer.total = 2
    trainer.fit()
    return trainer.objective.student.classifier[0].running_mean


def with_running_mean(paths: dict[str, str]) -> Callable[[dict[str, str]], nn.Module]:
    from tests.distributed.test_gradients import build_student

    student = build_student(paths)
    student.classifier = nn.Sequential(nn.BatchNorm1d(24), student.classifier)
    return lambda _: student


def test_ranks_end_with_the_same_running_means(tiny_model, tiny_task, tmp_path):
    torch.manual_seed(5)
    teacher = build_classifier(tiny_model, read_config(tiny_model), ["negative", "positive"])
    save_model(teacher, tmp_path / "teacher", tiny_model, teacher.state_dict(), {})
    paths = {"teacher": str(tmp_path / "teacher"), "train": str(tiny_task / "train.tsv")}
    one, other = run_processes(running_means, 2, {**paths, "runs": str(tmp_path)})
    assert one.abs().sum() > 0
    assert torch.equal(one, other)


def trained_apart(case: str, paths: dict[str, str]) -> dict[str, str]:
    """What a training says whose rank 1 changes its weights, or takes the rows of another step."""
    from tests.distributed.test_gradients import trainer_of

    start_processes()
    folder = Path(paths["runs"], case)
    folder.mkdir(exist_ok=True)
    trainer = trainer_of("general", 0, None, paths, folder)
    trainer.record = replace(trainer.record, save_every=2)
    step, micro_batches = trainer.engine.step, trainer.source.micro_batches

    def spoil(lr: float) -> None:
        step(lr)
        if rank() == 1 and case == "weights":
            next(trainer.objective.parameters()).data.mul_(1.1)

    def fewer(number: int) -> list[Batch]:
        batches = micro_batches(number)
        if rank() == 1 and case == "rows":
            batches = [
                Batch(**{name: part[1:] for name, part in vars(batch).items() if part is not None})
                for batch in batches
            ]
        return batches

    with patch.object(trainer.engine, "step", spoil), patch.object(trainer.source, "micro_batches", fewer):
        try:
            trainer.fit()
        except ValueError as error:
            return {"said": str(error)}
    return {"said": ""}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("none", ""),
        ("weights", "general: at step 2 the weights differ from rank 0's on rank 1 ("),
        ("rows", "general: in steps 1 to 2 the ranks took 30 rows together instead of 2 times 16"),
    ],
)
def test_a_training_whose_ranks_fall_apart_ends_on_all(case, words, tiny_model, tiny_shards, tmp_path):
    paths = {"teacher": tiny_model, "shards": tiny_shards, "runs": str(tmp_path)}
    for found in run_processes(trained_apart, 2, case, paths):
        assert found["said"].startswith(words)
        assert bool(found["said"]) == bool(words)
    assert bool(list(tmp_path.glob("*/checkpoints/*/step-*"))) == (case == "none")
