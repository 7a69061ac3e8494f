"""The table of models on terminals of any width."""

import re

import pytest
from rich.cells import cell_len

from distill.table import print_table

ROW = {
    "metric": "accuracy",
    "accuracy_mean": 0.8812,
    "accuracy_sd": 0.0058,
    "seeds": 3,
    "parameters": 22_713_986,
}
ROW |= {"megabytes": 90.9, "latency_ms_p50": 9.81, "latency_ms_p95": 13.53, "speedup": 1.0}
ROW |= {"sequences_per_s_32": 2131.0, "speedup_32": 4.5}
ALL = ("seeds", "parameters", "MB", "p50 ms", "p95 ms", "speed-up", "seq/s of 32", "speed-up of 32")


def shown(monkeypatch, capsys, rows: list[dict], width: int | None) -> str:
    monkeypatch.setenv("TERM", "xterm")
    if width:
        monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal to rich
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(rows)
    return re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["student, labels alone", "学生"])
@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_loses_whole_columns_and_is_told_which(name, width, monkeypatch, capsys):
    text = shown(monkeypatch, capsys, [{**ROW, "name": name}], width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text
    assert name in text
    assert "88.12 ± 0.58" in text
    head, _, left_out = text.partition("not shown: ")
    left_out = " ".join(left_out.split()).split(", ")
    titles = [title.strip() for title in head.splitlines()[1].strip("┃").split("┃")]
    assert titles == ["model", "accuracy", *(title for title in ALL if title not in left_out)]
    assert left_out[0] == "speed-up of 32"


def test_a_log_gets_all_columns_that_were_measured(monkeypatch, capsys):
    text = shown(monkeypatch, capsys, [{**ROW, "name": "teacher"}], None)
    assert all(title in text for title in ALL)
    assert "not shown" not in text
    unmeasured = {key: None for key in ROW if "latency" in key or "speedup" in key or "sequences" in key}
    text = shown(monkeypatch, capsys, [{**ROW, **unmeasured, "name": "teacher"}], None)
    assert not any(title in text for title in ALL[3:])


def test_a_name_in_brackets_is_shown(monkeypatch, capsys):
    assert "cnn [best]" in shown(monkeypatch, capsys, [{**ROW, "name": "cnn [best]"}], None)
