"""The job `report`: run folders in, one self-contained `report.html` out.

The page loads nothing: its style is inline and its charts are SVG (distill/charts.py).
Whatever comes from a run folder is escaped on its way in.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from data_pipeline.whole import write_whole
from distill.charts import (
    LIMIT,
    Dot,
    Line,
    Point,
    confusion_chart,
    legend,
    line_chart,
    scatter_chart,
)
from distill.html_table import (
    Column,
    Row,
    count,
    duration,
    energy,
    html_table,
    millions,
    number_of,
    numbers_of,
    percent_factor,
    scaled,
    short,
)
from distill.recorded_run import RecordedRun, is_run, parts_of, read_run
from distill.search_section import search_section

# in the order of a whole distillation
STAGES = ("pretrain", "finetune", "general", "intermediate", "prediction")
SPEEDS = {"lr", "sequences_per_s", "tokens_per_s", "tflops_per_s", "mfu", "peak_memory_mb"}
NOT_A_METRIC = {"stage", "split", "step", "epoch", "time", "rows_digest", *SPEEDS}

COSTS = {  # what is said where the table has any of these columns
    ("speed", "mfu"): "Sequences/s and MFU are medians over the logged training steps.",
    ("mfu",): (
        "MFU (model FLOPs utilisation) is the share that teacher and student take of the matrix products "
        "per second that the machine reached when the stage began."
    ),
    ("memory",): "Peak MB is the GPU's memory, without one the first process's.",
    ("cpu_wh", "gpu_wh"): (
        "Energy is that of the first node's whole CPU packages and GPUs, other programs included."
    ),
}


@dataclass
class ReportConfig:
    """Turn run folders into one HTML page.

    Attributes:
        runs: Run folders; several are compared in the same charts.
        out: The file to write; by default `report.html` in the first run folder.
    """

    runs: list[str]
    out: str | None = None


Folders = Sequence[tuple[str, RecordedRun]]  # with a name that is unique on the page


def check(config: ReportConfig) -> None:
    """Refuse folders that are no runs and hold none, before anything is read."""
    if not config.runs:
        raise ValueError("report: no run folder is given; name at least one in `runs`")
    for folder in map(Path, config.runs):
        if not folder.is_dir():
            raise ValueError(f"report: {folder} is not a folder; give the folder that a run wrote")
        if not is_run(folder) and not parts_of(folder):
            raise ValueError(
                f"report: {folder} has neither metrics.jsonl nor summary.json; "
                "give the folder that a run wrote, once it has logged its first step"
            )
    if config.out and Path(config.out).is_dir():
        raise ValueError(f"report: out={config.out} is a folder; name a file, such as report.html")


def run(config: ReportConfig) -> None:
    """Read the runs, write the page beside its place, rename it, print its path."""
    check(config)
    names = [Path(run).resolve().name for run in config.runs]
    if len(set(names)) < len(names):
        names = list(config.runs)
    runs = [read_run(Path(run), name) for run, name in zip(config.runs, names, strict=True)]
    out = Path(config.out or Path(config.runs[0]) / "report.html")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, render(runs))
    print(out)


# ---- sections


def _with_parts(runs: Sequence[RecordedRun]) -> list[tuple[str, RecordedRun]]:
    """Every folder with a name of its own."""
    found = []
    for run in runs:
        found.append((run.name, run))
        prefix = f"{run.name}/" if len(runs) > 1 else ""
        found += [(prefix + part.name, part) for part in run.parts]
    return found


def _title(runs: Sequence[RecordedRun]) -> str:
    names = ", ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs"
    return f"Distillation report: {names}"


def _header(runs: Sequence[RecordedRun]) -> str:
    items = []
    for run in runs:
        summary = run.summary or {}
        status = str(summary.get("status", "finished")) if run.summary else "unfinished"
        facts = [run.name, str(summary.get("job", "")), status, run.written]
        facts.append(_text(run.versions.get("hardware", "")))
        command = f"<pre>{escape(run.command)}</pre>" if run.command and len(runs) <= 3 else ""
        line = escape(" · ".join(filter(None, dict.fromkeys(facts))))
        items.append(f"<p>{line}</p>{command}")
    return f"<header><h1>{escape(_title(runs))}</h1>{''.join(items)}</header>"


def _result_rows(runs: Sequence[RecordedRun]) -> list[Row]:
    """The rows of the runs (of their parts where a run has none), scores in percent."""
    rows: list[Row] = []
    for run in runs:
        own = (run.summary or {}).get("rows")
        sources = [run] if own else run.parts
        for source in sources:
            rows += [{**row, "run": run.name} for row in (source.summary or {}).get("rows") or []]
    factor = percent_factor("", numbers_of(rows, "accuracy_mean"))
    for row in rows:
        for key in ("accuracy_mean", "accuracy_sd"):
            row[key] = scaled(row.get(key), factor)
    return rows


def _results(runs: Sequence[RecordedRun]) -> str:
    """The table of results, and accuracy against latency when there are points for it."""
    rows = _result_rows(runs)
    if not rows:
        return ""
    metrics = sorted({str(row.get("metric") or "accuracy") for row in rows})
    score = metrics[0].capitalize() if len(metrics) == 1 else "Score"
    spread = "accuracy_sd" if any(row["accuracy_sd"] is not None for row in rows) else None
    columns = [Column("run", "Run")] if len(runs) > 1 else []
    columns += [Column("name", "Model"), Column("task", "Task")]
    columns += [Column("metric", "Metric")] if len(metrics) > 1 else []
    columns += [
        Column("accuracy_mean", f"{score}, %", lambda v: f"{v:.1f}", max, spread),
        Column("seeds", "Seeds", count),
        Column("agreement", "As torch, %", lambda v: f"{100 * v:.2f}"),
        Column("parameters", "Parameters", millions, min),
        Column("megabytes", "MB", lambda v: f"{v:.1f}" if v >= 0.1 else "< 0.1", min),
        Column("flops", "FLOPs", millions, min),
        Column("latency_ms_p50", "Latency, ms", short, min),
        Column("latency_ms_p95", "p95, ms", short, min),
        Column("speedup", "Speed-up", lambda v: f"{v:.1f}×", max),
        Column("sequences_per_s_32", "Seq/s of 32", count, max),
        Column("speedup_32", "Speed-up of 32", lambda v: f"{v:.1f}×", max),
    ]
    comparable = len(metrics) == 1 and len({row.get("task") for row in rows}) == 1
    said = "Latency is the median."
    said += " Scores: mean ± standard deviation over seeds." if spread else ""
    said += " The best of a column is bold." if comparable and len(rows) > 1 else ""
    note = f'<p class="note">{said}</p>'
    scatter = _scatter(rows, score) if comparable else ""
    return f"<section><h2>Results</h2>{html_table(columns, rows, comparable)}{note}{scatter}</section>"


def _classes(runs: Sequence[RecordedRun]) -> str:
    """Precision, recall, F1 and support by class of every measured model, and who is taken for whom."""
    parts = []
    for name, row in _named(_result_rows(runs)):
        if isinstance(report := row.get("classes"), dict):
            parts.append(f"<h4>{escape(name)}</h4>{_class_table(report, row.get('averages'))}")
        matrix = row.get("confusion")
        if isinstance(report, dict) and isinstance(matrix, list) and matrix:
            labels = list(report)[: len(matrix)]
            none = f'<p class="note">No picture of {len(labels)} classes; summary.json has the counts.</p>'
            parts.append(confusion_chart(f"{name}: confusion", labels, matrix) or none)
    return f"<section><h2>By class</h2>{''.join(parts)}</section>" if parts else ""


def _disagreements(folders: Folders) -> str:
    """Examples that a model answers otherwise than the row that it is compared with."""
    parts = []
    for name, run in folders:
        reference, models = run.disagreements.get("reference"), run.disagreements.get("models")
        for model in models if isinstance(models, list) else []:
            of_whom = f"{name}: {model['name']}" if len(folders) > 1 else model["name"]
            share = f"{count(model['count'])} of {count(model['of'])} examples"
            head = f"{of_whom} answers otherwise than {reference}: {share}"
            columns = [
                Column("text", "Text"),
                Column("second", "Second text"),
                Column("label", "Label"),
                Column("reference", str(reference)),
                Column("answer", str(model["name"])),
            ]
            table = html_table(columns, model["examples"]) if model["examples"] else ""
            pairs = any(row.get("second") is not None for row in model["examples"])
            kind = "texts pairs" if pairs else "texts"
            parts.append(f'<h4>{escape(head)}</h4><div class="{kind}">{table}</div>')
    if not parts:
        return ""
    note = '<p class="note">At most 20 of each, those first that the model is surest of.</p>'
    return f"<section><h2>Where they disagree</h2>{''.join(parts)}{note}</section>"


def _searches(runs: Sequence[RecordedRun]) -> list[str]:
    found = [(run.name, (run.summary or {}).get("search")) for run in runs]
    return [
        search_section(search, name if len(runs) > 1 else "")
        for name, search in found
        if isinstance(search, dict)
    ]


def _class_table(report: Row, averages: Row | None) -> str:
    named = [*report.items(), *(averages or {}).items()]  # a class may have an average's name
    rows = [{"name": name, **values} for name, values in named if isinstance(values, dict)]
    columns = [Column("name", "Class")]
    columns += [Column(key, key.capitalize(), lambda v: f"{v:.4f}") for key in ("precision", "recall")]
    columns += [Column("f1-score", "F1", lambda v: f"{v:.4f}"), Column("support", "Support", count)]
    return html_table(columns, rows, rank=False)


def _named(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Rows with the names of their models, and of their runs where there are several."""
    several = len({row["run"] for row in rows}) > 1
    return [(f"{row['run']}: {row.get('name')}" if several else str(row.get("name")), row) for row in rows]


