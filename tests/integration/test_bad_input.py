"""What a user gets wrong is refused at the door: exit code 2, one line that helps, nothing written."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipeline.packing import Row
from distill.predict import form_of
from distill.settings import PredictConfig
from launcher import cli, jobs, local
from launcher.settings import parse
from tests.helpers import change_manifest, tiny_tokens, tree, write_shards
from tests.processes import DISTILLERY, typed

Flags = dict[str, object]


def argv(flags: Flags) -> list[str]:
    """Flags as a user types them; None leaves one out, True gives no value."""
    typed: list[str] = []
    for name, value in flags.items():
        if value is not None:
            typed += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return typed


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run folder that does not exist yet."""
    return tmp_path / "run"


@pytest.fixture
def refused(capsys, monkeypatch, run_folder) -> Callable[..., str]:
    """Run a job, see that it is refused and writes nothing; returns its one line."""

    def start(*_: object) -> int:
        raise AssertionError("the job was started")

    monkeypatch.setattr(local, "start", start)

    def refuse(job: str, flags: Flags, *says: str) -> str:
        before = tree(run_folder.parent)
        capsys.readouterr()  # what the making of shards said, if this test is the first to ask for them
        code = cli.main([job, *argv({"run": run_folder, **flags})])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert err.startswith(f"distillery {job}: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        for words in says:
            assert words in err
        assert tree(run_folder.parent) == before
        assert run_folder.exists() == any(name.startswith("run/") for name in before)
        return err

    return refuse


@pytest.fixture(scope="session")
def classifier(tiny_model, tiny_task, tmp_path_factory) -> Path:
    """A model folder that says it was fine-tuned on the tiny task; its weights are never read."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    shutil.copytree(tiny_model, folder)
    change_config(
        folder,
        architectures=["BertForSequenceClassification"],
        id2label={"0": "negative", "1": "positive"},
    )
    return folder


def change_config(folder: Path, **entries: object) -> Path:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | entries
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def copy(folder: str | Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


SHAPE = {"layers": 2, "hidden_size": 24, "heads": 4, "intermediate_size": 48}


def student(prefix: str = "student", **changes: object) -> Flags:
    return {f"{prefix}.{name}": value for name, value in {**SHAPE, **changes}.items()}


@pytest.fixture
def pregenerate(tiny_corpus, tiny_tokenizer) -> Flags:
    return {"corpus.files": json.dumps([tiny_corpus]), "tokenizer": tiny_tokenizer}


@pytest.fixture
def general(tiny_model, tiny_shards) -> Flags:
    batch = {"stage.batch_size": 16, "processes": 1}
    return {"teacher.path": tiny_model, "shards": tiny_shards, **student(), **batch}


@pytest.fixture
def pretrain(tiny_model, tiny_shards) -> Flags:
    return {"model": tiny_model, "shards": tiny_shards, "stage.batch_size": 16, "processes": 1}


@pytest.fixture
def task_files(tiny_task) -> Flags:
    return {"task.train": tiny_task / "train.tsv", "task.dev": tiny_task / "dev.tsv"}


@pytest.fixture
def finetune(tiny_model, task_files) -> Flags:
    return {"model": tiny_model, **task_files, "processes": 1}


@pytest.fixture
def task(classifier, task_files) -> Flags:
    return {"teacher.path": classifier, **task_files, **student(), "processes": 1}


@pytest.fixture
def evaluate(classifier, task_files) -> Flags:
    return {"models": json.dumps({"teacher": [str(classifier)]}), **task_files}


@pytest.fixture
def label(task) -> Flags:
    return {name: value for name, value in task.items() if not name.startswith("student")}


@pytest.fixture
def export(classifier) -> Flags:
    return {"model": classifier}


@pytest.fixture
def predict(classifier) -> Flags:
    return {"model": classifier}


@pytest.fixture
def augment(tiny_model, tiny_task) -> Flags:
    return {"file": tiny_task / "train.tsv", "model": tiny_model, "method": "noise"}


@pytest.mark.parametrize(
    "job", ["pregenerate", "general", "pretrain", "finetune", "task", "label", "augment", "evaluate"]
)
def test_what_the_other_tests_spoil_is_good(request, job):
    config, launch = parse(job, argv(request.getfixturevalue(job)))
    jobs.check(job, config, launch.processes or 1)


@pytest.mark.parametrize(
    ("job", "flags"),
    [
        ("general", {"stage.objective.normalise": "all", "pad_to_longest": False}),
        ("general", {"stage.objective.custom": "{math.sqrt: 1}", "stage.objective.custom_layers": True}),
        ("pretrain", {"model": "BLANK"}),
        ("finetune", {"model": "BLANK", "shape.layers": 2, "shape.hidden_size": 24, "shape.heads": 4}),
        ("finetune", {"model": None, "shape.kind": "cnn"}),
        ("finetune", {"shape.path": "OTHER"}),
        ("finetune", {"stage.objective.labels": 0, "stage.objective.custom": "{math.sqrt: 1}"}),
        ("task", {"student.path": "OTHER", "intermediate.epochs": 0}),
        ("task", {"teacher.dropout": True}),
        ("augment", {"teacher": "CLASSIFIER", "confidence": 1}),
        ("evaluate", {"reference": "teacher"}),
        ("export", {"opset": 18}),
        ("export", {"opset": 20}),
        ("predict", {"input": "-", "output": "LINES.json"}),
        ("predict", {"input": "LINES.json", "format": "lines", "max_length": 4}),
        ("predict", {"input": "LINES.json", "format": "jsonl", "output": "OTHER.json", "max_length": 128}),
    ],
)
def test_what_looks_wrong_and_is_not(request, tiny_model, classifier, tmp_path, job, flags):
    """A folder without weights where random ones are wanted, other words where no layers are compared."""
    lose_weights(blank := copy(tiny_model, tmp_path / "blank"))
    config = json.loads((blank / "config.json").read_text(encoding="utf-8"))
    del config["architectures"]
    (blank / "config.json").write_text(json.dumps(config), encoding="utf-8")
    other = other_vocabulary(tiny_model, tmp_path / "other")
    places = {"BLANK": blank, "OTHER": other, "CLASSIFIER": classifier}
    for name in ("LINES.json", "OTHER.json"):
        places[name] = tmp_path / name
        places[name].write_text("{}")
    flags = {name: places.get(str(value), value) for name, value in flags.items()}
    config, launch = parse(job, argv({**request.getfixturevalue(job), **flags}))
    jobs.check(job, config, launch.processes or 1)


# --- the command -----------------------------------------------------------------------------


def test_a_job_that_does_not_exist(capsys):
    assert cli.main(["distil"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("distillery: error: distil is no job; the jobs are demo, doctor")
    assert err.count("\n") == 1


def test_an_unknown_setting_on_the_command_line(refused, general):
    refused("general", {**general, "student.layer": 3}, "--student.layer 3", "general --help")


def test_an_unknown_setting_in_a_recipe(refused, general, tmp_path):
    (tmp_path / "recipe.yaml").write_text("student:\n  layer: 3\n", encoding="utf-8")
    flags = {"config": tmp_path / "recipe.yaml", **general}
    says = "recipe.yaml: student.layer: no such setting; do you mean --student.layers?"
    refused("general", flags, says, "general --help")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student.layers", "four"),
        ("student.layers", "2.5"),
        ("stage.optimizer.lr", "fast"),
        ("stage.objective.normalise", "some"),
        ("engine.zero", "4"),
        ("pad_to_longest", "perhaps"),
        ("stage.objective.layer_map", "[1, x]"),
    ],
)
def test_a_setting_of_a_wrong_type(refused, general, name, value):
    refused("general", {**general, name: value}, name, "general --help")


def test_a_setting_of_a_wrong_type_in_a_recipe(refused, general, tmp_path):
    (tmp_path / "recipe.yaml").write_text("stage:\n  epochs: many\n", encoding="utf-8")
    flags = {"config": tmp_path / "recipe.yaml", **general}
    refused("general", flags, "recipe.yaml", "stage.epochs", "many", "give a YAML file")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("stage:\n  epochs:\n", "stage.epochs: nothing stands there; give a value, or leave the line out"),
        ("stage:\n  objective:\n", "stage.objective: nothing stands there; give settings below it"),
        ("seed: ~\n", "seed: nothing stands there; give a value"),
        ("record: {trackers: }\n", "record.trackers: nothing stands there; give a value"),
        ("task: {labels: [0, 1]}\n", "task.labels: [0, 1] is none of list[str], null; put words such as 0"),
        ("task: {text: 1}\n", "task.text: 1 is no text to YAML; put it in quotes"),
    ],
)
def test_a_recipe_that_says_nothing_or_no_text(refused, finetune, tmp_path, content, says):
    (tmp_path / "recipe.yaml").write_text(content, encoding="utf-8")
    refused("finetune", {"config": tmp_path / "recipe.yaml", **finetune}, "recipe.yaml: ", says)


def test_null_in_a_recipe_where_it_may_stand(finetune, tmp_path):
    (tmp_path / "recipe.yaml").write_text("stage: {evaluate_every: }\nshape: ~\n", encoding="utf-8")
    config, _ = parse("finetune", argv({"config": tmp_path / "recipe.yaml", **finetune}))
    assert (config.stage.evaluate_every, config.shape) == (None, None)


@pytest.mark.parametrize("name", ["..", ".", "", "a/b"])
def test_a_row_whose_name_is_no_files(refused, evaluate, name):
    models = json.dumps({name: next(iter(json.loads(evaluate["models"]).values()))})
    refused("evaluate", {**evaluate, "models": models}, f"models.{name}: give a plain name")


def test_a_row_whose_name_is_a_number(evaluate):
    folders = json.dumps(next(iter(json.loads(evaluate["models"]).values())))
    config, _ = parse("evaluate", argv({**evaluate, "models": f"{{4: {folders}}}"}))
    jobs.check("evaluate", config, 1)
    assert [*config.models] == ["4"]


def test_a_row_whose_name_yaml_takes_for_a_truth(refused, evaluate):
    flags = {**evaluate, "models": "{no: [x]}"}
    refused("evaluate", flags, "models: False is no text to YAML; put the name in quotes")


def test_a_setting_that_must_be_given(refused, general):
    refused("general", {**general, "shards": None}, "required: shards", "general --help")


def test_a_recipe_that_does_not_exist(refused, general, tmp_path):
    flags = {"config": tmp_path / "none.yaml", **general}
    refused("general", flags, "none.yaml", "does not exist", "give a recipe", "on --resume none")


def test_a_folder_in_place_of_a_recipe(refused, general, tmp_path):
    (tmp_path / "recipe.yaml").mkdir()
    flags = {"config": tmp_path / "recipe.yaml", **general}
    refused("general", flags, "recipe.yaml", "not a file", "give a YAML file")


@pytest.mark.parametrize(
    "content",
    [b"stage: [1,\n", b"stage: {epochs: 1\n", b"a: b: c\n", b"just words\n", b"- 1\n", b"\xff\xfe\x00\x01"],
    ids=["list", "mapping", "colons", "words", "sequence", "garbage"],
)
def test_a_recipe_that_is_no_yaml_of_settings(refused, general, tmp_path, content):
    (tmp_path / "recipe.yaml").write_bytes(content)
    flags = {"config": tmp_path / "recipe.yaml", **general}
    refused("general", flags, "recipe.yaml", "give a YAML file")


def test_a_negative_seed(refused, general):
    refused("general", {**general, "seed": -1}, "seed: -1; give 0 or more")


@pytest.mark.parametrize("processes", [-1, 3, 32])
def test_a_batch_that_the_processes_can_not_share(refused, general, processes):
    refused("general", {**general, "processes": processes}, "give ", f"{processes}")


def test_a_batch_whose_streams_the_processes_can_not_share(refused, general):
    flags = {**general, "stage.batch_size": 3072, "processes": 3}
    refused("general", flags, "batch_size: 3072", "3 processes", "multiple of 3 up to 1024")


def test_padding_that_counts_and_is_cut(refused, general):
    flags = {"stage.objective.normalise": "all"}
    refused("general", {**general, **flags}, "stage.objective.normalise", "give --pad_to_longest false")


def test_micro_batches_that_do_not_fill_a_share(refused, general):
    refused("general", {**general, "engine.micro_batch_size": 5}, "engine.micro_batch_size: 5", "16")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("stage.evaluate_every", 10, "stage.evaluate_every: nothing here is measured on dev; leave it out"),
        ("masking.probability", 0.2, "masking: this objective masks nothing; give stage.objective.logits"),
    ],
)
def test_a_setting_that_a_corpus_has_no_use_for(refused, general, flag, value, says):
    refused("general", {**general, flag: value}, says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"teacher.outputs": "x"}, "general distillation runs one teacher; leave ensemble and outputs out"),
        ({"teacher.ensemble": '{"x": 1}'}, "general distillation runs one teacher"),
        ({"student.kind": "cnn"}, "general distillation compares layers, which models of whole words"),
        ({"stage.objective.custom": "{math.sqrt: 1}"}, "stage.objective.custom: there are no logits here"),
    ],
)
def test_what_a_corpus_can_not_teach(refused, general, flags, says):
    refused("general", {**general, **flags}, says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (student("shape", cls="math.sqrt"), "shape: give layers, hidden_size, heads and intermediate_size"),
        (student("shape", path="{model}"), "shape: give layers, hidden_size, heads and intermediate_size"),
        (student("shape", kind="cnn"), "shape: give layers, hidden_size, heads and intermediate_size"),
        (student("shape", dropout=0.2), "shape.dropout: pretrain takes it from --dropout; leave it out"),
        (student("shape", heads=5), "shape.heads: 5"),
        ({"dropout": 1}, "dropout: 1.0; give 0 or more, below 1"),
        ({"stage.objective.hidden": 1}, "stage.objective.hidden: 1.0; this job takes mlm"),
        ({"stage.evaluate_every": 1}, "stage.evaluate_every: nothing here is measured on dev"),
        ({"record.keep": 0}, "record.keep: 0; give 1 or more"),
        ({"masking.unit": "chinese_word"}, "masking: give unit token or word"),
        ({"masking.probability": 0}, "a probability between 0 and 1"),
        ({"masking.probability": 1}, "a probability between 0 and 1"),
        ({"masking.most": 0}, "and most 1 or more"),
    ],
)
def test_a_pretraining_that_can_not_be(refused, pretrain, tiny_model, flags, says):
    flags = {name: str(value).format(model=tiny_model) for name, value in flags.items()}
    refused("pretrain", {**pretrain, **flags}, says)


def test_a_pretraining_of_words_or_of_other_words_than_the_rows(refused, pretrain, classifier, tmp_path):
    words = change_config(copy(classifier, tmp_path / "words"), model_type="distillery_words")
    refused("pretrain", {**pretrain, "model": words}, "is of whole words; give an encoder such as BERT")
    other = other_vocabulary(str(classifier), tmp_path / "other")
    refused("pretrain", {**pretrain, "model": other}, "was made with another vocabulary than that of")


def test_weights_that_pretraining_would_not_find(refused, pretrain, tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path / "model")
    lose_weights(folder)
    says = "holds no weights in safetensors; give "
    refused("pretrain", {**pretrain, "model": folder}, says, "shape to start from random ones")
    flags = {**pretrain, "model": folder, **student("shape")}
    refused("pretrain", {**flags, "shape.start": "teacher"}, says, "random")
    config, _ = parse("pretrain", argv(flags))
    jobs.check("pretrain", config, 1)


@pytest.mark.parametrize("packed", [{"probability": 0.15}, {"at_least_one": True}])
@pytest.mark.parametrize("job", ["general", "pretrain"])
def test_rows_that_were_masked_are_not_masked_anew(
    request, refused, tiny_model, tiny_shards, tmp_path, job, packed
):
    shards = copy(tiny_shards, tmp_path / "shards")
    change_manifest(shards, packing={"masking": packed})
    teacher = change_config(copy(tiny_model, tmp_path / "bert"), architectures=["BertForMaskedLM"])
    flags = {**request.getfixturevalue(job), "shards": shards}
    flags |= {"teacher.path": teacher, "stage.objective.logits": 1} if job == "general" else {}
    refused(job, flags, "was masked when it was made", "run pregenerate without packing.masking")


def test_a_teacher_of_words_compares_no_layers_over_a_corpus(refused, general, classifier, tmp_path):
    words = change_config(copy(classifier, tmp_path / "words"), model_type="distillery_words")
    refused("general", {**general, "teacher.path": words}, "general distillation compares layers")


def test_dev_is_not_measured_while_layers_are_compared(refused, task):
    flags = {**task, "intermediate.evaluate_every": 10}
    refused("task", flags, "intermediate.evaluate_every: nothing here is measured on dev")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"student.kind": "cnn"}, "student.layers, .*: not used, for student.kind is cnn"),
        ({"student.words.size": 8}, "student.words: not used, for student.kind is transformer"),
        ({}, ""),
    ],
)
def test_settings_of_a_student_that_do_nothing(task, capsys, flags, says):
    config, _ = parse("task", argv({**task, **flags}))
    jobs.check("task", config, 1)
    warned = [line for line in capsys.readouterr().err.splitlines() if "not used" in line]
    assert len(warned) == bool(says)
    assert re.search(says, "".join(warned))


def test_a_number_of_steps_left_out_below_none(refused, general):
    refused("general", {**general, "engine.skip_non_finite": -1}, "engine.skip_non_finite: -1", "0 or more")


@pytest.mark.parametrize("name", ["log_every", "save_every", "keep"])
def test_a_record_that_can_not_be_kept(refused, general, name):
    refused("general", {**general, f"record.{name}": 0}, f"record.{name}: 0; give 1 or more")


# --- run folders -----------------------------------------------------------------------------


@pytest.fixture
def other_run(run_folder, general, capsys) -> Path:
    """A run folder as a run that has begun leaves it."""
    from launcher.runs import begin

    config, _ = parse("general", argv({**general, "seed": 7}))
    begin(run_folder, "general", config)
    return run_folder


@pytest.mark.usefixtures("other_run")
def test_a_run_folder_that_holds_another_run(refused, general):
    refused("general", general, "holds another run; give a new folder, or --resume")


@pytest.mark.usefixtures("other_run")
def test_resuming_with_other_settings(refused, general):
    flags = {**general, "seed": 8, "stage.optimizer.lr": 0.1, "engine.zero": 1, "resume": True}
    refused("general", flags, "config.yaml: stage.optimizer.lr, seed; leave them out, or give a new --run")


def test_resuming_with_the_work_shared_out_otherwise(other_run, general):
    """What is computed is the same: such settings may change, and the folder keeps them."""
    from launcher import runs

    stored = other_run / "config.yaml"
    config, _ = parse(
        "general", ["--config", str(stored), "--engine.zero=2", "--engine.micro_batch_size=4"]
    )
    runs.refuse_other_run(other_run, config, resume=True)
    runs.go_on(other_run, config)
    again, _ = parse("general", ["--config", str(stored)])
    assert (again.engine.zero, again.engine.micro_batch_size, again.seed) == (2, 4, 7)
    again.engine.precision = "bf16"
    with pytest.raises(ValueError, match="settings differ"):
        runs.refuse_other_run(other_run, again, resume=True)


def test_resuming_a_run_of_a_release_that_had_fewer_settings(other_run, general):
    from launcher import runs

    stored = other_run / "config.yaml"
    text = stored.read_text(encoding="utf-8")
    assert "pad_to_longest: true\n" in text
    stored.write_text(text.replace("pad_to_longest: true\n", ""), encoding="utf-8")
    config, _ = parse("general", argv({**general, "seed": 7}))
    runs.refuse_other_run(other_run, config, resume=True)
    config.pad_to_longest = False
    with pytest.raises(ValueError, match=r"settings differ from \S+: pad_to_longest; leave them out"):
        runs.refuse_other_run(other_run, config, resume=True)


@pytest.mark.usefixtures("other_run")
def test_resuming_another_job(refused, finetune):
    refused("finetune", {**finetune, "resume": True}, "holds a run of the job general; give another --run")


def test_a_run_folder_that_holds_something_else(refused, general, run_folder):
    run_folder.mkdir()
    (run_folder / "thesis.tex").write_text("mine", encoding="utf-8")
    for resume in (True, None):
        refused("general", {**general, "resume": resume}, "holds no run; give another folder")


def test_of_two_that_begin_at_once_one_is_refused(run_folder, general):
    """Neither had seen the other when it looked whether the folder is free."""
    from launcher.runs import claim

    config, _ = parse("general", argv(general))
    claim(run_folder, "general", config)
    kept = tree(run_folder)
    with pytest.raises(ValueError, match="another run has begun in"):
        claim(run_folder, "general", replace(config, seed=7))
    (run_folder / "beginning").mkdir()
    with pytest.raises(ValueError, match="another run is beginning there; give a new folder"):
        claim(run_folder, "general", replace(config, seed=7))
    (run_folder / "beginning").rmdir()
    assert tree(run_folder) == kept


def test_a_run_folder_that_is_a_file(refused, general, run_folder):
    file = run_folder.parent / "file"
    file.write_text("mine", encoding="utf-8")
    refused("general", {**general, "run": file}, "file is a file; give a folder")


@pytest.mark.parametrize("job", ["pregenerate", "general"])
def test_a_run_folder_behind_a_url(request, refused, job):
    """As a path it would be a folder called s3: where the command is typed."""
    flags = request.getfixturevalue(job)
    refused(job, {**flags, "run": "s3://bucket/run"}, "--run: s3://bucket/run; give a folder")


def test_a_run_folder_below_a_file(refused, general, run_folder):
    file = run_folder.parent / "file"
    file.write_text("mine", encoding="utf-8")
    refused("general", {**general, "run": file / "run"}, str(file))


def test_resuming_without_a_run(refused, run_folder):
    refused("general", {"resume": True}, "teacher")


# --- pregenerate -----------------------------------------------------------------------------


def corpus(*paths: Path) -> Flags:
    return {"corpus.files": json.dumps(list(map(str, paths)))}


def test_a_missing_corpus(refused, pregenerate, tmp_path):
    flags = {**pregenerate, **corpus(tmp_path / "none.txt")}
    refused("pregenerate", flags, "none.txt does not exist; give an existing file")


def test_a_pattern_that_matches_nothing(refused, pregenerate, tmp_path):
    flags = {**pregenerate, **corpus(tmp_path / "none*.txt")}
    refused("pregenerate", flags, "nothing matches", "none*.txt; give an existing file")


@pytest.mark.parametrize("text", ["", "\n \n\n"], ids=["no bytes", "blank lines"])
def test_an_empty_corpus(refused, pregenerate, tmp_path, text):
    (tmp_path / "empty.txt").write_text(text, encoding="utf-8")
    flags = {**pregenerate, **corpus(tmp_path / "empty.txt")}
    refused("pregenerate", flags, "empty.txt holds no text; give a file with documents")


def test_a_corpus_of_one_document(refused, pregenerate, tmp_path):
    (tmp_path / "one.txt").write_text("one\ntwo\n", encoding="utf-8")
    flags = {**pregenerate, **corpus(tmp_path / "one.txt")}
    refused("pregenerate", flags, "one.txt holds 1 document", "put a blank line between documents")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_corpus_of_garbage(refused, pregenerate, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\xff\xfe" * 100)
    refused(
        "pregenerate",
        {**pregenerate, **corpus(tmp_path / name)},
        f"{name} is not UTF-8 text at byte 0; convert",
    )


def test_a_folder_in_place_of_a_corpus(refused, pregenerate, tmp_path):
    (tmp_path / "a.txt").mkdir()
    refused("pregenerate", {**pregenerate, **corpus(tmp_path / "a.txt")}, "a.txt is no folder saved by")


def test_a_corpus_in_an_unknown_format(refused, pregenerate, tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    refused(
        "pregenerate",
        {**pregenerate, **corpus(tmp_path / "a.pdf")},
        "a.pdf is of no known kind; give .txt or .jsonl",
    )


def test_a_jsonl_corpus_without_the_field(refused, pregenerate, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n', encoding="utf-8")
    flags = {**pregenerate, **corpus(tmp_path / "a.jsonl")}
    refused("pregenerate", flags, "a.jsonl line 1", '"text"', "set --corpus.text_field")


def test_a_tokenizer_that_does_not_exist(refused, pregenerate, tmp_path):
    flags = {**pregenerate, "tokenizer": tmp_path / "none"}
    refused("pregenerate", flags, "none: no such folder; give a model folder")


def test_a_folder_without_a_tokenizer(refused, pregenerate, tmp_path):
    (tmp_path / "model").mkdir()
    flags = {**pregenerate, "tokenizer": tmp_path / "model"}
    refused("pregenerate", flags, "model: no tokenizer.json", "give a model folder")


def test_a_file_in_place_of_a_tokenizer(refused, pregenerate, tiny_tokenizer):
    flags = {**pregenerate, "tokenizer": f"{tiny_tokenizer}/tokenizer.json"}
    refused("pregenerate", flags, "tokenizer.json: no such folder; give a model folder")


def test_a_damaged_tokenizer(refused, pregenerate, tiny_tokenizer, tmp_path):
    folder = copy(tiny_tokenizer, tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": ', encoding="utf-8")
    refused("pregenerate", {**pregenerate, "tokenizer": folder}, "tokenizer.json can't be read")


# --- general ---------------------------------------------------------------------------------


def test_shards_of_another_vocabulary(refused, general, tmp_path):
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", [[Row([2, 5, 3], 2)]], size=201)
    flags = {**general, "shards": tmp_path / "shards"}
    refused("general", flags, "made with another vocabulary", "run pregenerate with --tokenizer")


def other_vocabulary(model: str, folder: Path) -> Path:
    """The same model with two words exchanged."""
    copy(model, folder)
    (folder / "tokenizer.json").unlink()
    tokens = tiny_tokens()
    tokens[10], tokens[11] = tokens[11], tokens[10]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return folder


def test_a_student_of_another_vocabulary(refused, general, tiny_model, tmp_path):
    flags = {**general, "student.path": other_vocabulary(tiny_model, tmp_path / "student")}
    refused("general", flags, "has another vocabulary than the teacher's", "distil a student of this")


def test_shards_that_do_not_exist(refused, general, tmp_path):
    flags = {**general, "shards": tmp_path / "none"}
    refused("general", flags, "has no manifest.json; give the shards/ folder")


def test_shards_that_were_not_finished(refused, general, tiny_shards, tmp_path):
    folder = copy(tiny_shards, tmp_path / "shards")
    (folder / "manifest.json").unlink()
    refused("general", {**general, "shards": folder}, "has no manifest.json; give the shards/ folder")


def test_a_shard_that_is_missing(refused, general, tiny_shards, tmp_path):
    folder = copy(tiny_shards, tmp_path / "shards")
    shard = sorted(folder.glob("*.tar"))[2]
    shard.unlink()
    says = (f"{shard.name} is missing", "run pregenerate again", "set --stream.damaged skip")
    refused("general", {**general, "shards": folder}, *says)


def test_rows_longer_than_the_models_take(refused, general, tiny_model, tmp_path):
    teacher = change_config(copy(tiny_model, tmp_path / "teacher"), max_position_embeddings=16)
    flags = {**general, "teacher.path": teacher}
    refused("general", flags, "rows of 32 tokens", "run pregenerate with --packing.max_length 16")


def test_rows_longer_than_a_trained_student_takes(refused, general, tiny_model, tmp_path):
    short = change_config(copy(tiny_model, tmp_path / "short"), max_position_embeddings=16)
    says = "rows of 32 tokens and the models take 16"
    refused("general", {**general, "student.path": short}, says)


def test_fewer_rows_than_a_batch(refused, general):
    refused(
        "general",
        {**general, "stage.batch_size": 1600},
        "batch_size: a step takes 1600 rows",
        "which has 1",
    )


def test_a_student_of_more_layers_than_the_teacher(refused, general):
    flags = {**general, **student(layers=5)}
    refused("general", flags, "student.layers: 5 is more than the teacher's 4; give as many or fewer")


def test_heads_that_do_not_divide_the_width(refused, general):
    flags = {**general, **student(heads=5)}
    refused("general", flags, "student.heads: 5", "the width 24; change student.heads or")


def test_other_heads_than_the_teachers_with_an_attention_term(refused, general):
    flags = {**general, **student(heads=3)}
    advice = "attention 0 --stage.objective.relation 1 --stage.objective.relation_heads 8"
    refused(
        "general",
        flags,
        "student.heads: 3, but the teacher has 4",
        f"give 4, or --stage.objective.{advice}",
    )


@pytest.mark.parametrize(("job", "stage"), [("general", "stage"), ("task", "intermediate")])
def test_what_is_advised_for_other_heads_works(request, refused, job, stage):
    flags = {**request.getfixturevalue(job), **student(heads=3)}
    advice = refused(job, flags).rpartition(" or ")[2].split()
    assert len(advice) == 6
    assert all(word.startswith(f"--{stage}.objective.") for word in advice[::2])
    config, _ = parse(job, [*argv(flags), *advice])
    jobs.check(job, config, 1)


def test_other_heads_are_taken_without_an_attention_term(general):
    config, _ = parse("general", argv({**general, **student(heads=3), "stage.objective.attention": 0}))
    jobs.check("general", config, 1)


@pytest.mark.parametrize("name", ["layers", "hidden_size", "heads", "intermediate_size"])
def test_a_student_without_a_size(refused, general, name):
    refused("general", {**general, f"student.{name}": 0}, f"student.{name}: 0; give 1 or more")


@pytest.mark.parametrize("layers", ["[1]", "[1, 5]", "[0, 2]"])
def test_a_layer_map_that_does_not_fit(refused, general, layers):
    refused("general", {**general, "stage.objective.layer_map": layers}, "objective.layer_map: ")


def test_an_objective_of_nothing(refused, general):
    flags = {**general, "stage.objective.attention": 0, "stage.objective.hidden": 0}
    refused(
        "general",
        flags,
        "every term is 0; give attention or relation or hidden or logits or mlm or",
    )


def test_a_model_folder_without_a_config(refused, general, tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path / "model")
    (folder / "config.json").unlink()
    flags = {**general, "teacher.path": folder}
    refused("general", flags, "teacher: ", "is no model folder (no config.json there); give one")


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_model_folder_with_a_damaged_config(refused, general, tiny_model, tmp_path, text):
    folder = copy(tiny_model, tmp_path / "model")
    (folder / "config.json").write_text(text, encoding="utf-8")
    flags = {**general, "teacher.path": folder}
    refused("general", flags, "config.json is damaged; save the model again")


def lose_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def lose_a_part(folder: Path) -> None:
    parts = {"embeddings": "model.safetensors", "classifier": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def cut_pickled_weights(folder: Path) -> None:
    lose_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and no table")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            cut_pickled_weights,
            "pytorch_model.bin is no whole file of torch's; copy or save the model again",
        ),
        (lose_weights, "lacks its weights (no model.safetensors there); copy or save the model again"),
        (lose_a_part, "lacks its weights (no model-00002-of-00002.safetensors there)"),
        (cut_weights, "model.safetensors can't be read ("),
    ],
)
@pytest.mark.parametrize("job", ["general", "finetune", "task", "evaluate"])
def test_a_model_folder_that_was_not_copied_whole(request, refused, job, spoil, says, classifier, tmp_path):
    spoil(folder := copy(classifier, tmp_path / "model"))
    setting = {"finetune": "model", "evaluate": "models"}.get(job, "teacher.path")
    value = json.dumps({"one": [str(folder)]}) if job == "evaluate" else folder
    refused(job, {**request.getfixturevalue(job), setting: value}, "/model", says)


def test_a_model_without_a_tokenizer(refused, finetune, tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    refused("finetune", {**finetune, "model": folder}, "model: no tokenizer.json or vocabulary file there")


def test_a_model_that_is_no_encoder_we_know(refused, general, tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "distilbert", "n_layers": 6}', encoding="utf-8")
    flags = {**general, "teacher.path": folder}
    refused("general", flags, "distilbert", "num_hidden_layers", "give ", "--student.cls (task)")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"shape.layers": 0}, "error: shape.layers: 0; give 1 or more"),
        ({"shape.heads": 5}, "change shape.heads or shape.hidden_size"),
        ({"shape.cls": "words"}, "error: shape.cls: words; give MODULE.NAME"),
        ({"shape.layers": 99, "shape.start": "teacher"}, "error: shape.layers: 99 is more than the 4 of"),
    ],
)
def test_a_shape_is_named_as_it_was_typed(refused, finetune, flags, says):
    """Its checks are those of a student."""
    said = refused("finetune", {**finetune, **student("shape"), **flags}, says)
    assert "student.layers" not in said
    assert "student.heads" not in said


def test_a_trained_student_with_an_impossible_dropout(refused, task, tiny_model):
    flags = {**task, "student.path": tiny_model, "student.dropout": 2}
    refused("task", flags, "student.dropout: 2.0; give 0 or more, below 1")


def test_a_column_that_is_text_and_label(refused, finetune):
    says = "task: the column label is named twice; give text, text_pair and label one each"
    refused("finetune", {**finetune, "task.text": "label"}, says)


def test_a_column_number_where_a_header_is_meant_to_be(refused, finetune):
    refused(
        "finetune",
        {**finetune, "task.text": "1"},
        "it has sentence, label: name one of these, or, if that is no header, give",
    )


def test_a_saved_data_set_of_several_splits(refused, finetune, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    flags = {**finetune, "task.train": tmp_path / "saved"}
    refused("finetune", flags, "saved holds several splits; give the folder of one, as ", "saved/train")


def test_numbers_of_a_models_named_classes_are_pointed_out(refused, finetune, classifier, tmp_path):
    text = "sentence\tlabel\n" + "the soup was bland\t0\n" * 9
    (tmp_path / "numbers.tsv").write_text(text)
    models = json.dumps({"teacher": [str(classifier)]})
    files = {"task.train": tmp_path / "numbers.tsv", "task.dev": tmp_path / "numbers.tsv"}
    refused("evaluate", {"models": models, **files}, 'has the label "0"', "or set --task.labels '[0, 1]'")
    config, _ = parse("evaluate", argv({"models": models, **files, "task.labels": "[0, 1]"}))
    jobs.check("evaluate", config, 1)


def test_slices_of_slices(refused, pregenerate):
    flags = {**pregenerate, "on": "slurm", "nodes": 3, "slice": "1/3"}
    refused("pregenerate", flags, "--slice: 1/3, and each of 3 nodes makes a slice; leave one out")


def test_a_teacher_that_does_not_exist(refused, general, tmp_path):
    flags = {**general, "teacher.path": tmp_path / "none"}
    refused("general", flags, "none: no such folder; give a model folder")


# --- finetune, task, evaluate ----------------------------------------------------------------


def labelled(folder: Path, name: str, content: str | bytes) -> dict[str, Path]:
    """The training file replaced by one of this content."""
    data = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(data)
    return {"task.train": folder / name}


def test_a_label_outside_the_set(refused, finetune):
    flags = {**finetune, "task.labels": '["negative", "neutral"]'}
    refused("finetune", flags, 'has the label "positive"', "correct the file or set --task.labels")


def test_labels_in_another_order_than_the_teachers(refused, task):
    flags = {**task, "task.labels": '["positive", "negative"]'}
    refused("task", flags, "task.labels: ", "is not the order", "use the model's")


def test_a_column_that_is_not_there(refused, finetune):
    refused("finetune", {**finetune, "task.text": "text"}, 'no column "text"; it has sentence, label')


def test_a_line_that_is_cut_off(refused, finetune, tmp_path):
    train = labelled(tmp_path, "a.tsv", "sentence\tlabel\none\tnegative\ntwo")
    refused("finetune", {**finetune, **train}, "a.tsv line 3 has 1 columns", "is it cut off?")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_labelled_data_of_garbage(refused, finetune, tmp_path, name):
    train = labelled(tmp_path, name, b"\x80\xff\xfe" * 100)
    refused("finetune", {**finetune, **train}, f"{name} line 1 is not UTF-8 text; convert the file")


def test_a_missing_training_file(refused, finetune, tmp_path):
    flags = {**finetune, "task.train": tmp_path / "none.tsv"}
    refused("finetune", flags, "none.tsv does not exist; give an existing file")


def test_a_folder_in_place_of_a_training_file(refused, finetune, tmp_path):
    (tmp_path / "a.tsv").mkdir()
    refused("finetune", {**finetune, "task.train": tmp_path / "a.tsv"}, "a.tsv is a folder; give a file")


def test_a_training_file_without_examples(refused, finetune, tmp_path):
    train = labelled(tmp_path, "a.tsv", "sentence\tlabel\n")
    refused("finetune", {**finetune, **train}, "a.tsv holds no examples")


def test_one_label_only(refused, finetune, tmp_path):
    train = labelled(tmp_path, "a.tsv", "sentence\tlabel\n" + "one\tnegative\n" * 64)
    refused("finetune", {**finetune, **train}, "a.tsv has one label only")


def test_fewer_examples_than_a_batch(refused, finetune):
    flags = {**finetune, "stage.batch_size": 256}
    refused("finetune", flags, "batch_size: 256 is more than the 200 training examples; give a smaller")


def test_labels_that_are_no_numbers_in_a_regression(refused, finetune):
    flags = {**finetune, "task.kind": "regression"}
    refused("finetune", flags, "example 1 has ", "where a number is needed")


@pytest.mark.parametrize("length", [3, 129])
def test_sequences_that_the_model_does_not_take(refused, finetune, length):
    flags = {**finetune, "task.max_length": length}
    refused("finetune", flags, f"task.max_length: {length}; the model takes 4 to 128")


def test_a_term_that_fine_tuning_does_not_have(refused, finetune):
    flags = {**finetune, "stage.objective.logits": 1}
    refused("finetune", flags, "stage.objective.logits: 1", "this job takes labels")


def test_a_task_teacher_without_a_classification_head(refused, task, tiny_model):
    flags = {**task, "teacher.path": tiny_model}
    refused("task", flags, "has no classification head; fine-tune it first (distillery finetune)")


def test_a_teacher_of_another_task(refused, task, classifier, tmp_path):
    names = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    other = change_config(copy(classifier, tmp_path / "other"), id2label=names)
    refused("task", {**task, "teacher.path": other}, "3 outputs and the task needs 2; is it another")


@pytest.mark.parametrize("job", ["task", "finetune"])
def test_a_student_of_another_task(refused, task, finetune, classifier, tmp_path, job):
    names = {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    other = change_config(copy(classifier, tmp_path / "other"), id2label=names)
    flags, name = (task, "student.path") if job == "task" else (finetune, "shape.path")
    refused(job, {**flags, name: other}, "3 outputs and the task needs 2; is it another task's?")


@pytest.mark.parametrize("names", [["negative", "positive"], ["positive", "negative"]])
def test_a_student_whose_labels_have_another_order_is_told(task, classifier, tmp_path, capsys, names):
    other = copy(classifier, tmp_path / "other")
    change_config(other, id2label=dict(zip("01", names, strict=True)))
    config, _ = parse("task", argv({**task, "student.path": other}))
    jobs.check("task", config, 1)
    told = "was trained for ['positive', 'negative'], and here its outputs, in their order, become"
    assert (told in capsys.readouterr().err) == (names[0] == "positive")


def test_a_task_student_of_more_layers(refused, task):
    flags = {**task, **student(layers=6)}
    refused("task", flags, "student.layers: 6 is more than the teacher's 4; give as many or fewer")


def test_a_first_step_that_can_not_be_says_how_to_do_without(refused, task, classifier, tmp_path):
    """No term; a teacher of words, or of other tokens, which a student of its own folder can't follow."""
    flags = {"intermediate.objective.attention": 0, "intermediate.objective.hidden": 0}
    refused(
        "task", {**task, **flags}, "every term is 0; ", ", or leave the stage out: --intermediate.epochs 0"
    )
    path = copy(classifier, tmp_path / "words")
    change_config(path, model_type="distillery_words", kind="cnn")
    config = json.loads((path / "config.json").read_text())
    del config["num_hidden_layers"]
    (path / "config.json").write_text(json.dumps(config))
    flags = {"teacher.path": path, "student.path": classifier}
    way = "has no layers to compare; ", ", or leave the stage out: --intermediate.epochs 0"
    refused("task", {**task, **flags}, *way)
    other = copy(path, tmp_path / "other")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"the"', '"tho"'))
    refused(
        "task",
        {**task, **flags, "teacher.path": other},
        "another vocabulary",
        "(task: --intermediate.epochs 0)",
    )


def test_a_distillation_without_a_step(refused, task):
    flags = {**task, "intermediate.epochs": 0, "prediction.epochs": 0}
    refused("task", flags, "are both 0: nothing to train")


@pytest.mark.parametrize("epochs", [-1, ".nan", ".inf"])
def test_epochs_that_are_no_number_of_passes(refused, task, epochs):
    flags = {**task, "prediction.epochs": epochs}
    refused("task", flags, "prediction.epochs: ", "; give a number above 0")


def test_a_step_of_nothing(refused, finetune):
    refused("finetune", {**finetune, "stage.batch_size": 0}, "stage.batch_size: 0; give 1 or more")


def test_an_evaluation_of_no_model(refused, evaluate):
    refused("evaluate", {**evaluate, "models": "{}"}, "models: none given; set --models")


def test_an_evaluation_of_a_folder_that_is_no_model(refused, evaluate, tmp_path):
    flags = {**evaluate, "models": json.dumps({"mine": [str(tmp_path)]})}
    refused("evaluate", flags, "models.mine: ", "is no model folder", "give one")


def test_an_evaluation_relative_to_nobody(refused, evaluate):
    refused("evaluate", {**evaluate, "reference": "nobody"}, "reference: nobody is none of teacher")


@pytest.mark.parametrize("name", ["batch_size", "latency_repeats"])
def test_an_evaluation_of_no_size(refused, evaluate, name):
    refused("evaluate", {**evaluate, name: 0}, f"{name}: 0; give 1 or more")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"latency_batches": "[]"}, "latency_batches: []; give sizes of 1 or more"),
        ({"latency_batches": "[8, 0]"}, "latency_batches: [8, 0]; give sizes of 1 or more"),
        ({"models": '{"mine": []}'}, "models.mine: give a plain name and one folder or more"),
        ({"submit": '{"a/b": "x.tsv"}'}, "submit.a/b: give a plain name"),
        ({"task.max_length": 129}, "task.max_length: 129; the model takes 4 to 128"),
        ({"task.dev": "none.tsv"}, "none.tsv does not exist; give an existing file"),
    ],
)
def test_an_evaluation_that_can_not_be(refused, evaluate, flags, says):
    refused("evaluate", {**evaluate, **flags}, says)


