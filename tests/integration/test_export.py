"""`export` and `predict` by the user's door: files that answer alike, texts in order, quiet ends."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
import yaml
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from benchmarks import export as benchmark
from data_pipeline.settings import TaskConfig
from data_pipeline.tasks import encode_split, read_examples
from data_pipeline.vocabulary import copy_tokenizer, load_vocabulary
from distill import export, model_card, onnx_runtime
from distill.encoders import load_classifier
from distill.measure import agreement
from distill.measure import predict as logits_of
from distill.onnx_graph import program_difference, write_program
from distill.settings import ExportConfig
from distill.word_students import WordModelConfig, WordModelForSequenceClassification
from launcher import cli, jobs, runs
from launcher.rank import execute
from tests.helpers import python_in, tiny_tokens, tree

ROOT = Path(__file__).parents[2]
LABELS = ["negative", "positive"]
PREDICT = [sys.executable, "-m", "launcher.cli", "predict"]


def word_model(folder: Path, tokenizer: str, **shape: object) -> Path:
    """A BiLSTM with random weights whose answers differ from text to text."""
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
    config = WordModelConfig(vocab_size=len(tiny_tokens()), embedding_size=16, **{**labels, **shape})
    model = WordModelForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def task(tiny_task) -> TaskConfig:
    return TaskConfig(train=str(tiny_task / "train.tsv"), dev=str(tiny_task / "dev.tsv"), max_length=32)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_tokenizer, task) -> Path:
    """The run folder of an export, of a student that says who taught it."""
    root = tmp_path_factory.mktemp("export")
    model = word_model(root / "line" / "student", tiny_tokenizer)
    (root / "line" / "config.yaml").write_text("teacher: {path: some/teacher}\n", encoding="utf-8")
    config = ExportConfig(str(model), task, latency_repeats=2, latency_batches=[1])
    jobs.check("export", config, 1)
    runs.begin(root / "run", "export", config)
    execute("export", config, root / "run")
    return root / "run"


def predict(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    """What `distillery predict` prints, in this process."""
    assert cli.main(["predict", *map(str, arguments)]) == code
    return capsys.readouterr()


# ---- export


def test_every_form_is_measured(run_folder, task):
    rows = json.loads((run_folder / "summary.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["torch fp32", "onnxruntime fp32", "onnxruntime int8"]
    path = str(run_folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    dev = encode_split(task.dev, task, load_vocabulary(path), LABELS)
    right = (logits_of(model, dev).argmax(-1).numpy() == dev.labels).mean()
    assert rows[0]["accuracy_mean"] == rows[1]["accuracy_mean"] == pytest.approx(right)
    assert rows[2]["megabytes"] < rows[1]["megabytes"]
    assert all(row["latency_ms_p50"] > 0 for row in rows)


def test_the_labels_of_the_files_are_compared_with_the_models(run_folder, task):
    """Here by hand, from the files."""
    summary = json.loads((run_folder / "summary.json").read_text())
    path = run_folder / "model"
    model = load_classifier(str(path))
    dev = encode_split(task.dev, task, load_vocabulary(str(path)), LABELS)
    own = logits_of(model, dev).argmax(-1)
    shares = [
        float((logits_of(form, dev).argmax(-1) == own).float().mean())
        for form in export.onnx_models(path, model.config).values()
    ]
    assert [row.get("agreement") for row in summary["rows"]] == pytest.approx([None, *shares])
    assert shares[0] == 1
    assert summary["int8_agreement"] == pytest.approx(shares[1])


def spoil(folder: Path) -> None:
    """Turn the answers of an int8 file round."""
    file = folder / "onnx" / "model_int8.onnx"
    graph = onnx.load(file)
    (output,) = graph.graph.output
    (last,) = [node for node in graph.graph.node if output.name in node.output]
    last.output[:] = ["turned" if name == output.name else name for name in last.output]
    graph.graph.node.append(onnx.helper.make_node("Neg", ["turned"], [output.name]))
    onnx.save(graph, file)


def test_labels_that_int8_changes_are_told_in_one_line(run_folder, tmp_path, capsys):
    model = load_classifier(str(run_folder / "model"))
    config = ExportConfig(str(run_folder / "model"))
    shutil.copytree(run_folder / "model" / "onnx", tmp_path / "onnx")
    spoil(tmp_path)
    capsys.readouterr()  # of loading
    assert export.int8_agreement(model, tmp_path, [], config) == 0
    assert capsys.readouterr().err == (
        "warning: onnx/model_int8.onnx labels 0.0 % of the 22 rows of random tokens as the model does; "
        "give --task to see what that costs on texts\n"
    )
    for share, said in (
        (0.994, "99.4 % of the texts of dev as the model does; where"),
        (0.995, ""),
        (None, ""),
    ):
        rows = [{}, {"agreement": 1.0}, {"agreement": share}]
        assert export.int8_agreement(model, tmp_path, rows, config) == share
        error = capsys.readouterr().err
        assert error.count("\n") == bool(said)
        assert said in error
    (tmp_path / "onnx" / "model_int8.onnx").unlink()
    assert export.int8_agreement(model, tmp_path, [], config) is None


def test_labels_agree_where_all_of_them_do():
    one = torch.tensor([[1.0, -1.0, 2.0], [1.0, 3.0, -1.0]])
    other = torch.tensor([[1.0, 1.0, 2.0], [1.0, 3.0, -1.0]])
    assert agreement(one, other) == 1
    assert agreement(one, other, several=True) == 0.5
    assert agreement(one[:, :1], other[:, :1]) is None
    assert agreement(one[:, :1], -other[:, :1], several=True) == 0


def test_the_card_holds_the_figures(run_folder):
    _, metadata, text = (run_folder / "model" / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(metadata)
    rows = json.loads((run_folder / "summary.json").read_text())["rows"]
    (result,) = card["model-index"][0]["results"]
    assert card["pipeline_tag"] == result["task"]["type"] == "text-classification"
    assert "base_model" not in card  # the teacher is no such thing
    assert "Distilled by Distillery from `some/teacher`" in text
    assert result["metrics"][0]["value"] == pytest.approx(rows[0]["accuracy_mean"], abs=1e-4)
    for row in rows:
        assert f"| {row['name']} | {100 * row['accuracy_mean']:.2f} |" in text
    assert f"| {100 * rows[2]['agreement']:.2f} | {rows[2]['megabytes']:.1f} |" in text
    hardware = json.loads((run_folder / "versions.json").read_text())["hardware"]
    assert (
        f"Latency is the median of 2 texts of dev, one at a time. Measured on {hardware}, with torch"
        in text
    )
    assert "by `distillery export --config run/config.yaml`" in text
    assert str(run_folder.parent) not in text


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (
            "--model /home/me/runs/task/student --input /data/new.txt",
            "--model task/student --input data/new.txt",
        ),
        ("--task.more_dev '{a: /x/y/a.tsv, b: /x/y/b.tsv}'", "--task.more_dev '{a: y/a.tsv, b: y/b.tsv}'"),
        (
            "--model runs/task/student --task.dev=/x/y/dev.tsv",
            "--model runs/task/student --task.dev=y/dev.tsv",
        ),
        ("--task.dev hub:nyu/glue,sst2 --model https://a.b/c/d", None),
    ],
)
def test_the_cards_command_names_no_place_of_this_machine(typed, shown):
    assert model_card._without_places(typed) == (shown or typed)


def test_a_card_has_no_column_of_what_was_not_measured():
    rows = [{"name": "torch fp32", "metric": "pearson_spearman", "accuracy_mean": 0.5, "megabytes": 1.0}]
    lines = model_card._figures(rows, "stsb").splitlines()
    assert lines == [
        "| stsb, dev | pearson_spearman | MB |",
        "| --- | --- | --- |",
        "| torch fp32 | 50.00 | 1.0 |",
    ]


def follow(card: str, model: Path, **texts: str) -> list[np.ndarray]:
    """The logits of the card's two programs, for other texts than the card's."""
    said = []
    for code in python_in(card):
        for shown, other in {
            "DIR": str(model),
            '"a text"': texts["a"],
            '"a second text"': texts["b"],
        }.items():
            code = code.replace(shown, other if shown == "DIR" else repr(other))
        names: dict = {}
        exec(code, names)
        said.append(np.asarray(names["logits"].tolist()))
    assert len(said) == 2
    return said


def test_the_card_says_how_to_use_it(run_folder):
    text = (run_folder / "model" / "README.md").read_text()
    assert "\n\nA classifier of texts: a student of whole words" in text
    assert 'tokenizer(["a text"], truncation=True, max_length=32, return' in text
    assert "`distillery predict --model DIR --runtime onnx --max_length 32` answers lines of text" in text
    np.testing.assert_allclose(*follow(text, run_folder / "model", a="the soup " * 40, b=""), atol=1e-4)


def test_the_card_of_a_regression_of_pairs_gives_both_texts_and_cuts_them(tmp_path, tiny_tokenizer, capsys):
    """Its programs and its command answer alike, for a pair longer than the run's."""
    shape = {"id2label": {0: "score"}, "label2id": {"score": 0}, "problem_type": "regression"}
    student = word_model(
        tmp_path / "line" / "student", tiny_tokenizer, kind="mean_bilstm", pair=True, **shape
    )
    recipe = {"task": {"text": "the question", "text_pair": "its answer", "max_length": 12}}
    (tmp_path / "line" / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    config = ExportConfig(str(student))
    runs.begin(tmp_path / "run", "export", config)
    execute("export", config, tmp_path / "run")
    model = tmp_path / "run" / "model"
    card = (model / "README.md").read_text()
    assert "\n\nA regression model of pairs of texts: a student of whole words" in card
    assert "It answers with one number" in card
    first, second = "the soup was good " * 5, "the waiter was rude " * 4
    (tmp_path / "in.txt").write_text(f"{first}\t{second}\n")
    (typed,) = re.findall(r"`distillery predict (.*?)`", card)
    assert "--text 'the question' --text_pair 'its answer' --max_length 12" in typed
    words = [str(model) if word == "DIR" else word for word in shlex.split(typed)]
    capsys.readouterr()
    out, _ = predict(capsys, *words, "--input", tmp_path / "in.txt")
    for logits in follow(card, model, a=first, b=second):
        assert logits.shape == (1, 1)
        assert json.loads(out)["value"] == pytest.approx(logits[0, 0], abs=1e-4)


@pytest.mark.parametrize(
    ("problem", "task", "said"),
    [
        ("single_label_classification", {}, ["A classifier of texts: bert", 'tokenizer(["a text"], trunc']),
        (
            "multi_label_classification",
            {},
            ["A multi-label classifier of texts: bert", "logits are above 0"],
        ),
        (
            "regression",
            {"text": "a"},
            ["A regression model of texts: bert", "max_length=64", "--text a` answers"],
        ),
        (
            "single_label_classification",
            {"text": "0", "text_pair": "1", "header": False, "max_length": 48},
            [
                "A classifier of pairs of texts: bert",
                'tokenizer(["a text"], ["a second text"], truncation=True, max_length=48, return',
                "--text 0 --text_pair 1 --header false --max_length 48` answers lines of two texts with",
            ],
        ),
    ],
)
def test_a_card_fits_what_the_model_reads_and_answers(tmp_path, problem, task, said):
    """The model has 64 positions, fewer than tokens are read by default."""
    model = BertConfig(problem_type=problem, max_position_embeddings=64)
    (tmp_path / "model").mkdir()
    config = ExportConfig(str(tmp_path / "model"), TaskConfig("train.tsv", "dev.tsv", **task))
    card = model_card.write_card(config, model, [], tmp_path)
    assert [text for text in said if text not in card] == []


@pytest.mark.parametrize("content", [b"optimizer: !Adam {lr: 1}", b"a: [", b"\xff"])
def test_a_card_asks_no_other_programs_recipe(tmp_path, content):
    (tmp_path / "model").mkdir()
    (tmp_path / "config.yaml").write_bytes(content)
    card = model_card.write_card(ExportConfig(str(tmp_path / "model")), BertConfig(), [], tmp_path)
    assert "A classifier of texts: bert" in card


def test_a_program_of_torch_export_answers_as_the_model(tmp_path, tiny_tokenizer):
    shape = BertConfig(
        vocab_size=len(tiny_tokens()),
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    BertForSequenceClassification(shape).save_pretrained(tmp_path / "bert")
    copy_tokenizer(tiny_tokenizer, tmp_path / "bert")
    config = ExportConfig(str(tmp_path / "bert"), opset=18, int8=False, torch_export=True)
    jobs.check("export", config, 1)
    export.run(config, tmp_path)
    files = {path.name for path in (tmp_path / "model").rglob("*") if path.suffix in (".onnx", ".pt2")}
    assert files == {"model.onnx", "model.pt2"}
    graph = onnx.load(tmp_path / "model" / "onnx" / "model.onnx")
    assert [entry.version for entry in graph.opset_import if not entry.domain] == [18]
    model = load_classifier(str(tmp_path / "bert"))
    (tmp_path / "model" / "model.pt2").rename(tmp_path / "model.pt2")
    assert program_difference(model, tmp_path / "model.pt2", seed=1) < 1
    with torch.no_grad():
        model.classifier.bias.add_(torch.tensor([0.0, 0.1]))
    assert program_difference(model, tmp_path / "model.pt2", seed=1) > 1


def test_a_program_of_a_family_without_segments(tmp_path):
    torch.manual_seed(0)
    shape = RobertaConfig(
        vocab_size=50,
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=130,
        type_vocab_size=1,
    )
    model = RobertaForSequenceClassification(shape).eval()
    write_program(model, tmp_path / "model.pt2")
    assert program_difference(model, tmp_path / "model.pt2", seed=1) < 1


def test_a_model_of_words_has_no_such_program(run_folder):
    config = ExportConfig(str(run_folder / "model"), torch_export=True)
    with pytest.raises(ValueError, match="torch_export: it can't follow a model of whole words"):
        jobs.check("export", config, 1)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 2_300_000_000), ("float16", 1_150_000_000)])