def _scatter(rows: Sequence[Row], score: str) -> str:
    dots = []
    for name, row in _named(rows):
        x, y = number_of(row.get("latency_ms_p50")), number_of(row.get("accuracy_mean"))
        if x is not None and y is not None and x > 0:
            dots.append(Dot(name, x, y, row.get("accuracy_sd") or 0.0))
    if len(dots) < 2:
        return ""
    title = f"{score} against latency: up and to the left is better; a line joins those that none beats"
    return scatter_chart(title, dots, "median latency, ms (log scale)", f"{score}, %")


def _notes(folders: Folders) -> str:
    items = []
    for name, run in folders:
        notes = [*run.notes, *((run.summary or {}).get("notes") or [])]
        items += [f"<li><b>{escape(name)}</b>: {escape(str(note))}</li>" for note in notes]
    return f"<section><h2>Notes</h2><ul>{''.join(items)}</ul></section>" if items else ""


def _points(run: RecordedRun, stage: str, split: str, key: str) -> list[Point]:
    """A metric over steps; where a resumed run repeats a step, the later value counts."""
    points: dict[float, float] = {}
    for row in run.metrics:
        if row.get("stage") == stage and row.get("split") == split:
            step, value = number_of(row.get("step")), number_of(row.get(key))
            if step is not None and value is not None:
                points[step] = value
    return sorted(points.items())


