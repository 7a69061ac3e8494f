"""What the driver does before a search begins, and when Ctrl-C comes."""

import json
import re
import signal
import sys
from contextlib import nullcontext
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from data_pipeline.settings import PregenerateConfig, TaskConfig
from distill.preemption import Stopped
from distill.settings import StudentConfig, TaskDistillConfig, TeacherConfig
from launcher import ray_driver, runs
from launcher.demo import DemoConfig
from launcher.jobs import JOBS
from launcher.ray_place import plan
from launcher.settings import Launch, to_yaml
from tests.unit.test_places import as_before
from tune.settings import WorkersConfig

HEAD = {"memory": 1e9}  # a cloud's, which runs no jobs
NODE = {"CPU": 2.0, "memory": 1e9}


@pytest.fixture
def asked(monkeypatch):
    """What the autoscaler was asked for, at each time."""
    bundles: list[list[dict[str, float]]] = []
    monkeypatch.setattr(ray_driver, "request_resources", lambda bundles, into=bundles: into.append(bundles))
    return bundles


@pytest.fixture
def joined(monkeypatch, asked):
    """The nodes at each look; no time passes between two."""
    looks: list[list[dict[str, float]]] = []
    monkeypatch.setattr(ray_driver, "nodes", lambda: looks.pop(0))
    monkeypatch.setattr(ray_driver.time, "sleep", lambda _: None)
    return looks


def test_a_search_waits_for_nodes_that_are_joining(joined, tmp_path):
    joined += [[], [NODE], [HEAD, NODE], [HEAD, NODE, NODE]]
    with ray_driver.room(2, WorkersConfig(), tmp_path / "stop"):
        assert joined == []


def test_a_search_asks_an_autoscaler_for_room_until_it_ends(joined, asked, tmp_path):
    workers = WorkersConfig(processes=2, cpus=1, gpus=1, concurrent=2)
    large = {"CPU": 8.0, "GPU": 1.0}
    joined += [[HEAD], [HEAD, large], [HEAD, large, large]]
    with ray_driver.room(2, workers, tmp_path / "stop"):
        assert asked == [[{"CPU": 1, "GPU": 1}] * 4]
    assert joined == []
    assert asked[1:] == [[]]


def test_it_goes_on_with_what_there_is(joined, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ray_driver, "JOINING", -1.0)
    joined += [[NODE]]
    with ray_driver.room(2, WorkersConfig(processes=3), tmp_path / "stop"):
        said = capsys.readouterr().err
    assert "1 of 2 nodes have joined, with room for 2 processes: on with those" in said


def test_it_begins_no_search_where_a_stop_was_asked_for(joined, tmp_path):
    (tmp_path / "stop").touch()
    joined += [[NODE]]
    with pytest.raises(Stopped), ray_driver.room(2, WorkersConfig(), tmp_path / "stop"):
        pass