def test_an_evaluation_needs_no_training_file(evaluate):
    config, _ = parse(
        "evaluate", argv({**evaluate, "task.train": "none.tsv", "task.labels": '["negative", "positive"]'})
    )
    jobs.check("evaluate", config, 1)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"opset": 17}, "opset: 17; give 18 to 20"),
        ({"opset": 21}, "opset: 21; give 18 to 20"),
        ({"batch_size": 0}, "batch_size: 0; give 1 or more"),
        ({"latency_repeats": 0}, "latency_repeats: 0; give 1 or more"),
        ({"latency_batches": "[0]"}, "latency_batches: [0]; give sizes of 1 or more"),
        ({"model": "{headless}"}, "has no classification head"),
        ({"model": "{cut}"}, "lacks its weights"),
        ({"model": "{mute}"}, "no tokenizer.json"),
        (
            {"task.train": "{train}", "task.dev": "none.tsv"},
            "none.tsv does not exist; give an existing file",
        ),
    ],
)
def test_an_export_that_can_not_be(refused, classifier, tiny_model, tiny_task, tmp_path, flags, says):
    lose_weights(cut := copy(classifier, tmp_path / "cut"))
    (copy(classifier, tmp_path / "mute") / "tokenizer.json").unlink()
    folders = {
        "cut": cut,
        "mute": tmp_path / "mute",
        "headless": tiny_model,
        "train": tiny_task / "train.tsv",
    }
    flags = {name: str(value).format(**folders) for name, value in flags.items()}
    refused("export", {"model": classifier, **flags}, says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"batch_size": 0}, "batch_size: 0; give 1 or more"),
        ({"window": 0}, "window: 0; give 1 or more"),
        ({"max_length": 3}, "max_length: 3; the model takes 4 to 128"),
        ({"max_length": 129}, "max_length: 129; the model takes 4 to 128"),
        ({"model": "{headless}"}, "has no classification head"),
        ({"model": "{cut}"}, "lacks its weights"),
        ({"model": "{mute}"}, "no tokenizer.json"),
        ({"input": "{folder}"}, "is a folder; give a file"),
        ({"output": "{folder}"}, "can't be written; give a file in a folder that exists"),
        ({"output": "{input}"}, "is the input; give another file"),
        ({"output": "{folder}/../{name}/texts.txt"}, "is the input; give another file"),
    ],
)
def test_a_prediction_that_can_not_be(capsys, classifier, tiny_model, tmp_path, flags, says):
    lose_weights(cut := copy(classifier, tmp_path / "cut"))
    (copy(classifier, tmp_path / "mute") / "tokenizer.json").unlink()
    (texts := tmp_path / "texts.txt").write_text("the soup was good\n")
    places = {"cut": cut, "mute": tmp_path / "mute", "headless": tiny_model, "input": texts}
    places |= {"folder": tmp_path, "name": tmp_path.name}
    flags = {name: str(value).format(**places) for name, value in flags.items()}
    common = {"model": classifier, "input": texts, "output": tmp_path / "out"}
    before = tree(tmp_path)
    assert cli.main(["predict", *argv({**common, **flags})]) == 2
    assert says in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["a.parquet", "a.JSON", "a.csv.gz"])