def _lines(folders: Folders, stage: str, split: str, key: str) -> list[Line]:
    """One line per folder that logged it; a folder's style depends on its place only."""
    lines = [
        Line(name, _points(run, stage, split, key), style) for style, (name, run) in enumerate(folders)
    ]
    return [line for line in lines if line.points]


def _keys(folders: Folders, stage: str, split: str) -> list[str]:
    """The names of a stage's metrics, in the order of their first appearance."""
    rows = [row for _, run in folders for row in run.metrics]
    mine = [row for row in rows if row.get("stage") == stage and row.get("split") == split]
    return list(dict.fromkeys(key for row in mine for key in row if key not in NOT_A_METRIC))


def _losses(folders: Folders, stage: str) -> list[str]:
    """The loss and its terms: together for a lone run, otherwise one chart each."""
    keys = [key for key in _keys(folders, stage, "train") if key.split("/")[0] == "loss"]
    if len(keys) == 2:  # a loss with one term is that term
        keys = keys[:1]
    lines = {key: _lines(folders, stage, "train", key) for key in keys}
    if len(folders) > 1:
        titles = {key: "Training loss" + key[4:].replace("/", ": ") for key in keys}
        return [
            line_chart(titles[key], lines[key], "loss", small=key != "loss", scale="decades")
            for key in keys
        ]
    named = [(key[5:] or "total", lines[key][0].points) for key in keys if lines[key]]
    terms = [Line(name, points, style) for style, (name, points) in enumerate(named)]
    if len(terms) < 2:
        return [line_chart("Training loss", terms, "loss", scale="decades")]
    chart = line_chart("Training loss and its terms", terms, "loss", scale="decades")
    return [chart.replace("</figcaption>", f"</figcaption>{legend(terms)}", 1)]


