"""Rows of models on the terminal. Imports no torch."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# What a narrow terminal leaves out first; the report has all of it.
DISPENSABLE = ("speed-up of 32", "seq/s of 32", "p95 ms", "seeds", "MB", "parameters", "as torch %")


def print_table(rows: list[dict]) -> None:
    """The rows on standard output."""
    console = Console()
    if not console.is_terminal:  # a log has no width: let no column be cut
        console.width = 160
    columns = _columns(rows)
    left_out = []
    for title in DISPENSABLE:
        if title in columns and _width(columns) > console.width:
            del columns[title]
            left_out.append(title)
    table = Table(caption=f"not shown: {', '.join(left_out)}" if left_out else None)
    for title in columns:
        name = title == "model"
        table.add_column(title, justify="left" if name else "right", no_wrap=not name, overflow="fold")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))  # a name's brackets are no markup
    console.print(table)


def _columns(rows: list[dict]) -> dict[str, list[str]]:
    """Cells by title; of what no row has measured there is no column."""
    columns = {
        "model": [row["name"] for row in rows],
        rows[0]["metric"]: [_score(row) for row in rows],
        "seeds": [str(row["seeds"]) for row in rows],
        "parameters": [f"{row['parameters']:,}" for row in rows],
        "MB": [f"{row['megabytes']:.1f}" for row in rows],
        "as torch %": [percent(row.get("agreement")) for row in rows],
        "p50 ms": [_shown(row.get("latency_ms_p50"), "{:.2f}") for row in rows],
        "p95 ms": [_shown(row.get("latency_ms_p95"), "{:.2f}") for row in rows],
        "speed-up": [_shown(row.get("speedup"), "{:.1f} x") for row in rows],
        "seq/s of 32": [_shown(row.get("sequences_per_s_32"), "{:,.0f}") for row in rows],
        "speed-up of 32": [_shown(row.get("speedup_32"), "{:.1f} x") for row in rows],
    }
    return {title: cells for title, cells in columns.items() if any(cells)}


def _width(columns: dict[str, list[str]]) -> int:
    """Of the table with its lines and margins."""
    return 1 + sum(3 + max(map(cell_len, [title, *cells])) for title, cells in columns.items())


def _score(row: dict) -> str:
    spread = f" ± {100 * row['accuracy_sd']:.2f}" if row["accuracy_sd"] is not None else ""
    return f"{100 * row['accuracy_mean']:.2f}{spread}"


def percent(share: float | None) -> str:
    """A share of labels, where there is one."""
    return "" if share is None else f"{100 * share:.2f}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
