"""The command explains itself, keeps what it was given, and says what it would run."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.settings import (
    AugmentConfig,
    CorpusConfig,
    MaskingConfig,
    NoiseConfig,
    PackingConfig,
    PregenerateConfig,
    TaskConfig,
    VocabularyConfig,
    WordsConfig,
)
from distill.report import ReportConfig
from distill.settings import (
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    GeneralConfig,
    LabelConfig,
    ObjectiveConfig,
    PredictConfig,
    PretrainConfig,
    StageConfig,
    StudentConfig,
    TaskDistillConfig,
    TeacherConfig,
    TextGcnConfig,
)
from launcher import cli, jobs, local
from launcher.completion import CompletionConfig
from launcher.demo import DemoConfig
from launcher.doctor import DoctorConfig
from launcher.jobs import JOBS, load
from launcher.settings import Launch, from_yaml, job_of, parse, to_yaml
from launcher.submitted import CancelConfig, LogsConfig, StatusConfig
from tests.helpers import tree
from tune.settings import BudgetConfig, SchedulerConfig, TuneConfig, WorkersConfig

ROOT = Path(__file__).parents[2]
AWKWARD = [
    "two words",
    "it's",
    'say "hi"',
    "$(touch owned)",
    "`x`; y",
    "a\\b",
    "#1: {x} [y]",
    "-",
    "词",
    "~",
    "*",
    "1e3",
]

TASK = TaskConfig("train.tsv", "dev.tsv", {"m": "m.tsv"}, text_pair="second", labels=["0", "no", "null"])
TEACHER = TeacherConfig("teacher", "fp32", dropout=True, ensemble={"a b": 0.5}, outputs="outputs")
GENERAL = ["--teacher.path", "teacher", "--shards", "shards"]

# A configuration of every job in which nothing is as it is by default.
CONFIGS = {
    "demo": DemoConfig(train=100, dev=9, seeds=2, teacher_epochs=0.5, seed=4),
    "doctor": DoctorConfig(json=True),
    "pregenerate": PregenerateConfig(
        corpus=CorpusConfig(files=["a.txt", "b c.jsonl"], documents="line", text_field="body"),
        tokenizer="model",
        packing=PackingConfig("full", 64, 0.25, MaskingConfig(0.15, 9, at_least_one=True)),
        seed=5,
    ),
    "general": GeneralConfig(
        teacher=TEACHER,
        shards="shards",
        student=StudentConfig(path="student"),
        stage=StageConfig(0.1, 8, ObjectiveConfig(hidden=0.3, layer_map=[1, 3]), evaluate_every=7),
        pad_to_longest=False,
    ),
    "vocabulary": VocabularyConfig(CorpusConfig(files=["a.txt"]), size=99),
    "pretrain": PretrainConfig("model", "shards", masking=MaskingConfig(0.2, unit="word"), dropout=0.2),
    "augment": AugmentConfig("a.tsv", "model", "noise", noise=NoiseConfig(most=0.3, ngrams="keep")),
    "finetune": FinetuneConfig(model="model", task=TASK, shape=StudentConfig(layers=2), dropout=0.0),
    "label": LabelConfig(teacher=TEACHER, task=TASK, batch_size=3, rows_per_file=7),
    "task": TaskDistillConfig(TEACHER, TASK, StudentConfig(kind="cnn", words=WordsConfig("a.vec")), seed=3),
    "tune": TuneConfig(
        base=TaskDistillConfig(TEACHER, TASK, seed=3),
        space={
            "student.layers": [1, 2],
            "prediction.optimizer.lr": {"low": 1e-5, "high": 0.1, "log": True},
        },
        search="random",
        trials=3,
        minimise="flops",
        budget=BudgetConfig(parameters=9, latency_ms=0.5),
        scheduler=SchedulerConfig("asha", 0.1, 3.0),
        workers=WorkersConfig(2, True, 3, 0.5, 4, 0),
        seed=7,
    ),
    "textgcn": TextGcnConfig(task=TASK, window=5),
    "evaluate": EvaluateConfig(
        models={"a": ["x", "y z"], "no": ["1"]}, task=TASK, latency=False, submit={"AX": "ax.tsv"}
    ),
    "export": ExportConfig(model="m", task=TASK, int8=False, opset=18, latency_batches=[2]),
    "predict": PredictConfig(model="m", input="a b.tsv", text_pair="b", header=False, runtime="onnx_int8"),
    "report": ReportConfig(runs=["a", "b c"], out="page.html"),
    "status": StatusConfig(["a", "b c"]),
    "logs": LogsConfig(["a b"], follow=False),
    "cancel": CancelConfig(["a", "b c"]),
    "completion": CompletionConfig("zsh"),
}


def python(program: str) -> str:
    """Run a program in a fresh process; returns what it prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def leaves(config: type, prefix: str = "") -> list[str]:
    """The dotted names of a dataclass's settings."""
    names = []
    for name, kind in get_type_hints(config).items():
        names += leaves(kind, f"{prefix}{name}.") if is_dataclass(kind) else [prefix + name]
    return names