def _scores(folders: Folders, stage: str) -> list[str]:
    """One chart for each metric on the dev set, scores in percent; the first is large."""
    charts: list[str] = []
    for key in _keys(folders, stage, "dev"):
        lines = _lines(folders, stage, "dev", key)
        factor = percent_factor(key, [y for line in lines for _, y in line.points])
        lines = [replace(e, points=[(x, y * factor) for x, y in e.points]) for e in lines]
        unit = key if "loss" in key else f"{key}, %"
        charts.append(line_chart(f"Dev set: {key}", lines, unit, small=bool(charts)))
    return charts


def _stage(folders: Folders, stage: str) -> str:
    """The charts of one stage: loss and score large, everything else small."""
    mine = [(n, run) for n, run in folders if any(m.get("stage") == stage for m in run.metrics)]
    losses, scores = _losses(mine, stage), _scores(mine, stage)
    pace = [("lr", "Learning rate", "learning rate"), ("sequences_per_s", "Throughput", "seq/s")]
    pace.append(("mfu", "Model FLOPs utilisation", "share of the ceiling"))
    small = losses[1:] + scores[1:]
    for key, title, unit in pace:
        small.append(line_chart(title, _lines(mine, stage, "train", key), unit, True, "zero"))
    names = legend([Line(name, [], style) for style, (name, _) in enumerate(mine)])
    return (
        f"<section><h2>Training: {escape(stage)}</h2>"
        f"{names if len(mine) > 1 else f'<p>Run: {escape(mine[0][0])}</p>'}"
        f'<div class="charts">{"".join(losses[:1] + scores[:1])}</div>'
        f'<div class="charts small">{"".join(small)}</div></section>'
    )


def _stages(folders: Folders) -> str:
    named = (row.get("stage") for _, run in folders for row in run.metrics)
    found = list(dict.fromkeys(stage for stage in named if isinstance(stage, str)))
    order = [s for s in STAGES if s in found] + [s for s in found if s not in STAGES]
    note = f'<p class="note">Curves of more than {LIMIT} points show means of neighbours.</p>'
    return "".join(_stage(folders, stage) for stage in order) + (note if order else "")


def _cost_row(name: str, run: RecordedRun) -> Row:
    summary = run.summary or {"status": "unfinished", **run.spent}
    best = {k: number_of(v) for k, v in (summary.get("best") or {}).items() if k not in NOT_A_METRIC}
    scores = ", ".join(f"{k} {short(v * percent_factor(k, [v]))}" for k, v in best.items() if v is not None)
    speed, mfu = (_median(run, key) for key in ("sequences_per_s", "mfu"))
    memory = max(numbers_of(run.metrics, "peak_memory_mb"), default=None)
    measured = {"speed": speed, "mfu": scaled(mfu, 100), "memory": memory}
    return {**summary, "name": name, "scores": scores or None, **measured}


def _median(run: RecordedRun, key: str) -> float | None:
    known = numbers_of(run.metrics, key)
    return statistics.median(known) if known else None