def test_texts_in_a_file_that_holds_no_lines(capsys, classifier, tmp_path, name):
    """Its lines would be labelled as if each were a text."""
    (tmp_path / name).write_text("[\n]\n")
    assert cli.main(["predict", "--model", str(classifier), "--input", f"{tmp_path}/{name}"]) == 2
    said = capsys.readouterr().err
    assert f"{name} is no file of lines; give a text a line, .tsv, .csv or .jsonl, or say which of" in said


def test_a_files_ending_in_capitals_tells_its_form_too():
    assert form_of(PredictConfig("model", input="A.TSV")) == "tsv"
    assert form_of(PredictConfig("model", input="A.TXT")) == "lines"


def test_a_report_of_a_folder_that_is_no_run(capsys, tmp_path):
    assert cli.main(["report", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(tmp_path) in err
    assert err.count("\n") == 1
    assert tree(tmp_path) == {}


# --- through a real process ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "change", "says"),
    [
        ("pregenerate", {"corpus.files": '["none.txt"]'}, "none.txt does not exist; give an existing"),
        ("general", {"student.layer": "2"}, "student.layer"),
    ],
)
def test_the_installed_command_refuses_in_one_line(request, tmp_path, job, change, says):
    flags = {**request.getfixturevalue(job), **change, "run": "run"}
    child = typed([DISTILLERY, job, *argv(flags)], tmp_path, code=2)
    assert child.stdout == ""
    assert child.stderr.startswith(f"distillery {job}: error: ")
    assert child.stderr.count("\n") == 1
    assert says in child.stderr
    assert list(tmp_path.iterdir()) == []


# --- streaming -------------------------------------------------------------------------------


def test_corpora_with_a_weight_of_nothing(refused, general):
    flags = {**{key: value for key, value in general.items() if key != "shards"}}
    flags["shards"] = json.dumps({str(general["shards"]): 0.0})
    refused("general", flags, "shards: weights [0.0]; give numbers above 0")


@pytest.mark.parametrize(
    "flags",
    [
        {"stream.workers": -1},
        {"stream.store.retries": -1},
        {"stream.store.cache_gb": 0},
        {"stream.store.cache_gb": ".inf"},
    ],
)
def test_a_stream_that_can_not_be(refused, general, flags):
    refused("general", {**general, **flags}, "stream: workers and store.retries must be 0 or more")


def test_shards_behind_a_url_of_no_known_protocol(refused, general):
    refused("general", {**general, "shards": "nothing://there"}, "nothing://there can't be opened")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"slice": "0/4"}, "slice: 0/4; give K/N"),
        ({"variants": 0}, "variants must be 1 or more"),
        ({"shard_mb": 0}, "shard_mb: 0.0; give 0.0001 to 10000"),
        ({"corpus.files": '["hub:no/such/data"]'}, "hub:no/such/data can't be streamed"),
        ({"tokenizer": ""}, "tokenizer: none given"),
    ],
)
def test_a_pregeneration_that_can_not_be(refused, pregenerate, flags, says):
    refused("pregenerate", {**pregenerate, **flags}, says)


