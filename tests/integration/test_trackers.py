"""Metrics in trackers, read back; a resumption goes on with their run. A missing package is a refusal."""

import importlib.util
import json
from pathlib import Path

import pytest

from data_pipeline.settings import TaskConfig
from distill.settings import FinetuneConfig, ObjectiveConfig, RecordConfig, StageConfig
from distill.trackers import check_trackers, tracking
from launcher.cli import main
from launcher.rank import execute
from launcher.settings import to_yaml
from tests.processes import join_group_of_one

ROWS = [{"stage": "task", "split": "train", "step": step, "loss": 1.0 / step} for step in (1, 2, 3)]


def train(folder: Path, tracker: str, model: str, data: Path) -> None:
    """A fine-tuning of 4 steps that is tracked, as a rank runs it."""
    join_group_of_one()
    task = TaskConfig(str(data / "train.tsv"), str(data / "dev.tsv"), max_length=16)
    record = RecordConfig(log_every=2, trackers=[tracker])
    stage = StageConfig(epochs=0.4, batch_size=20, objective=ObjectiveConfig(labels=1.0))
    config = FinetuneConfig(model, task, stage=stage, record=record)
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    execute("finetune", config, folder)


def logged(folder: Path) -> dict[tuple[str, int], float]:
    """What metrics.jsonl holds, by tag and step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (f"{row['split']}/{key}", row["step"]): pytest.approx(value, rel=1e-6)
        for row in rows
        for key, value in row.items()
        if key not in ("stage", "split", "step", "time", "rows_digest")
    }


def events(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars of a folder of TensorBoard's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        (tag, event.step): event.value for tag in found.Tags()["scalars"] for event in found.Scalars(tag)
    }


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_refused_before_anything_is_written(
    tracker, tmp_path, tiny_model, tiny_task, monkeypatch, capsys
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == tracker else object())
    data = [f"--task.train={tiny_task}/train.tsv", f"--task.dev={tiny_task}/dev.tsv"]
    words = ["finetune", "--run", str(tmp_path / "run"), "--model", tiny_model, *data]
    assert main([*words, f"--record.trackers=[{tracker}]"]) == 2
    assert f"{tracker} is not installed; pip install -e '.[track]' in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_mlflows_database_needs_is_asked_for_and_of_a_server_nothing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "alembic" else object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="alembic is not installed, which mlflow needs; pip install"):
        check_trackers(["mlflow"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_trackers(["mlflow"])


def test_nothing_is_tracked_by_default():
    assert RecordConfig().trackers == []


def test_tensorboard_gets_what_the_run_folder_gets(tmp_path, tiny_model, tiny_task):
    pytest.importorskip("tensorboard")
    check_trackers(["tensorboard"])
    train(tmp_path / "run", "tensorboard", tiny_model, tiny_task)
    expected = logged(tmp_path / "run")
    found = events(tmp_path / "run" / "tensorboard" / "finetune")
    assert {key: found[key] for key in expected} == expected


def test_tensorboard_forgets_what_came_after_the_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    with tracking(["tensorboard"], tmp_path, "task", 0) as log:
        for row in ROWS:
            log(row)
    with tracking(["tensorboard"], tmp_path, "task", 1) as log:
        log({**ROWS[1], "loss": 7.0})
    assert events(tmp_path / "tensorboard" / "task") == {("train/loss", 1): 1.0, ("train/loss", 2): 7.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """The address of a database, MLflow's default; making one takes seconds."""
    pytest.importorskip("mlflow")
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def mlflow_client(store, tmp_path, monkeypatch):
    """What reads that store; each test has an experiment of its own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    import mlflow

    return mlflow.MlflowClient()


def test_mlflow_gets_what_the_run_folder_gets(tmp_path, tiny_model, tiny_task, mlflow_client):
    check_trackers(["mlflow"])
    train(tmp_path / "run", "mlflow", tiny_model, tiny_task)
    experiment = mlflow_client.get_experiment_by_name(tmp_path.name)
    (run,) = mlflow_client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["stage.batch_size"] == "20"
    found = {
        (name.removeprefix("finetune/").replace("loss.", "loss/"), point.step): point.value
        for name in run.data.metrics
        for point in mlflow_client.get_metric_history(run.info.run_id, name)
    }
    expected = logged(tmp_path / "run")
    assert {key: found[key] for key in expected} == expected


def test_mlflow_continues_its_run_and_says_how_it_ended(tmp_path, mlflow_client):
    def failing():
        with tracking(["mlflow"], tmp_path, "task", 0) as log:
            log(ROWS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    name = json.loads((tmp_path / "trackers.json").read_text())["mlflow"]
    assert mlflow_client.get_run(name).info.status == "FAILED"
    with tracking(["mlflow"], tmp_path, "task", 1) as log:
        log(ROWS[1])
    run = mlflow_client.get_run(name)
    assert run.info.status == "FINISHED"
    history = mlflow_client.get_metric_history(name, "task/train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]


def test_wandb_continues_its_run(tmp_path, monkeypatch):
    """Without its server: what it keeps to send later."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for start, row in enumerate(ROWS[:2]):
        with tracking(["wandb"], tmp_path, "task", start) as log:
            log(row)
    name = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert {file.stem for file in files} == {f"run-{name}"}
    kept = b"".join(file.read_bytes() for file in files)
    assert kept.count(b"task/train/loss") >= 2


def test_a_tracker_that_cannot_begin_is_one_line(tmp_path, mlflow_client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    with pytest.raises(ValueError, match="mlflow can't begin"), tracking(["mlflow"], tmp_path, "task", 0):
        pass


def test_one_that_is_gone_at_the_end_ends_no_training(tmp_path, mlflow_client, monkeypatch, capsys):
    with tracking(["mlflow", "tensorboard"], tmp_path, "task", 0) as log:
        log(ROWS[0])
        monkeypatch.setattr(type(mlflow_client), "set_terminated", gone)
        monkeypatch.setattr(type(mlflow_client), "log_batch", gone)
        log(ROWS[1])
    said = capsys.readouterr().err
    assert "warning: mlflow gets no more metrics: no route" in said
    assert "warning: mlflow could not close its run: no route" in said
    assert events(tmp_path / "tensorboard" / "task") == {("train/loss", 1): 1.0, ("train/loss", 2): 0.5}


def gone(*_: object, **__: object) -> None:
    raise ConnectionError("no route")


def test_one_that_fails_later_ends_no_training(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    with tracking(["tensorboard"], tmp_path, "task", 0) as log:
        log({**ROWS[0], "loss": "no number"})
        log(ROWS[1])
    assert capsys.readouterr().err.count("warning: tensorboard gets no more metrics") == 1