def _cost(folders: Folders) -> str:
    columns = [
        Column("name", "Run"),
        Column("job", "Job"),
        Column("status", "Status"),
        Column("scores", "Best on dev"),
        Column("steps", "Steps", count),
        Column("wall_s", "Wall time", duration),
        Column("cpu_hours", "CPU-hours", short),
        Column("gpu_hours", "GPU-hours", short),
        Column("cpu_wh", "CPU energy", energy),
        Column("gpu_wh", "GPU energy", energy),
        Column("speed", "Sequences/s", short),
        Column("mfu", "MFU %", short),
        Column("memory", "Peak MB", count),
    ]
    rows = [_cost_row(name, run) for name, run in folders]
    shown = {key for row in rows for key, value in row.items() if value is not None}
    said = " ".join(text for keys, text in COSTS.items() if shown.intersection(keys))
    note = f'<p class="note">{said}</p>' if said else ""
    table = html_table(columns, rows)
    return f"<section><h2>Runs and their cost</h2>{table}{note}</section>"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _reproduce(folders: Folders) -> str:
    """Command, configuration and versions, folded away run by run."""
    items = []
    for name, run in folders:
        pairs = "\n".join(f"{key}: {_text(value)}" for key, value in run.versions.items())
        texts = [("command", run.command), ("config.yaml", run.config), ("versions", pairs)]
        shown = [f"<h4>{head}</h4><pre>{escape(text)}</pre>" for head, text in texts if text]
        if shown:
            inside = "".join(shown)
            items.append(f"<details><summary>{escape(name)}</summary>{inside}</details>")
    return f"<section><h2>How to reproduce</h2>{''.join(items)}</section>" if items else ""


def render(runs: list[RecordedRun]) -> str:
    """The whole page."""
    folders = _with_parts(runs)
    body = [
        _header(runs),
        _results(runs),
        *_searches(runs),
        _classes(runs),
        _disagreements(folders),
        _notes(folders),
        _stages(folders),
        _cost(folders),
        _reproduce(folders),
    ]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(_title(runs))}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(filter(None, body))}\n</main></body></html>\n"
    )


STYLE = """
:root { color-scheme: light dark; --page: #fcfcfa; --ink: #1c1f23; --soft: #5a626b;
  --rule: #d5d8da; --grid: #e6e8e8; --box: #f3f4f2; --c0: #1f5fa8; --c1: #bd4f12; --c2: #22775a;
  --c3: #8a4499; --c4: #8a6a08; --c5: #5f656c; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e4e6e8; --soft: #a2abb4;
  --rule: #3a4149; --grid: #282d33; --box: #1d2126; --c0: #74ade9; --c1: #f0965a; --c2: #62c4a0;
  --c3: #cc97de; --c4: #d6b74b; --c5: #aab1b9; } }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .6rem;
  border-top: 1px solid var(--rule); }
h4 { margin: .8rem 0 .2rem; font-size: .85rem; color: var(--soft); }
header p { margin: .4rem 0; } .note { color: var(--soft); font-size: .85rem; margin: .4rem 0; }
ul { padding-left: 1.2rem; }
pre { background: var(--box); padding: .6rem .8rem; border-radius: 4px; font-size: .82rem;
  white-space: pre-wrap; margin: .3rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: left; vertical-align: baseline;
  white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { font-weight: 500; color: var(--soft); border-color: var(--rule); font-size: .85rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page);
  white-space: normal; min-width: 6.5rem; max-width: 16rem; }
.texts td:first-child, .pairs td:nth-child(2) { position: static;
  white-space: normal; min-width: 12rem; max-width: 30rem; }
.n { text-align: right; font-variant-numeric: tabular-nums; } b { font-weight: 650; }
.sd { display: inline-block; width: 3.1em; text-align: left; color: var(--soft); white-space: pre; }
.charts { display: grid; gap: 1.4rem 2rem; margin-top: .8rem; align-items: end;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.charts.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: .6rem 0; } figcaption { font-weight: 600; font-size: .92rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0;
  margin: .2rem 0; font-size: .85rem; } .legend svg { margin-right: .4rem; }
figure > svg { width: 100%; height: auto; display: block; margin-top: .3rem; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); } svg path { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg .grid { stroke: var(--grid); stroke-width: 1; } svg .axis { stroke: var(--rule); }
.line0 { stroke: var(--c0); } .line1 { stroke: var(--c1); } .line2 { stroke: var(--c2); }
.line3 { stroke: var(--c3); } .line4 { stroke: var(--c4); } .line5 { stroke: var(--c5); }
.dot0 { fill: var(--c0); } .dot1 { fill: var(--c1); } .dot2 { fill: var(--c2); }
.dot3 { fill: var(--c3); } .dot4 { fill: var(--c4); } .dot5 { fill: var(--c5); }
summary { cursor: pointer; } details { margin: .3rem 0; }
@media (max-width: 500px) { figure > svg text { font-size: 14px; }
  .small svg text { font-size: 11px; } td:first-child { max-width: 9rem; } }
"""