def test_a_training_is_given_what_was_planned(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(ray_driver, "train", lambda rank, place, **more: given.update(more))
    monkeypatch.setattr(ray_driver, "warn_of_idle_gpus", lambda *_: None)
    launch = Launch(run=str(tmp_path), on="ray", nodes=3, gpus_per_node=2, cpus_per_node=8, max_failures=7)
    ray_driver.train_as_workers(plan("general", launch, 2), tmp_path)
    assert given == {"workers": 6, "resources": {"CPU": 4, "GPU": 1}, "retries": 7, "spread": False}


def test_storage_that_can_not_be_written_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ray_driver.jobs, "check", lambda *_: None)
    (tmp_path / "disk").touch()
    launch = Launch(run=str(tmp_path), on="ray", storage=str(tmp_path / "disk" / "runs"))
    (tmp_path / "plan.json").write_text(json.dumps(asdict(plan("demo", launch, 1))))
    (tmp_path / "config.yaml").write_text(to_yaml(DemoConfig()))
    assert ray_driver.main(str(tmp_path)) == 2
    said = capsys.readouterr().err
    assert said.startswith("distillery demo: error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("job", "nodes", "gpus", "said"),
    [
        ("general", 2, 0, ""),
        ("general", 3, 0, "general, without an --address, needs 3 x (1 CPU), and"),
        ("evaluate", 1, 1, "evaluate, without an --address, needs 1 x (1 CPU, 1 GPU), and"),
        ("pregenerate", 3, 0, ""),  # one slice after another
        ("tune", 1, 0, ""),
        ("tune", 3, 0, "tune, without an --address, has this machine alone, and --nodes is 3;"),
    ],
)
@pytest.mark.parametrize("address", ["", "head:6379"])
def test_what_a_ray_of_this_machine_never_holds_is_refused(
    tmp_path, monkeypatch, job, nodes, gpus, said, address
):
    """Other clusters may grow."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_driver, "connect", lambda *_: None)
    monkeypatch.setattr(ray_driver, "nodes", lambda: [NODE])
    for name in ("train_as_workers", "run_tasks", "_run_here"):
        monkeypatch.setattr(ray_driver, name, lambda *_: None)
    monkeypatch.setattr(ray_driver, "room", lambda *_: nullcontext())
    (tmp_path / "summary.json").write_text("{}")
    launch = Launch(run=str(tmp_path), on="ray", nodes=nodes, gpus_per_node=gpus, address=address)
    refused = said and not address
    with pytest.raises(ValueError, match=re.escape(said)) if refused else nullcontext():
        ray_driver._run(plan(job, launch, 1), SimpleNamespace(workers=None), tmp_path, None)


@pytest.mark.parametrize(
    ("student", "teacher", "refused"),
    [
        (StudentConfig(), TeacherConfig("t"), ""),
        (
            StudentConfig(kind="bilstm"),
            TeacherConfig("t"),
            "a student of whole words writes its vocabulary",
        ),
        (
            StudentConfig(),
            TeacherConfig("", ensemble={"a": 1.0, "b": 1.0}),
            "this teacher's logits are written",
        ),
        (StudentConfig(), TeacherConfig("", ensemble={"a": 1.0}, outputs="runs/label/outputs"), ""),
    ],
)
def test_what_nodes_that_share_no_folder_can_not_do_is_refused(student, teacher, refused):
    config = TaskDistillConfig(teacher=teacher, task=TaskConfig("train.tsv", "dev.tsv"), student=student)
    ray_driver.refuse_apart("task", config, nodes=1)
    with pytest.raises(ValueError, match=f"--storage: {refused}.*--nodes 1") if refused else nullcontext():
        ray_driver.refuse_apart("task", config, nodes=2)


@pytest.mark.parametrize(("job", "answers"), [("general", True), ("label", True), ("pregenerate", False)])
def test_the_first_ctrl_c_is_a_wish_where_the_job_answers_it(tmp_path, monkeypatch, capfd, job, answers):
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "")
    with as_before():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupts = ray_driver._listen(JOBS[job], tmp_path / "stop")
        with nullcontext() if answers else pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert (tmp_path / "stop").exists() == answers
        assert ("Ctrl-C again ends at once" in capfd.readouterr().err) == answers
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert len(interrupts) == 2


@pytest.mark.parametrize(("address", "cpus"), [("", 1), ("head:6379", None)])
def test_a_ray_of_this_machine_has_no_cpus_but_ours(monkeypatch, address, cpus):
    asked_for = {}

    def init(**words):
        asked_for.update(words)
        raise ConnectionError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    monkeypatch.setattr(ray_driver.ray, "init", init)
    with pytest.raises(ValueError, match="no Ray cluster answers"):
        ray_driver.connect("general", address)
    assert asked_for["num_cpus"] == cpus


@pytest.mark.parametrize(("wanted", "reserved", "taken"), [(0, 3, 3), (2, 3, 2), (0, 0, 0)])
def test_a_slice_takes_the_cpus_that_it_has_reserved(tmp_path, monkeypatch, wanted, reserved, taken):
    found = []
    runs.begin(tmp_path / "run", "pregenerate", PregenerateConfig(workers=wanted))
    monkeypatch.setattr(ray_driver, "execute", lambda job, config, folder: found.append(config.workers))
    ray_driver._run_here("pregenerate", tmp_path / "run", reserved)
    assert found == [taken]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize(("job", "stops"), [("evaluate", True), ("general", False)])
def test_a_job_that_keeps_nothing_stops_at_once(tmp_path, job, stops, number):
    with as_before():
        ray_driver._listen(JOBS[job], tmp_path / "stop")
        with pytest.raises(Stopped) if stops else nullcontext():
            signal.raise_signal(number)


def test_after_ray_has_begun_sigterm_does_what_sigusr1_does(monkeypatch):
    """Ray has a handler of its own, which aborts; Ray Tune has one of SIGUSR1, later."""
    heard = []
    context = SimpleNamespace(gcs_address="head:6379")
    monkeypatch.setattr(ray_driver.ray, "init", lambda **_: signal.signal(signal.SIGTERM, pytest.fail))
    monkeypatch.setattr(ray_driver.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray_driver, "_end_without", lambda *_: None)
    with as_before():
        ray_driver.connect("general", "head:6379")
        signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGUSR1]


def test_a_wish_to_stop_while_ray_begins_is_heard(monkeypatch):
    def init(**_):
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray_driver.ray, "init", init)
    with as_before(), pytest.raises(Stopped, match="stopped, as asked"):
        ray_driver.connect("general", "head:6379")
