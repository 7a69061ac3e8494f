"""A search on the report page: the front, parallel coordinates, and what each trial was and cost.

Reads `search` of a run's summary.json, as the job `tune` writes it. Pure functions from it to markup.
"""

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any

from distill.charts import Dot, Frame, front_line, linear_axis, log_axis, tick_texts
from distill.html_table import (
    Column,
    Row,
    count,
    duration,
    html_table,
    millions,
    number_of,
    numbers_of,
    percent_factor,
    scaled,
    short,
)

AGAINST = {
    "latency_ms": "latency of single examples, ms (log scale)",
    "parameters": "parameters (log scale)",
    "flops": "FLOPs of one example (log scale)",
}
WIDE, HIGH, TOP, BOTTOM = 140, 280, 40, 34  # pixels of parallel coordinates: between axes, and in height


def search_section(search: Row, run: str = "") -> str:
    """The section of one search; of several, `run` says whose."""
    trials = [trial for trial in search.get("trials") or [] if isinstance(trial, dict)]
    metric, against = str(search.get("metric")), str(search.get("against"))
    factor = percent_factor(metric, numbers_of(trials, "score"))
    rows = [{**trial, "score": scaled(trial.get("score"), factor)} for trial in trials]
    counts = Counter(str(row.get("status")) for row in rows)
    said = ", ".join(f"{number} {status}" for status, number in counts.items())
    best = f"The best: <b>{escape(str(search.get('best')))}</b> ({escape(metric)} on dev)."
    front = front_chart(rows, search.get("front") or [], against, metric)
    whose = f": {run}" if run else ""
    ranked = [row for row in search.get("rank_correlation") or [] if isinstance(row, dict)]
    return (
        f"<section><h2>Search{escape(whose)}</h2><p>{len(rows)} candidates: {escape(said)}. {best}</p>"
        f'<div class="charts">{front}</div>{parallel_chart(rows, metric)}{_table(rows, metric)}'
        f"{_rank_table(ranked, any(row.get('status') == 'stopped' for row in rows), whose)}</section>"
    )


def front_chart(rows: Sequence[Row], front: Sequence[str], against: str, metric: str) -> str:
    """Score against cost of the trials that finished; a line joins those that none beats."""
    dots = []
    for row in rows:
        x, y = number_of(row.get(against)), number_of(row.get("score"))
        if row.get("status") == "finished" and x and y is not None:
            dots.append(Dot(str(row.get("name")), x, y))
    if len(dots) < 2:
        return ""
    x_axis = log_axis(AGAINST.get(against, against), [dot.x for dot in dots], room=1.3)
    frame = Frame(x_axis, linear_axis(f"{metric}, %", [dot.y for dot in dots]), 480, 300)
    marks = [front_line(frame, [dot for dot in dots if dot.name in front])]
    for dot in dots:
        x, y = frame.place(dot.x, dot.y)
        kind, size = ("dot1", 5) if dot.name in front else ("dot0", 4)
        marks.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">')
        marks.append(f"<title>{escape(dot.name)}: {dot.y:.2f}, {short(dot.x)}</title></circle>")
        if dot.name in front:
            number = escape(dot.name.split(" ")[0])
            marks.append(
                f'<text class="name" x="{x - 8:.1f}" y="{y - 6:.1f}" text-anchor="end">{number}</text>'
            )
    return frame.figure("The front: up and to the left is better", marks)