def test_a_model_too_large_for_a_graph_is_refused(tmp_path, tiny_tokenizer, dtype, size):
    model = word_model(tmp_path / "model", tiny_tokenizer)
    config = json.loads((model / "config.json").read_text()) | {"dtype": dtype}
    (model / "config.json").write_text(json.dumps(config))
    os.truncate(model / "model.safetensors", size)  # mostly a hole
    with pytest.raises(ValueError, match=r"has 2\.3 GB of fp32 weights and an ONNX file holds 2"):
        jobs.check("export", ExportConfig(str(model)), 1)


class Hub(BaseHTTPRequestHandler):
    """What the hub's protocol needs for an upload of small files, kept in `files`."""

    files: ClassVar[dict[str, bytes]] = {}
    tokens: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/owner/name"
        self.tokens.add(self.headers["Authorization"])
        if self.path.endswith("/create"):
            self.answer({"url": address})
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        elif "forbidden" in self.path:
            self.answer({"error": "not yours"}, 403)
        elif "/preupload/" in self.path:
            names = [each["path"] for each in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.answer({"files": modes})
        else:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{address}/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self.answer({"id": "owner/name", "siblings": [], "sha": "0", "tags": []})

    def answer(self, content: dict, code: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


PUSH = """
import sys
from pathlib import Path
from distill.export import upload
upload(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.slow
def test_a_folder_is_uploaded_where_one_is_logged_in(run_folder):
    """To a server on this machine; the library reads the hub's address when it is imported."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": "hf_word",
        "HF_HUB_OFFLINE": "0",
    }
    words = [sys.executable, "-c", PUSH, str(run_folder / "model")]
    try:
        common = {"cwd": ROOT, "env": {**os.environ, **own}, "capture_output": True, "text": True}
        done = subprocess.run([*words, "owner/name"], check=False, timeout=120, **common)
        assert done.returncode == 0, done.stderr
        refused = subprocess.run([*words, "owner/forbidden"], check=False, timeout=120, **common)
    finally:
        server.shutdown()
    assert "push_to_hub: owner/forbidden was not uploaded" in refused.stderr
    assert Hub.tokens == {"Bearer hf_word"}
    assert Hub.files == tree(run_folder / "model")


def test_nothing_is_uploaded_without_a_login(run_folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    for name, says in (("owner/name", "you are not logged in"), ("name", "give OWNER/NAME")):
        with pytest.raises(ValueError, match=f"push_to_hub: .*{says}"):
            jobs.check("export", ExportConfig(str(run_folder / "model"), push_to_hub=name), 1)


def test_a_graph_that_answers_otherwise_is_not_kept(run_folder, tmp_path, tiny_tokenizer, monkeypatch):
    other = word_model(tmp_path / "other", tiny_tokenizer, kind="cnn")
    graph = (run_folder / "model" / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(export, "write_graph", lambda model, file, opset: file.write_bytes(graph))
    (tmp_path / "onnx").mkdir()
    with pytest.raises(RuntimeError, match="differ from torch's"):
        export.write_files(load_classifier(str(other)), tmp_path, ExportConfig(str(other)))
    assert not list((tmp_path / "onnx").iterdir())


def test_what_is_missing_is_named(monkeypatch, capsys, tiny_model, run_folder, tmp_path):
    model = run_folder.parent / "line" / "student"
    command = ["export", "--run", str(tmp_path / "run"), "--model"]
    monkeypatch.setattr(onnx_runtime.importlib.util, "find_spec", lambda name: None)
    assert cli.main([*command, str(model)]) == 2
    assert "pip install -e '.[export]' in Distillery's folder" in capsys.readouterr().err
    monkeypatch.undo()
    assert cli.main([*command, tiny_model]) == 2
    assert "no classification head" in capsys.readouterr().err
    assert tree(tmp_path) == {}


# ---- predict


def test_runtimes_agree_and_the_order_is_the_files(run_folder, task, capsys, tmp_path):
    texts = read_examples(task.dev, task).firsts
    model = AutoModelForSequenceClassification.from_pretrained(run_folder / "model").eval()
    data = encode_split(task.dev, task, load_vocabulary(str(run_folder / "model")), LABELS)
    expected = logits_of(model, data).softmax(-1).numpy()
    assert np.ptp(expected[:, 0]) > 0.1  # else any order would do
    for runtime in ("torch", "onnx"):
        options = ["--runtime", runtime, "--input", task.dev, "--window", 10, "--batch_size", 3]
        out, _ = predict(
            capsys, "--model", run_folder / "model", *options, "--output", tmp_path / "out.jsonl"
        )
        assert out == ""
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [line["text"] for line in lines] == texts
        found = [list(line["probabilities"].values()) for line in lines]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert [line["label"] for line in lines] == [LABELS[i] for i in expected.argmax(-1)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("plain.txt", "the soup was good\n\nthe waiter was rude\r\n", []),
        (
            "a.csv",
            '"say, what",label\n"the soup was good",1\n"",0\n"the waiter was rude",1\n',
            ["--text", "say, what"],
        ),
        (
            "a.tsv",
            "1\tthe soup was good\n0\t\n0\tthe waiter was rude\n",
            ["--text", "1", "--header", "false"],
        ),
        ("b.tsv", "sentence\nthe soup was good\n\nthe waiter was rude\n", []),
        ("b.csv", "the soup was good\r\n\r\nthe waiter was rude\r\n", ["--text", "0", "--header", "false"]),
        (
            "a.jsonl",
            '{"a": "the soup was good"}\n{"a": ""}\n{"a": "the waiter was rude"}\n',
            ["--text", "a"],
        ),
    ],
)
def test_every_form_of_input_gives_the_same(run_folder, tmp_path, capsys, name, content, options):
    (tmp_path / name).write_bytes(content.encode())
    common = ["--model", run_folder / "model", "--runtime", "onnx", "--answers", "tsv"]
    out, _ = predict(capsys, *common, "--input", tmp_path / name, *options)
    heading, *rows = [line.split("\t") for line in out.splitlines()]
    assert heading == ["label", *LABELS]
    assert len(rows) == 3
    for label, *values in rows:
        assert sum(map(float, values)) == pytest.approx(1, abs=1e-5)
        assert label == LABELS[int(float(values[1]) > float(values[0]))]
    (tmp_path / "lines").write_text("the soup was good\n\nthe waiter was rude\n")
    assert predict(capsys, *common, "--input", tmp_path / "lines")[0] == out


@pytest.mark.parametrize("name", ["a.txt", "a.tsv"])
def test_a_lone_carriage_return_ends_no_row(run_folder, tmp_path, capsys, name):
    heading = "sentence\n" if name == "a.tsv" else ""
    (tmp_path / name).write_bytes(f"{heading}the soup\rwas good\nthe waiter was rude\r\n".encode())
    out, _ = predict(
        capsys, "--model", run_folder / "model", "--runtime", "onnx", "--input", tmp_path / name
    )
    first, second = map(json.loads, out.splitlines())
    assert first["text"].split() == ["the", "soup", "was", "good"]
    assert second["text"] == "the waiter was rude"


def test_numbers_and_several_labels(tmp_path, tiny_tokenizer, capsys):
    (tmp_path / "texts.txt").write_text("the soup was good\nthe waiter was rude\n")
    number = word_model(tmp_path / "n", tiny_tokenizer, id2label={0: "x"}, problem_type="regression")
    out, _ = predict(capsys, "--model", number, "--input", tmp_path / "texts.txt")
    assert [set(json.loads(line)) for line in out.splitlines()] == [{"text", "value"}] * 2
    several = word_model(tmp_path / "s", tiny_tokenizer, problem_type="multi_label_classification")
    out, _ = predict(capsys, "--model", several, "--input", tmp_path / "texts.txt")
    for line in map(json.loads, out.splitlines()):
        assert line["labels"] == [name for name, value in line["probabilities"].items() if value > 0.5]


def test_pairs(tmp_path, tiny_tokenizer, capsys):
    model = word_model(tmp_path / "model", tiny_tokenizer, kind="mean_bilstm", pair=True)
    (tmp_path / "a.txt").write_text("the soup\tthe waiter was rude\nthe waiter was rude\tthe soup\n")
    (tmp_path / "a.csv").write_text("a,b\nthe soup,the waiter was rude\nthe waiter was rude,the soup\n")
    common = ["--model", model, "--text", "a", "--text_pair", "b", "--input"]
    out, _ = predict(capsys, *common, tmp_path / "a.txt")
    first, second = map(json.loads, out.splitlines())
    assert (first["text"], first["text_pair"]) == (second["text_pair"], second["text"])
    assert first["probabilities"] != second["probabilities"]
    assert predict(capsys, *common, tmp_path / "a.csv")[0] == out
    (tmp_path / "a.txt").write_text("a\tb\nno pair\n")
    assert "line 2 has 0 tabs" in predict(capsys, *common, tmp_path / "a.txt", code=2)[1]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"a text\n", ["--runtime", "onnx", "--model", "{student}"], "no onnx/model.onnx"),
        (b"a text\n", ["--max_length", "2"], "max_length: 2"),
        (b"a text\n", ["--input", "{folder}/none.txt"], "does not exist"),
        (b"a text\n", ["--output", "{folder}/none/out"], "can't be written"),
        (b"a text\n", ["--text_pair", "b"], "reads single texts, and pairs are given"),
        (b"a\tb\n", ["--format", "tsv", "--text", "c"], 'no column "c"'),
        (b'{"sentence": "a"}\n{"sentence"\n', ["--format", "jsonl"], "line 2 is no JSON object"),
        (b"\xff\xfe\n", [], "not UTF-8"),
    ],
)
def test_a_wrong_input_is_one_line(run_folder, tmp_path, capsys, content, options, says):
    (tmp_path / "in").write_bytes(content)
    student = run_folder.parent / "line" / "student"
    options = [option.format(student=student, folder=tmp_path) for option in options]
    common = ["--model", run_folder / "model", "--input", tmp_path / "in", "--output", tmp_path / "out"]
    _, err = predict(capsys, *common, *options, code=2)
    assert says in err
    assert err.count("\n") == 1
    assert "task" not in err.partition("error: ")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_is_no_file_is_written_to_and_the_input_is_not(run_folder, tmp_path, capsys):
    texts, out = tmp_path / "texts.txt", tmp_path / "out.jsonl"
    texts.write_text("the soup was good\n")
    common = ["--model", run_folder / "model", "--runtime", "onnx", "--input", texts]
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    predict(capsys, *common, "--output", pipe)
    reader.join()
    assert json.loads(read[0])["text"] == "the soup was good"
    assert pipe.is_fifo()
    out.symlink_to(tmp_path / "elsewhere.jsonl")
    predict(capsys, *common, "--output", out)
    assert out.is_symlink()
    assert json.loads(out.read_text())["text"] == "the soup was good"
    assert "is the input" in predict(capsys, *common, "--output", texts, code=2)[1]
    assert texts.read_text() == "the soup was good\n"