# --- relations -------------------------------------------------------------------------------

RELATIONS = {"stage.objective.attention": 0, "stage.objective.relation": 1}


def test_relations_of_unlike_heads_need_relation_heads(refused, general):
    flags = {**general, **student(heads=3), **RELATIONS}
    says = ("relation_heads: 0, but the student has 3 heads", "a divisor of both widths, such as 8")
    refused("general", flags, *says)


def test_relation_heads_that_divide_no_width(refused, general):
    flags = {**general, **RELATIONS, "stage.objective.relation_heads": 5}
    refused("general", flags, "relation_heads: 5 does not divide the widths 24 and 32", "such as 8")


def test_no_relations(refused, general):
    flags = {**general, **RELATIONS, "stage.objective.relations": "[]"}
    refused("general", flags, "objective.relations: none; give some of qk, qq, kk, vv")


# --- students of words, stored outputs, ensembles --------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"student.words.vectors": "none.vec"}, "none.vec does not exist; give a file of word vectors"),
        ({"student.words.vectors": __file__}, "is no file of word vectors"),
        ({"student.words.least": 0}, "student.words.least: 0; give 1 or more"),
        ({"engine.zero": 3}, "engine.zero: 3 shares out layer by layer"),
        ({"prediction.objective.hidden": 1}, "the student is of whole words and has no layers"),
        ({"prediction.epochs": 0}, "nothing to train"),
        ({"teacher.dropout": True}, "the teacher's logits are computed beforehand here"),
        ({"teacher.outputs": "none"}, "holds no finished outputs; run `distillery label`"),
        ({"teacher.ensemble": '{"none": 1}'}, "none: no such folder"),
    ],
)
def test_a_student_of_words_that_can_not_learn(refused, task, flags, says):
    words = {"student.kind": "bilstm", "prediction.optimizer.lr": 1e-3}
    refused("task", {**task, **words, **flags}, says)


