"""The commands of README and guides, typed one after another as a reader would, on tiny models and data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    ElectraModel,
    RobertaForMaskedLM,
)

from data_pipeline.vocabulary import copy_tokenizer
from tests.helpers import grammar_words, indented, tiny_tokens, write_documents

ROOT = Path(__file__).parents[2]
TYPED = ("distillery", "python", "mkdir", "echo", "export")  # other indented lines show files
TEACHER, STUDENT = "runs/own_data/teacher/model", "runs/own_data/general/student"
# What each guide takes for granted, and what its commands leave behind.
GUIDES = {
    "README": ([], ["runs/mine/evaluate/report.html", "runs/mine/bilstm/student", "labels.jsonl"]),
    "tour": ([], ["runs/tour/report.html", "runs/tour/export/model/onnx"]),
    "own_data": ([], ["runs/own_data/evaluate/report.html", "labels.jsonl"]),
    "own_teacher": ([], ["runs/own_teacher/task/student", "runs/own_teacher/label_two/outputs"]),
    "augmentation": ([TEACHER, STUDENT, "MLM"], ["runs/augmentation/task/student"]),
    "tuning": ([TEACHER], ["runs/tuning/search/report.html", "runs/tuning/best/student"]),
}
KINDS = {TEACHER: BertForSequenceClassification, STUDENT: BertModel, "MLM": BertForMaskedLM}


def commands(guide: str) -> str:
    """The indented commands of a guide, a script."""
    page = ROOT / "README.md" if guide == "README" else ROOT / "docs" / f"{guide}.md"
    lines = indented(page.read_text(encoding="utf-8"))
    if guide == "README":  # its search is the guide's, which takes minutes
        lines = [line for line in lines if not line.startswith("distillery tune")]
    return "\n".join(line for line in lines if line.split()[0] in TYPED)


@pytest.fixture
def folder(tmp_path: Path, tiny_task: Path, tiny_tokenizer: str) -> Path:
    """A folder with TEACHER, train.tsv, dev.tsv, text with and without labels, and recipes/."""
    for split in ("train", "dev"):
        header, *rows = (tiny_task / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        assert header == "sentence\tlabel"
        twice = [f"{text}\t{text}\t{label}" for text, label in (row.split("\t") for row in rows)]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\ttext\tlabel", *twice]) + "\n")
    write_documents(tmp_path / "corpus.txt", 400, seed=0)  # rows for a step of 256
    (tmp_path / "my_corpus.txt").symlink_to("corpus.txt")
    for name in ("new.txt", "texts.txt"):
        (tmp_path / name).write_text("the soup was good .\n")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    save(BertModel, tmp_path / "TEACHER", tiny_tokenizer)
    return tmp_path


def save(kind: type, folder: Path, tokenizer: str) -> None:
    """A model of random weights, which a student of four layers and twelve heads can be compared with."""
    names = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    shape = {"num_hidden_layers": 4, "hidden_size": 48, "num_attention_heads": 12, "intermediate_size": 64}
    config = kind.config_class(vocab_size=len(tiny_tokens()), pad_token_id=0, **shape, **names)
    kind(config).save_pretrained(folder)
    copy_tokenizer(tokenizer, folder)


def typed(script: str, folder: Path) -> None:
    """Run a script of commands in a folder; it ends at the first that fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-exo", "pipefail", "-c", script],
        cwd=folder,
        env=words,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_can_be_followed(guide, folder, tiny_tokenizer):
    granted, left = GUIDES[guide]
    for path in granted:
        save(KINDS[path], folder / path, tiny_tokenizer)
    script = commands(guide)
    assert script.count("distillery ") >= 2
    typed(script, folder)
    assert [name for name in left if not (folder / name).exists()] == []


# What the commands of each section of docs/from_the_originals.md leave behind.
SECTIONS = {
    "distil-bilstm": ["runs/bilstm_labels/model", "runs/bilstm/student"],
    "BERT to Bi-LSTM": ["runs/sst2_bilstm/student", "runs/evaluate/report.html"],
    "TinyBERT": ["runs/paper_general/student", "runs/paper_task/student", "runs/evaluate/report.html"],
    "iclassifier": ["runs/sst2_electra/model", "runs/densenet_dsa/student", "runs/students/report.html"],
    "Chinese text": ["runs/tnews5_bilstm/student", "runs/tnews5_textgcn/summary.json"],
}
PRETRAINED = {
    "google-bert/bert-large-uncased": BertForMaskedLM,
    "google-bert/bert-base-uncased": BertForMaskedLM,
    "google-bert/bert-base-chinese": BertForMaskedLM,
    "FacebookAI/roberta-large": RobertaForMaskedLM,
    "google/electra-large-discriminator": ElectraModel,
}


def counterparts(section: str) -> list[str]:
    """The commands of a section's right column."""
    page = (ROOT / "docs" / "from_the_originals.md").read_text(encoding="utf-8")
    (text,) = (part for part in page.split("\n## ") if part.startswith(section))
    cells = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| `") or " | " in line]
    return [command for cell in cells for command in re.findall("`(distillery [^`]+)`", cell)]


@pytest.fixture
def recipes_data(tmp_path: Path, tiny_task: Path, tiny_tokenizer: str) -> Path:
    """A folder with what the recipes name: data, corpora, vectors, and models under their public names."""
    for name in ("data/sst2", "data/tnews5", "data/corpus", "corpus", "vectors"):
        (tmp_path / name).mkdir(parents=True)
    kinds = {"negative": "难吃的菜", "positive": "好看的花"}
    chinese = [f"{text}第{number}号\t{label}" for number in range(70) for label, text in kinds.items()]
    for split, rows in (("train", 129), ("dev", 65)):
        lines = (tiny_task / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[:rows]
        (tmp_path / f"data/sst2/{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        text = "\n".join(["text\tlabel", *chinese[: rows + 10]]) + "\n"
        (tmp_path / f"data/tnews5/{split}.tsv").write_text(text, encoding="utf-8")
    text = "\n".join(line.split("\t")[0] for line in chinese)
    (tmp_path / "data/corpus/chinese.txt").write_text(text + "\n", encoding="utf-8")
    write_documents(tmp_path / "corpus/wikipedia.txt", 400, seed=0)
    rows = [f"{word} " + " ".join(["0.1"] * 300) for word in grammar_words()]
    for name in ("wiki.en.vec", "glove.6B.300d.txt"):
        (tmp_path / "vectors" / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name, kind in PRETRAINED.items():
        save(kind, tmp_path / name, tiny_tokenizer)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_every_command_of_the_originals_has_a_counterpart_that_runs(section, recipes_data):
    script = counterparts(section)
    assert len(script) >= 5
    typed("\n".join(script), recipes_data)
    assert [name for name in SECTIONS[section] if not (recipes_data / name).exists()] == []


def test_no_guide_writes_into_anothers_runs():
    written = {
        guide: {run.split("/")[1] for run in re.findall(r"--run (runs/\S+)", commands(guide))}
        for guide in [*GUIDES, "own_student"]
    }
    assert written == {guide: {"mine" if guide == "README" else guide} for guide in written}
