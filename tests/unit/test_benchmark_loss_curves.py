"""Benchmark `loss_curves`: its figures, its picture, its refusals; the commands run under `slow`."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import loss_curves

PLAIN = [(float(step), 100.0) for step in range(10, 510, 10)]


def test_differences_are_from_the_plain_curve_without_its_first_tenth():
    fast = [(step, 300.0 if step <= 50 else 101.0) for step, _ in PLAIN]
    fast[20], fast[-1] = (210.0, 95.0), (500.0, 102.0)
    figures = loss_curves.summarise({"plain": PLAIN, "fast": fast})
    assert figures == {
        "plain_last_loss": 100.0,
        "fast_last_loss": 102.0,
        "fast_median_percent": 1.0,
        "fast_largest_percent": 5.0,
        "fast_last_percent": 2.0,
    }


def test_curves_of_unlike_lengths_are_no_comparison():
    with pytest.raises(ValueError, match="zip"):
        loss_curves.summarise({"plain": PLAIN, "fast": PLAIN[:-1]})


def test_metrics_of_dev_are_no_points(tmp_path):
    lines = [{"split": "train", "step": 10, "loss": 2.5}, {"split": "dev", "step": 10, "accuracy": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert loss_curves.read(tmp_path / "metrics.jsonl") == [(10, 2.5)]


def test_the_picture_has_every_curve_and_names_it():
    svg = loss_curves.draw(dict.fromkeys(loss_curves.CURVES, PLAIN), 500, 8)
    root = ElementTree.fromstring(svg)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert set(loss_curves.CURVES) | {"loss", "step"} <= set(texts)
    classes = {element.get("class") for element in root.iter() if element.tag.endswith("path")}
    assert {"line0", "line1", "line2", "line3"} <= classes
    assert "500 steps of 8 rows" in root.get("aria-label")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "0"], "--batch: give 1 or more"),
        (["--steps", "9"], "--steps: 9; a curve has ten points at least"),
        (["--corpus", "absent.txt"], "--corpus absent.txt: no such file"),
    ],
)
def test_what_can_not_be_measured_is_refused(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("A sentence .\n", encoding="utf-8")
    assert loss_curves.main(["--corpus", "corpus.txt", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_draws_curves_of_real_runs(tmp_path):
    """Each has as many points as steps, and another seed's differ."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(
        "".join(f"This is sentence {place} of some .\n" + "\n" * (place % 8 == 7) for place in range(800)),
        encoding="utf-8",
    )
    arguments = ["--corpus", str(corpus), "--steps", "10", "--batch", "2"]
    assert loss_curves.main([*arguments, "--svg", f"{tmp_path}/a.svg", "--json", f"{tmp_path}/a.json"]) == 0
    record = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert {len(losses) for losses in record["samples"].values()} == {10}
    assert record["samples"]["plain"] != record["samples"]["other seed"]
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