def test_an_ensemble_of_one_teacher_twice(refused, task, classifier):
    flags = {**task, "teacher.ensemble": json.dumps({str(classifier): 1})}
    refused("task", flags, "is teacher.path too; name it once")


@pytest.mark.parametrize("job", ["task", "evaluate"])
@pytest.mark.parametrize(
    ("problem", "kind"),
    [("multi_label_classification", "classification"), ("single_label_classification", "multi_label")],
)
def test_a_model_of_another_kind_of_task(refused, request, classifier, tmp_path, job, problem, kind):
    model = change_config(copy(classifier, tmp_path / "model"), problem_type=problem)
    flags = {**request.getfixturevalue(job), "task.kind": kind}
    flags |= {"teacher.path": model} if job == "task" else {"models": json.dumps({"teacher": [str(model)]})}
    refused(job, flags, f"{model} was trained for {problem} and task.kind is {kind}; give the kind")


@pytest.mark.parametrize("job", ["task", "label"])
def test_texts_longer_than_a_further_teacher_takes(refused, task, classifier, tmp_path, job):
    short = change_config(copy(classifier, tmp_path / "short"), max_position_embeddings=16)
    flags = task if job == "task" else {k: v for k, v in task.items() if not k.startswith("student")}
    says = f"task.max_length: 64; {short} takes 4 to 16"
    refused(job, {**flags, "task.max_length": 64, "teacher.ensemble": json.dumps({str(short): 1})}, says)