def printed(capsys, *arguments: str) -> str:
    """What a command prints that ends well and says nothing on stderr."""
    assert cli.main(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


# --- help ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_the_command_lists_its_jobs(capsys, arguments):
    out = printed(capsys, *arguments)
    for name, job in JOBS.items():
        assert name in out
        assert job.help in out


def test_the_command_tells_its_version(capsys):
    said = printed(capsys, "--version")
    assert f'version="{said.removeprefix("distillery ").strip()}",' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("name", JOBS)
def test_a_job_lists_every_setting(capsys, name):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: distillery {name}" in out
    assert [leaf for leaf in leaves(load(JOBS[name].config)) if f"--{leaf}" not in out] == []


@pytest.mark.parametrize("name", JOBS)
def test_help_has_no_setting_without_an_explanation(capsys, name):
    """jsonargparse shows only the type and default of a setting that no docstring explains."""
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    entries = [" ".join(entry.split()) for entry in capsys.readouterr().out.split("\n  --")]
    assert [entry for entry in entries if re.match(r"\S+ \S+ \((required, )?type: ", entry)] == []


def test_help_and_dry_run_load_nothing_heavy():
    program = """
import contextlib, io, sys
from launcher import cli
from launcher.jobs import JOBS
with contextlib.redirect_stdout(io.StringIO()):
    cli.main(["--help"])
    for name in JOBS:
        with contextlib.suppress(SystemExit):
            cli.main([name, "--help"])
    for place in ("local", "node", "slurm", "ray"):
        arguments = ["--teacher.path", "x", "--shards", "y", "--on", place, "--dry-run"]
        assert cli.main(["general", *arguments]) == 0
heavy = {"torch", "transformers", "deepspeed", "datasets", "ray", "sklearn", "numpy", "tokenizers"}
print(*sorted(heavy & set(sys.modules)))
"""
    assert python(program).split() == []


# --- dry run ---------------------------------------------------------------------------------


def test_a_dry_run_prints_a_recipe_of_the_same_settings(capsys):
    settings = [*GENERAL, "--student.layers", "3", "--stage.objective.layer_map", "[1, 2, 4]"]
    recipe, _, _ = printed(capsys, "general", *settings, "--dry-run").strip().rpartition("\n")
    assert from_yaml("general", recipe) == parse("general", settings)[0]


def test_a_dry_run_prints_the_command(capsys):
    arguments = ["general", *GENERAL, "--run", "my run", "--processes", "2", "--dry-run"]
    last = printed(capsys, *arguments).strip().splitlines()[-1]
    assert shlex.split(last) == local.command("general", "my run", 2)


def test_a_dry_run_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed(capsys, "general", *GENERAL, "--run", "run", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_starts_nothing(capsys, monkeypatch):
    monkeypatch.setattr(local.subprocess, "Popen", pytest.fail)
    printed(capsys, "general", *GENERAL, "--dry-run")


# --- the command of a place ------------------------------------------------------------------


def test_one_process_runs_the_rank_itself():
    assert local.command("general", "run", 1) == [sys.executable, "-m", "launcher.rank", "general", "run"]


def test_two_processes_run_under_torchrun():
    assert local.command("general", "run", 2) == [
        sys.executable,
        *["-m", "launcher.torchrun", *local.STANDALONE, "--nproc-per-node", "2"],
        *["-m", "launcher.rank", "general", "run"],
    ]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", AWKWARD)
def test_a_run_folder_of_any_name_is_one_argument(name, processes):
    assert local.command("general", name, processes)[-1] == name


def test_threads_are_shared_out(monkeypatch):
    monkeypatch.setattr(local.os, "sched_getaffinity", lambda _: range(8))
    assert local.environment(2, {"SLURM_CPUS_PER_TASK": "4"})["OMP_NUM_THREADS"] == "2"
    assert local.environment(2, {})["OMP_NUM_THREADS"] == "4"
    assert local.environment(16, {})["OMP_NUM_THREADS"] == "1"


def test_the_users_own_number_of_threads_stays():
    assert local.environment(2, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


def test_processes_are_not_ranks_of_the_group_that_starts_them():
    theirs = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0", "TORCHELASTIC_RUN_ID": "none"}
    assert local.environment(1, theirs).keys().isdisjoint(theirs)


@pytest.mark.parametrize(("visible", "count"), [("", 1), ("0", 1), ("0,1", 2), ("3, 5,7", 3)])
def test_as_many_processes_as_visible_gpus(monkeypatch, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local.default_processes() == count


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_settings_come_back_from_yaml(name):
    assert from_yaml(name, to_yaml(CONFIGS[name])) == CONFIGS[name]


@pytest.mark.parametrize("name", JOBS)
def test_yaml_holds_every_setting(name):
    written = dotted(yaml.safe_load(to_yaml(CONFIGS[name])))
    expected = leaves(type(CONFIGS[name]))
    assert [leaf for leaf in expected if not any(key.startswith(leaf) for key in written)] == []


def dotted(content: dict, prefix: str = "") -> list[str]:
    """The dotted names of nested mappings."""
    names = []
    for key, value in content.items():
        names += dotted(value, f"{prefix}{key}.") if value and isinstance(value, dict) else [prefix + key]
    return names


@settings(max_examples=8)  # each builds two parsers
@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20))
def test_any_text_comes_back_from_yaml(text):
    config = GeneralConfig(TeacherConfig(text), shards=text)
    assert from_yaml("general", to_yaml(config)) == config


@pytest.mark.parametrize(
    "text", ["1", "1.0", "null", "true", "no", "1e3", "+1_0E-5", "", " x ", "a: b", "[1]", "{}", "~"]
)
def test_labels_that_look_like_something_else_stay_text(text):
    config = FinetuneConfig("model", TaskConfig("a.tsv", "b.tsv", labels=[text, "other"]))
    assert from_yaml("finetune", to_yaml(config)) == config


@pytest.mark.parametrize("column", ["#2 String", "a # b", "#"])
def test_a_columns_name_is_no_comment(column):
    for words in ([f"--task.text_pair={column}", "--task.text", column], ["--task.text_pair", column]):
        config, _ = parse("finetune", ["--model=m", "--task.train=a.tsv", "--task.dev=b.tsv", *words])
        assert config.task.text_pair == column
        assert config.task.text == ("sentence" if len(words) == 2 else column)


@pytest.mark.parametrize("how", ["--task.labels={}", "--task.labels {}"])
@pytest.mark.parametrize("labels", ["[0, 1]", "[yes, no]", '["0", "1"]', "[1e3, null]"])
def test_labels_are_texts_as_they_are_typed(how, labels):
    words = [
        "--model=m",
        "--task.train=a.tsv",
        "--task.dev=b.tsv",
        *how.replace(" ", "\n").format(labels).split("\n"),
    ]
    config, _ = parse("finetune", words)
    assert config.task.labels == [word.strip(' "') for word in labels.strip("[]").split(",")]


def test_a_value_of_none_of_several_types_is_told_plainly(capsys):
    assert cli.main(["finetune", "--task.train=a.tsv", "--task.dev=b.tsv", "--task.metric=pearson"]) == 2
    said = capsys.readouterr().err
    assert "task.metric: pearson is none of accuracy, f1," in said
    assert "null; `distillery finetune --help` explains the settings" in said
    assert "Union" not in said


@pytest.mark.parametrize(
    ("job", "typed", "says"),
    [
        (
            "finetune",
            "--task.kind=multilabel",
            "task.kind: multilabel; give one of classification, multi_label",
        ),
        ("finetune", "--engine.zero=5", "engine.zero: 5; give one of 0, 1, 2, 3"),
        ("finetune", "--seed=x", "seed: x; give a whole number"),
        ("finetune", "--seed=", "seed: ; give a whole number"),
        ("finetune", "--stage.epochs=many", "stage.epochs: many; give a number"),
        ("finetune", "--task.header=maybe", "task.header: maybe; give true or false"),
        ("finetune", "--record.trackers=wandb", "record.trackers: wandb; give a list, '[A, B]'"),
        (
            "finetune",
            "--task.labels=a,b",
            "task.labels: a,b is none of list[str], null; give a list, '[A, B]'",
        ),
        ("finetune", "--shape=4", "shape: 4 is none of settings below it, null"),
        (
            "finetune",
            "--stage=3",
            "stage: 3; it is a group: give its settings one by one, --stage.NAME VALUE",
        ),
        ("finetune", "--shape.layers=x", "shape.layers: x; give a whole number"),
        ("finetune", "--shape.kind=lstm", "shape.kind: lstm; give one of transformer, bilstm,"),
        ("evaluate", "--models=runs/a", "models: runs/a; give names and values, '{NAME: VALUE}', a space"),
        ("evaluate", "--models={a:[b]}", "a space after the colon"),
        ("evaluate", "--models={a: b}", "models: b; give a list, '[A, B]'"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_with_what_to_give(capsys, job, typed, says):
    assert cli.main([job, "--task.train=a.tsv", "--task.dev=b.tsv", typed]) == 2
    said = capsys.readouterr().err
    assert says in said
    for words in ("Parser key", "<class", "typing", "Literal", "Expected"):
        assert words not in said


@pytest.mark.parametrize(
    ("job", "typed", "means"),
    [
        ("finetune", "--stage.epoch=3", "--stage.epochs?"),
        ("finetune", "--lr=1e-3", "--stage.optimizer.lr?"),
        ("task", "--epochs=3", "--intermediate.epochs or --prediction.epochs?"),
        ("finetune", "--dry_run", "--dry-run?"),
        ("finetune", "--batch-size=8", "--stage.batch_size?"),
        ("finetune", "--max_lenght=8", "--task.max_length?"),
        ("finetune", "--stage-epochs=8", "--stage.epochs?"),
        ("finetune", "--frobnicate=8", ""),
        ("evaluate", "--processes=2", ""),  # --progress is another thing
    ],
)
def test_a_misspelt_setting_is_told_with_those_like_it(capsys, job, typed, means):
    needed = {"task": ["--teacher.path=m"], "evaluate": ["--models={a: [b]}"]}.get(job, [])
    assert cli.main([job, "--task.train=a.tsv", "--task.dev=b.tsv", *needed, typed]) == 2
    said = capsys.readouterr().err
    assert f"unrecognized arguments: {typed}" in said
    assert (f"; do you mean {means}; `" in said) if means else ("do you mean" not in said)


def test_a_task_without_one_of_its_files_is_told_by_the_settings_name(capsys):
    """Of a job that may do without any."""
    assert cli.main(["export", "--model=m", "--task.train=a.tsv"]) == 2
    said = capsys.readouterr().err
    assert "error: the following arguments are required: task.dev; `distillery export --help`" in said


def test_a_value_that_a_search_can_not_try_is_told_plainly(capsys):
    pytest.importorskip("ray")
    needed = ["--base.teacher.path=m", "--base.task.train=a.tsv", "--base.task.dev=b.tsv"]
    assert cli.main(["tune", *needed, "--space={student.kind: [cnn, lstm]}"]) == 2
    said = capsys.readouterr().err
    assert "space: {'student.kind': 'lstm'}: student.kind: lstm; give one of transformer, bilstm," in said


def test_a_misspelt_setting_of_a_recipe_is_told_with_those_like_it(tmp_path, capsys):
    recipe = tmp_path / "a.yaml"
    for text, says in (
        ("stage: {optimizer: {learning_rate: 1}}", "stage.optimizer.learning_rate: no such setting; `"),
        ("modle: x", "modle: no such setting; do you mean --model?; `"),
    ):
        recipe.write_text(f"{text}\n")
        assert cli.main(["finetune", f"--config={recipe}", "--task.train=a.tsv", "--task.dev=b.tsv"]) == 2
        assert f"error: {recipe}: {says}" in capsys.readouterr().err


def test_resuming_a_folder_without_a_run_says_so(tmp_path, capsys):
    assert cli.main(["finetune", "--run", str(tmp_path / "tpyo"), "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"--resume: {tmp_path}/tpyo holds no run" in said
    assert "required: task.train, task.dev; give --run FOLDER of the run to continue" in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stage:\n\tepochs: 3\n", "at line 2, column 1"),
        ("stage:\n\tepochs: 3\n", "; put spaces in the tab's place"),
        ("", "no settings stand there; give a YAML file of NAME: VALUE lines"),
        ("- a\n", "no settings stand there"),
    ],
)
def test_a_recipe_that_can_not_be_read_says_why(tmp_path, capsys, text, says):
    (tmp_path / "a.yaml").write_text(text)
    assert cli.main(["finetune", f"--config={tmp_path}/a.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/a.yaml" in said
    assert says in said
    assert said.count("\n") == 1


def test_a_name_that_stands_twice_is_refused(tmp_path, capsys):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("stage: {epochs: 5}\nseed: 1\nstage: {batch_size: 16}\n")
    assert cli.main(["finetune", f"--config={recipe}", "--dry-run"]) == 2
    assert "stage stands twice" in capsys.readouterr().err
    assert cli.main(["evaluate", "--models={a: [x], a: [y]}", "--dry-run"]) == 2
    assert "a stands twice" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_refused(capsys, tmp_path):
    run = tmp_path / os.fsdecode(b"r\xff")
    assert cli.main(["demo", f"--run={run}"]) == 2
    assert r"r\udcff' is no UTF-8" in capsys.readouterr().err
    assert not run.exists()


def test_a_recipe_that_is_not_there_is_named(capsys):
    assert cli.main(["nowhere.yaml"]) == 2
    assert "nowhere.yaml does not exist; give a recipe, or one of the jobs" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["nowhere.yaml"], ["general", "--config", "nowhere.yaml"]])
def test_a_run_goes_on_without_the_recipe_that_began_it(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--resume"]) == 2
    said = capsys.readouterr().err
    assert re.match(r"distillery.*: error: .*nowhere\.yaml does not exist; .*--resume.*\n$", said)
    assert "keeps" in said


@pytest.mark.parametrize("name", AWKWARD)
def test_a_name_arrives_as_it_was_typed(name):
    config, launch = parse("general", [f"--teacher.path={name}", f"--shards={name}", f"--run={name}"])
    assert (config.teacher.path, config.shards, launch.run) == (name, name, name)


def test_the_command_line_goes_before_the_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("shards: recipe\nstudent: {layers: 2, heads: 4}\n", encoding="utf-8")
    arguments = ["--config", str(recipe), "--teacher.path", "t", "--student.layers", "3"]
    config, _ = parse("general", arguments)
    assert (config.shards, config.student.layers, config.student.heads) == ("recipe", 3, 4)


def test_a_later_recipe_goes_before_an_earlier_one(tmp_path):
    for name, layers in (("a", 2), ("b", 3)):
        (tmp_path / f"{name}.yaml").write_text(f"student: {{layers: {layers}}}\n", encoding="utf-8")
    recipes = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    assert parse("general", [*recipes, *GENERAL])[0].student.layers == 3


def test_where_a_job_runs_is_no_part_of_its_recipe():
    arguments = [*GENERAL, "--run", "here", "--processes", "2", "--resume"]
    config, launch = parse("general", arguments)
    assert launch == Launch(run="here", processes=2, resume=True)
    assert to_yaml(config) == to_yaml(parse("general", GENERAL)[0])


def test_a_run_folder_is_named_after_its_job_by_default():
    assert parse("general", GENERAL)[1].run == "runs/general"


@pytest.mark.parametrize(
    ("typed", "value"), [(["--json"], True), (["--json", "false"], False), ([], False)]
)
def test_a_bare_flag_is_true(typed, value):
    assert parse("doctor", typed)[0] == DoctorConfig(json=value)


def test_bare_words_are_the_reports_runs():
    for line in (
        "'a b' c --out x.html",
        "--out x.html 'a b' c",
        "'a b' --out=x.html c",
        "--out=x.html 'a b' c",
    ):
        assert parse("report", shlex.split(line))[0] == ReportConfig(["a b", "c"], "x.html")


@pytest.mark.parametrize(
    ("line", "follow"), [("--follow r", True), ("--follow false r", False), ("r --follow", True)]
)
def test_a_flag_takes_no_bare_word(line, follow):
    config, _ = parse("logs", line.split())
    assert (config.runs, config.follow) == (["r"], follow)


def test_a_word_that_no_setting_takes_is_refused(capsys):
    assert cli.main(["doctor", "well"]) == 2
    assert cli.main(["completion", "bash", "zsh"]) == 2
    assert "unrecognized arguments: zsh" in capsys.readouterr().err.replace("Unrecognized", "unrecognized")


def test_ctrl_c_before_a_run_is_one_line(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "load", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "distillery doctor: interrupted\n"


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_a_job(recipe):
    job = job_of(str(recipe))
    kinds = get_type_hints(type(CONFIGS[job]))
    task = "base.task" if "base" in kinds else "task"
    data = [f"--{task}.train=x", f"--{task}.dev=x"] if kinds.keys() & {"base", "task"} else []
    assert parse(job, ["--config", str(recipe), *data])


# --- run folders -----------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch, tiny_model, tiny_shards, tmp_path):
    """Run `general` on good input, the start of its processes replaced; returns argv and run folder."""
    seen: list[tuple[str, str, int]] = []

    def note(job: str, launch: Launch, processes: int) -> int:
        seen.append((job, launch.run, processes))
        return 0

    monkeypatch.setattr(local, "start", note)
    monkeypatch.setattr(sys, "argv", ["distillery", "general", "--teacher.path", "it's"])
    shape = ["--student.layers", "2", "--student.hidden_size", "24", "--student.heads", "4"]
    settings = ["--teacher.path", tiny_model, "--shards", tiny_shards, *shape, "--stage.batch_size", "16"]
    run = tmp_path / "a run"

    def start(*more: str, settings: list[str] = settings) -> list[tuple[str, str, int]]:
        assert cli.main(["general", *settings, "--run", str(run), "--processes", "2", *more]) == 0
        return seen

    return start, settings, run


def test_a_run_is_started_from_its_folder(started):
    start, settings, run = started
    assert start() == [("general", str(run), 2)]
    stored = (run / "config.yaml").read_text(encoding="utf-8")
    assert from_yaml("general", stored) == parse("general", settings)[0]


def test_a_run_folder_keeps_what_was_typed(started):
    start, _, run = started
    start()
    typed = (run / "command.txt").read_text(encoding="utf-8")
    assert shlex.split(typed) == ["distillery", "general", "--teacher.path", "it's"]


def test_resuming_needs_the_folder_alone(started):
    start, _, run = started
    start()
    before = tree(run)
    assert start("--resume", settings=[]) == [("general", str(run), 2)] * 2
    assert {name: content for name, content in tree(run).items() if name != "lock"} == before


def test_resuming_with_the_same_settings_is_allowed(started):
    start, _, _ = started
    start()
    assert len(start("--resume")) == 2


def test_resuming_what_has_not_begun_begins_it(started):
    start, _, run = started
    assert len(start("--resume")) == 1
    assert (run / "config.yaml").is_file()


def test_resuming_in_the_default_folder_needs_no_folder(started, monkeypatch, tmp_path):
    _, settings, _ = started
    monkeypatch.chdir(tmp_path)
    assert cli.main(["general", *settings]) == 0
    assert cli.main(["general", "--resume"]) == 0


def test_a_finished_run_is_not_run_again(started, capsys):
    start, _, run = started
    start()
    (run / "summary.json").write_text("{}", encoding="utf-8")
    assert len(start("--resume")) == 1
    assert "is finished" in capsys.readouterr().out


def test_a_failed_run_says_how_to_continue(started, monkeypatch, capsys):
    _, settings, run = started
    monkeypatch.setattr(local, "start", lambda *_: 7)
    assert cli.main(["general", *settings, "--run", str(run)]) == 7
    err = capsys.readouterr().err
    assert "exit code 7" in err
    assert "--resume continues" in err
    cli._finish(7, "evaluate", Launch(run="r"))
    assert "evaluate keeps nothing on the way: the same command with --resume" in capsys.readouterr().err