@pytest.mark.slow
def test_a_closed_pipe_and_an_interrupt_end_quietly(run_folder):
    command = [*PREDICT, "--model", str(run_folder / "model"), "--runtime", "onnx", "--window", "1"]
    for end, expected in (("close", 0), ("interrupt", 130)):
        child = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A job in the background ignores it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert child.stdin
        assert child.stdout
        assert child.stderr
        child.stdin.write(b"the soup was good\n")
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["text"] == "the soup was good"  # before the input ends
        if end == "close":
            child.stdout.close()
            child.stdin.write(b"the soup was good\n" * 100)
            child.stdin.close()
        else:
            child.send_signal(signal.SIGINT)
        assert child.wait(timeout=120) == expected
        assert child.stderr.read() == b""
        for stream in (child.stdin, child.stdout, child.stderr):
            stream.close()


# ---- benchmark


def test_the_benchmark_lets_every_form_answer_the_same(run_folder, task):
    config = ExportConfig(str(run_folder / "model"), task)
    model = load_classifier(config.model)
    forms = {export.TORCH: model, **export.onnx_models(run_folder / "model", model.config)}
    figures, samples = benchmark.measure(forms, config, rounds=3)
    assert figures["torch_accuracy"] == figures["onnx_accuracy"]
    for side in ("torch", "onnx", "int8"):
        for batch in (1, 32):
            times = samples[f"{side}_ms_{batch}"]
            assert len(times) == 3
            assert figures[f"{side}_ms_{batch}"] == sorted(times)[1]
            assert figures[f"{side}_speedup_{batch}"] == pytest.approx(
                sorted(samples[f"torch_ms_{batch}"])[1] / sorted(times)[1], abs=0.02
            )
    benchmark.show(figures, 3)