@pytest.mark.parametrize(
    ("pair", "says"), [(False, "single texts, and pairs"), (True, "pairs, and single")]
)
@pytest.mark.parametrize("job", ["finetune", "task", "label", "evaluate", "augment"])
def test_a_model_of_words_for_pairs_or_single_texts_is_for_no_others(
    request, refused, classifier, tmp_path, job, pair, says
):
    words = change_config(copy(classifier, tmp_path / "w"), model_type="distillery_words", pair=pair)
    setting = {"finetune": "shape.path", "task": "student.path", "label": "teacher.path"}.get(
        job, "teacher"
    )
    flags = {**request.getfixturevalue(job), setting: words}
    if job == "evaluate":
        flags = {**request.getfixturevalue(job), "models": json.dumps({"words": [str(words)]})}
    if job == "augment":
        flags["confidence"] = 0.9
    if job == "finetune":
        flags["stage.optimizer.lr"] = 1e-3
    if not pair:
        flags["text_pair" if job == "augment" else "task.text_pair"] = "other"
    refused(job, {**flags, "intermediate.epochs": 0 if job == "task" else None}, says)


def test_texts_longer_than_a_trained_student_takes(refused, task, classifier, tmp_path):
    short = change_config(copy(classifier, tmp_path / "short"), max_position_embeddings=16)
    flags = {**task, "task.max_length": 64, "student.path": short}
    refused("task", flags, "task.max_length: 64; the model takes 4 to 16")