def parallel_chart(rows: Sequence[Row], metric: str) -> str:
    """A line for each trial with a score, across an axis for each setting and one for the score."""
    scored = [row for row in rows if number_of(row.get("score")) is not None]
    keys = list(dict.fromkeys(key for row in scored for key in row.get("values") or {}))
    if len(scored) < 2 or not keys:
        return ""
    axes = [_axis(key, [(row.get("values") or {}).get(key) for row in scored]) for key in keys]
    axes.append(_axis(f"{metric}, %", [row["score"] for row in scored], even=0))
    lowest, highest = (end(row["score"] for row in scored) for end in (min, max))
    marks = []
    for number, row in enumerate(scored):
        points = [(WIDE * (place + 0.5), axis[1][number]) for place, axis in enumerate(axes)]
        path = "".join(
            f"{'M' if at == 0 or points[at - 1][1] is None else 'L'}{x:.0f} {y:.1f}"
            for at, (x, y) in enumerate(points)
            if y is not None
        )
        share = (row["score"] - lowest) / ((highest - lowest) or 1)
        kind = "line0" if row.get("status") == "finished" else "line5"
        told = f"{row.get('name')}: {row['score']:.2f}, {row.get('status')}"
        marks.append(f'<path class="{kind}" stroke-opacity="{0.25 + 0.75 * share:.2f}" d="{path}">')
        marks.append(f"<title>{escape(told)}</title></path>")
    for place, (title, _, ticks) in enumerate(axes):
        x = WIDE * (place + 0.5)
        marks.append(f'<path class="axis" d="M{x} {TOP}V{HIGH - BOTTOM}"/>')
        marks.append(
            f'<text x="{x}" y="{16 + 14 * (place % 2)}" text-anchor="middle">{escape(title)}</text>'
        )
        marks += [
            f'<text class="name" x="{x + 5}" y="{y + 4:.1f}">{escape(text)}</text>' for text, y in ticks
        ]
    wide, title = WIDE * len(axes), "Settings and score: every line is a trial, the better the stronger"
    return (
        f"<figure><figcaption>{title}; grey ended early</figcaption>"
        f'<svg viewBox="0 0 {wide} {HIGH}" role="img" aria-label="{title}" style="max-width:{wide}px">'
        f"{''.join(marks)}</svg></figure>"
    )


def _axis(
    title: str, values: Sequence[Any], even: int = 6
) -> tuple[str, list[float | None], list[tuple[str, float]]]:
    """Its title, heights of the values, ticks. Words, and `even` numbers or fewer, stand evenly."""
    known = [value for value in values if value is not None]
    different = list(dict.fromkeys(map(json.dumps, known)))
    numbers = [number_of(value) for value in known]
    if all(number is not None for number in numbers):
        if len(different) > even:
            axis = _numbers(title, [float(value) for value in known])
            heights = [None if value is None else _height(axis.at(float(value))) for value in values]
            texts = zip(tick_texts(axis), axis.ticks, strict=True)
            return title, heights, [(text, _height(axis.at(tick))) for text, tick in texts]
        different.sort(key=lambda text: float(json.loads(text)))
    at = {text: _height((place + 0.5) / len(different)) for place, text in enumerate(different)}
    heights = [None if value is None else at[json.dumps(value)] for value in values]
    return title, heights, [(_word(text), height) for text, height in at.items()]


def _numbers(title: str, values: Sequence[float]) -> Any:
    wide = min(values) > 0 and max(values) > 20 * min(values)
    return log_axis(title, values, room=1.05) if wide else linear_axis(title, values, snug=True)


def _word(text: str) -> str:
    value = json.loads(text)
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else text


def _height(share: float) -> float:
    return HIGH - BOTTOM - share * (HIGH - BOTTOM - TOP)


def _table(rows: Sequence[Row], metric: str) -> str:
    columns = [
        Column("name", "Trial"),
        Column("status", "Status"),
        Column("score", f"{metric}, %", lambda v: f"{v:.2f}", max),
        Column("parameters", "Parameters", millions),
        Column("flops", "FLOPs", millions),
        Column("latency_ms", "Latency, ms", short),
        Column("steps", "Steps", count),
        Column("wall_s", "Time", duration),
        Column("cpu_hours", "CPU-hours", short),
        Column("gpu_hours", "GPU-hours", short),
        Column("reason", "Why"),
    ]
    total = sum(numbers_of(rows, "steps"))
    note = (
        f'<p class="note">{total:,.0f} training steps in all. The score of a trial that ended early is its '
        "last. Latency is that of the untrained student, on what a trial's process has.</p>"
    )
    shown = [{**row, "reason": row.get("reason") or None} for row in rows]
    return html_table(columns, shown) + note


def _rank_table(found: Sequence[Row], stopped: bool, whose: str) -> str:
    """How well scores on the way told the final order."""
    if not found:
        return ""
    columns = [
        Column("share", "Share of the training, %", lambda v: f"{100 * v:.1f}"),
        Column("trials", "Trials", count),
        Column("spearman", "Rank correlation", lambda v: f"{v:.2f}"),
    ]
    biased = " Those that were stopped early are missing, so it is biased." if stopped else ""
    return (
        f"<h2>Scores on the way{escape(whose)}</h2>{html_table(columns, found)}"
        '<p class="note">Spearman\'s rank correlation of the scores there with the final ones, of trials '
        "that finished: 1 where they come in the same order, about 0 where the early scores tell nothing."
        f"{biased}</p>"
    )
