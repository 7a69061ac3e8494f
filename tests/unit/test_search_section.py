"""A search on the report page."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from distill.recorded_run import RecordedRun
from distill.report import render
from distill.search_section import front_chart, parallel_chart, search_section


def told(name: str, status: str = "finished", score: float | None = 0.5, **more: Any) -> dict[str, Any]:
    values = {"student.kind": "cnn", "prediction.optimizer.lr": 0.001}
    shape = {"parameters": 2000, "flops": 300, "latency_ms": 1.5}
    return {"name": name, "status": status, "score": score, "values": values, **shape, "steps": 7, **more}


TRIALS = [
    told("0000 a", score=0.9, latency_ms=4.0),
    told("0001 b", score=0.8, latency_ms=1.0, values={"student.kind": "transformer", "student.layers": 2}),
    told("0002 c", score=0.7, latency_ms=2.0),
    told("0003 d", "stopped", 0.6),
    told("0004 e", "failed", None, reason="no <memory>"),
    told("0005 f", "refused", None, latency_ms=None, steps=0, reason="too large"),
]
SEARCH = {
    "metric": "accuracy",
    "against": "latency_ms",
    "best": "0000 a",
    "front": ["0000 a", "0001 b"],
    "trials": TRIALS,
}


def circles(chart: str) -> list[tuple[float, float, str]]:
    """Place and class of every dot, in the order of the trials."""
    found = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', chart)
    return [(float(x), float(y), kind) for kind, x, y in found]


def test_the_front_shows_what_finished_and_joins_what_none_beats():
    rows = [{**trial, "score": trial["score"] and 100 * trial["score"]} for trial in TRIALS]
    chart = front_chart(rows, SEARCH["front"], "latency_ms", "accuracy")
    slow, fast, beaten = circles(chart)
    assert [slow[2], fast[2], beaten[2]] == ["dot1", "dot1", "dot0"]
    assert fast[0] < beaten[0] < slow[0]
    assert slow[1] < fast[1] < beaten[1]  # pixels count downwards
    (joined,) = re.findall(r'class="line1" d="M([^"]+)"', chart)
    assert [tuple(map(float, point.split())) for point in joined.split("L")] == [fast[:2], slow[:2]]


def test_parallel_coordinates_have_a_line_for_each_trial_with_a_score():
    chart = parallel_chart(TRIALS, "accuracy")
    assert len(re.findall(r'class="line[05]"', chart)) == 4
    assert len(re.findall(r'class="line5"', chart)) == 1  # stopped
    gaps = re.findall(r' d="([^"]+)"><title>0001', chart)
    assert gaps[0].count("M") == 2  # it has no learning rate: its line has a gap there
    ElementTree.fromstring(re.search(r"<svg.*</svg>", chart)[0])


def test_every_trial_is_in_the_table_and_nothing_is_taken_for_markup():
    section = search_section(SEARCH)
    assert all(trial["name"] in section for trial in TRIALS)
    assert "no &lt;memory&gt;" in section
    assert "<memory>" not in section
    assert "6 candidates: 3 finished, 1 stopped, 1 failed, 1 refused" in section
    assert "35 training steps in all" in section


def test_how_scores_on_the_way_told_the_final_order():
    ranked = [
        {"share": 0.0627, "trials": 12, "spearman": 0.713},
        {"share": 0.5, "trials": 4, "spearman": None},
    ]
    section = search_section({**SEARCH, "rank_correlation": ranked})
    assert '<td class="n">6.3</td><td class="n">12</td><td class="n">0.71</td>' in section
    assert '<td class="n">50.0</td><td class="n">4</td><td class="n">–</td>' in section
    assert "so it is biased" in section
    assert "so it is biased" not in search_section(
        {**SEARCH, "trials": TRIALS[:3], "rank_correlation": ranked}
    )
    assert "Rank correlation" not in search_section(SEARCH)


def test_of_several_runs_a_search_says_whose_it_is():
    ranked = [{"share": 0.5, "trials": 12, "spearman": 0.7}]
    runs = [
        RecordedRun(f"<{name}>", summary={"job": "tune", "search": {**SEARCH, "rank_correlation": ranked}})
        for name in "ab"
    ]
    assert re.findall("<h2>(S[^<]+)</h2>", render(runs[:1])) == ["Search", "Scores on the way"]
    found = [f"{head}: &lt;{name}&gt;" for name in "ab" for head in ("Search", "Scores on the way")]
    assert re.findall("<h2>(S[^<]+)</h2>", render(runs)) == found


@pytest.mark.parametrize("trials", [[], TRIALS[:1], TRIALS[4:]])
def test_a_search_with_little_to_show_is_shown(trials):
    page = render([RecordedRun("run", summary={"job": "tune", "search": {**SEARCH, "trials": trials}})])
    assert f"{len(trials)} candidates" in page
    assert page.count("<figure>") == page.count("</figure>") <= 1