@pytest.mark.parametrize("stage", ["intermediate", "prediction"])
def test_fewer_examples_than_either_steps_batch(refused, task, stage):
    says = "batch_size: 256 is more than the 200 training examples; give a smaller one"
    refused("task", {**task, f"{stage}.batch_size": 256}, says)


@pytest.mark.parametrize("weight", ["-1.0", ".inf", ".nan"])
def test_a_weight_that_gives_no_mean(refused, task, classifier, tmp_path, weight):
    other = copy(classifier, tmp_path / "other")
    flags = {**task, "teacher.ensemble": f"{{{other}: {weight}}}"}
    refused("task", flags, f"is {weight.removeprefix('.')}; give more than 0")


@pytest.mark.parametrize("value", [".nan", ".inf"])
@pytest.mark.parametrize("name", ["temperature", "logits"])
def test_an_objective_of_no_number(refused, task, name, value):
    refused("task", {**task, f"prediction.objective.{name}": value}, f".{name}: {value[1:]}; ")


@pytest.mark.parametrize("name", ["weight_decay", "eps", "clip"])
def test_an_optimizer_of_no_number(refused, task, name):
    refused("task", {**task, f"prediction.optimizer.{name}": ".nan"}, f".{name}: nan; give 0 or more")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"logits": 1}, "has no masked-language-model head; train one (distillery pretrain)"),
        ({"mlm": 1, "attention": 0, "hidden": 0}, "mlm alone needs no teacher; run distillery pretrain"),
        ({"logits_mse": 1}, "this job takes attention, relation, hidden, logits, mlm, custom, 0 or more"),
    ],
)
def test_masked_tokens_that_can_not_be_learnt(refused, general, flags, says):
    terms = {f"stage.objective.{name}": weight for name, weight in flags.items()}
    refused("general", {**general, **terms}, says)


def test_a_discriminator_can_not_tell_masked_tokens(refused, general, tiny_model, tmp_path):
    teacher = copy(tiny_model, tmp_path / "electra")
    change_config(teacher, model_type="electra", architectures=["ElectraForPreTraining"])
    flags = {**general, "teacher.path": teacher, "stage.objective.logits": 1}
    refused("general", flags, "electra has no masked-language-model head")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"student.hidden_size": 64}, "student.hidden_size: 64 is more than the 32 of"),
        (
            {"student.kind": "cnn"},
            "and this student has kind cnn; leave start out",
        ),
    ],
)
def test_a_student_that_its_teacher_can_not_start(refused, task, flags, says):
    refused("task", {**task, "student.start": "teacher", **flags}, says)


def test_a_teacher_of_words_has_no_8_bit_products(refused, task, classifier, tmp_path):
    words = change_config(copy(classifier, tmp_path / "words"), model_type="distillery_words")
    flags = {**task, "teacher.path": words, "teacher.precision": "int8", "student.kind": "bilstm"}
    refused("task", flags, "teacher.precision: int8 is for transformers")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"teacher.outputs": "x"}, "teacher.outputs: the label job writes them; leave it out"),
        ({"teacher.dropout": True}, "teacher.dropout: outputs are computed without dropout; leave it out"),
        ({"batch_size": 0}, "batch_size: 0; give 1 or more"),
        ({"rows_per_file": 0}, "rows_per_file: 0; give 1 or more"),
        ({"task.max_length": 129}, "task.max_length: 129;"),
        ({"task.dev": "none.tsv"}, "none.tsv does not exist"),
    ],
)
def test_a_labelling_that_can_not_be(refused, label, flags, says):
    refused("label", {**label, **flags}, says)


@pytest.mark.parametrize(
    "spoil", [lambda folder: (folder / "tokenizer.json").unlink(), lambda folder: lose_weights(folder)]
)
def test_a_further_teacher_that_was_not_copied_whole(refused, label, classifier, tmp_path, spoil):
    spoil(other := copy(classifier, tmp_path / "other"))
    refused("label", {**label, "teacher.ensemble": json.dumps({str(other): 1})}, f"{other}")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"task.metric": "pearson_spearman"}, "pearson_spearman does not go with classification"),
        ({"task.more_dev": '{"dev": "x.tsv"}'}, "task.more_dev: dev is no name for a file"),
        ({"task.more_dev": '{"mismatched": "x.tsv"}'}, "x.tsv does not exist; give an existing file"),
        ({"model": None}, "model: none given; give a model folder, or a shape.kind of whole words"),
        ({"shape.dropout": 0.1}, "shape.dropout: finetune takes it from --dropout; leave it out"),
        (
            {"stage.optimizer.name": "lamb", "engine.precision": "fp16"},
            "stage.optimizer: lamb does not run in fp16; give engine.precision bf16 or fp32",
        ),
        (
            {"stage.optimizer.name": "lamb", "stage.optimizer.weight_decay": 0},
            "stage.optimizer.weight_decay: 0.0, where lamb is plain Adam; give a small one",
        ),
        ({"stage.optimizer.lr": ".inf"}, "stage.optimizer.lr: inf; give a number above 0"),
        ({"stage.optimizer.beta1": 1}, "stage.optimizer.beta1: 1.0; give 0 or more, below 1"),
        ({"stage.optimizer.clip": -1}, "stage.optimizer.clip: -1.0; give 0 or more"),
        ({"stage.optimizer.lr": 0}, "stage.optimizer.lr: 0.0; give a number above 0"),
        ({"stage.optimizer.beta2": -0.1}, "stage.optimizer.beta2: -0.1; give 0 or more, below 1"),
        (
            {"stage.optimizer.name": "bert_adam", "engine.zero": 1},
            "stage.optimizer: bert_adam runs with engine.zero 0 in fp32 only",
        ),
        (
            {"stage.optimizer.name": "bert_adam", "engine.precision": "bf16"},
            "stage.optimizer: bert_adam runs with engine.zero 0 in fp32 only",
        ),
        (
            {"stage.optimizer.name": "lamb", "engine.zero": 1},
            "stage.optimizer: lamb sees whole tensors; give engine.zero 0, or adamw",
        ),
        ({"stage.schedule.cycles": 0}, "stage.schedule.cycles: 0; give 1 or more"),
        ({"stage.schedule.warmup": 1.1}, "stage.schedule.warmup: 1.1; give a share, 0 to 1"),
        ({"stage.schedule.warmup": -0.1}, "stage.schedule.warmup: -0.1; give a share, 0 to 1"),
        ({"stage.evaluate_every": 0}, "stage.evaluate_every: 0; give 1 or more, or null"),
        ({"stage.objective.temperature": 0}, "stage.objective.temperature: 0.0; give above 0"),
        ({"stage.objective.labels": 0}, "stage.objective: every term is 0; give labels"),
        (
            {"stage.objective.custom": "{math.sqrt: 1}", "stage.objective.custom_layers": True},
            "stage.objective.custom_layers: there is no teacher to compare with; leave it out",
        ),
        ({"engine.patience": 1501}, "engine.patience: 1501.0; give 1 to 1500, or 0"),
        ({"engine.patience": -1}, "engine.patience: -1.0; give 1 to 1500, or 0"),
        ({"record.log_every": 0}, "record.log_every: 0; give 1 or more"),
        ({"record.profile": -1}, "record.profile: -1; give a number of steps, 0 for none"),
        ({"dropout": 1.5}, "dropout: 1.5; give 0 or more, below 1"),
        ({"engine.micro_batch_size": 0}, "engine.micro_batch_size: 0 does not divide"),
        ({"task.labels": '["negative", "positive", "negative"]'}, "give each once"),
        ({"task.more_dev": '{"train": "x.tsv"}'}, "task.more_dev: train is no name for a file"),
        ({"task.more_dev": '{"a b": "x.tsv"}'}, "task.more_dev: a b is no name for a file"),
        (student("shape", layers=5, start="teacher"), "shape.layers: 5 is more than the 4 of"),
        (
            {"shape.kind": "cnn", "shape.words.vectors": "x", "shape.words.corpus.files": '["y"]'},
            "shape.words: give vectors or corpus, not both",
        ),
        ({"shape.kind": "cnn", "shape.words.corpus.files": '["none.txt"]'}, "none.txt does not exist"),
        ({"shape.kind": "cnn", "engine.zero": 3}, "engine.zero: 3 shares out layer by layer"),
        (
            {"model": None, "shape.kind": "cnn", "shape.start": "teacher"},
            "shape.start: teacher is for a new",
        ),
    ],
)
def test_a_task_that_does_not_fit_itself(refused, finetune, flags, says):
    refused("finetune", {**finetune, **flags}, says)


def test_fp16_without_a_gpu(refused, task, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    refused("task", {**task, "engine.precision": "fp16"}, "fp16 needs a GPU and there is none; give bf16")


def test_files_to_answer_that_are_not_there(refused, evaluate):
    refused("evaluate", {**evaluate, "submit": '{"AX": "ax.tsv"}'}, "ax.tsv does not exist")


GRAPH = ("hidden_size", "window", "least", "most", "epochs")


def test_a_graph_of_pairs(refused, task_files):
    refused("textgcn", {**task_files, "task.text_pair": "label"}, "textgcn takes single texts of one class")


@pytest.mark.parametrize("flags", [{"task.kind": "multi_label"}, {"task.more_dev": '{"m": "m.tsv"}'}])
def test_a_graph_of_other_tasks(refused, task_files, flags):
    refused("textgcn", {**task_files, **flags}, "textgcn takes single texts of one class each, and one dev")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"lr": ".inf"}, "lr: inf; give a number above 0"),
        ({"lr": 0}, "lr: 0.0; give a number above 0"),
        ({"dropout": 1}, "dropout: 1.0; give 0 or more, below 1"),
        *(({name: 0}, f"{name}: 0; give 1 or more") for name in GRAPH),
        ({"task.train": "none.tsv"}, "none.tsv does not exist"),
    ],
)
def test_a_graph_that_can_not_be(refused, task_files, flags, says):
    refused("textgcn", {**task_files, **flags}, says)


# --- augment -----------------------------------------------------------------------------------


def test_a_model_whose_8_bit_candidates_would_depend_on_the_batch(refused, tiny_model, tiny_task, tmp_path):
    model = copy(tiny_model, tmp_path / "deberta")
    change_config(model, model_type="deberta-v2", architectures=["DebertaV2ForMaskedLM"])
    flags = {"file": str(tiny_task / "dev.tsv"), "model": str(model), "precision": "int8"}
    refused("augment", flags, "precision: int8 takes models of type bert,", "not deberta-v2; leave it out")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"teacher": "{classifier}"}, "teacher and confidence: either needs the other"),
        ({"confidence": 0.9}, "teacher and confidence: either needs the other"),
        ({"precision": "int8"}, "precision: read by the method tinybert alone; leave it out"),
        ({"vectors": "glove.txt"}, "vectors: read by the method tinybert alone; leave it out"),
        ({"teacher": "{classifier}", "confidence": 1.5}, "confidence: 1.5 is no probability"),
        ({"teacher": "{headless}", "confidence": 0.9}, "has no classification head"),
        ({"teacher": "{classifier}", "confidence": 0}, "confidence: 0.0 is no probability"),
        ({"teacher": "{regression}", "confidence": 0.9}, "does not choose one label of several"),
        ({"teacher": "{several}", "confidence": 0.9}, "does not choose one label of several"),
        ({"teacher": "{cut}", "confidence": 0.9}, "lacks its weights"),
        ({"teacher": "{mute}", "confidence": 0.9}, "mute: no tokenizer.json"),
        ({"model": "{mute}"}, "mute: no tokenizer.json"),
        ({"variants": 0}, "variants: 0; give 1 or more"),
        ({"batch_size": 0}, "batch_size: 0; give 1 or more"),
        ({"examples_per_piece": 0}, "examples_per_piece: 0; give 1 or more"),
        ({"label": "sentence"}, "columns: sentence, sentence, origin; give others"),
        ({"text": "origin"}, "columns: origin, label, origin; give others"),
        ({"text_pair": "sentence"}, "columns: sentence, sentence, label, origin; give others"),
        ({"noise.masked": 1.5}, "noise.masked: 1.5; give a share, 0 to 1"),
        ({"file": "none.tsv"}, "none.tsv does not exist; give an existing file"),
    ],
)
def test_wrong_settings_of_noise(refused, augment, classifier, tiny_model, tmp_path, flags, told):
    regression = copy(classifier, tmp_path / "regression")
    change_config(regression, id2label={"0": "LABEL_0"}, problem_type="regression")
    several = copy(classifier, tmp_path / "several")
    change_config(several, problem_type="multi_label_classification")
    lose_weights(cut := copy(classifier, tmp_path / "cut"))
    (copy(classifier, tmp_path / "mute") / "tokenizer.json").unlink()
    folders = {"classifier": classifier, "headless": tiny_model, "regression": regression}
    folders |= {"several": several, "cut": cut, "mute": tmp_path / "mute"}
    flags = {name: str(value).format(**folders) for name, value in flags.items()}
    refused("augment", {**augment, **flags}, told)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"model": "{headless}"}, "has no masked-language-model head"),
        ({"replaced": 0}, "replaced: 0.0; give a chance above 0, at most 1"),
        ({"replaced": 1.1}, "replaced: 1.1; give a chance above 0, at most 1"),
        ({"candidates": 0}, "candidates: 0; give 1 or more"),
        ({"candidates": 101}, "candidates: 101; give at most 100"),
        ({"candidates": 21, "unit": "chinese_word"}, "candidates: 21; give at most 20"),
        ({"vectors": "x.txt", "unit": "chinese_word"}, "vectors: Chinese words are made of characters"),
        ({"vectors": "none.txt"}, "none.txt does not exist; give a file of word vectors"),
        ({"model": "{cut}"}, "lacks its weights"),
    ],
)
def test_wrong_settings_of_candidates(refused, augment, tiny_model, tmp_path, flags, told):
    bert = change_config(copy(tiny_model, tmp_path / "bert"), architectures=["BertForMaskedLM"])
    lose_weights(cut := copy(bert, tmp_path / "cut"))
    flags = {name: str(value).format(headless=tiny_model, cut=cut) for name, value in flags.items()}
    refused("augment", {**augment, "model": bert, "method": "tinybert", **flags}, told)
