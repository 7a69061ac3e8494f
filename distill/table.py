"""Rows of models on the terminal. Imports no torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_table(rows: list[dict]) -> None:
    """The rows on standard output."""
    table = Table()
    titles = ["model", rows[0]["metric"], "seeds", "parameters", "MB", "p50 ms", "speed-up"]
    if any("latency_ms_p95" in row for row in rows):
        titles[-1:] = ["p95 ms", "speed-up"]
    if any(row.get("agreement") is not None for row in rows):
        titles.insert(5, "as torch %")
    if any("sequences_per_s_32" in row for row in rows):
        titles += ["seq/s of 32", "speed-up"]
    for title in titles:
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    for row in rows:
        spread = f" ± {100 * row['accuracy_sd']:.2f}" if row["accuracy_sd"] is not None else ""
        measured = {
            "as torch %": percent(row.get("agreement")),
            "p50 ms": _shown(row.get("latency_ms_p50"), "{:.2f}"),
            "p95 ms": _shown(row.get("latency_ms_p95"), "{:.2f}"),
            "seq/s of 32": _shown(row.get("sequences_per_s_32"), "{:,.0f}"),
        }
        speedups = iter([_shown(row.get(key), "{:.1f} x") for key in ("speedup", "speedup_32")])
        table.add_row(
            row["name"],
            f"{100 * row['accuracy_mean']:.2f}{spread}",
            str(row["seeds"]),
            f"{row['parameters']:,}",
            f"{row['megabytes']:.1f}",
            *(next(speedups) if title == "speed-up" else measured[title] for title in titles[5:]),
        )
    console = Console()
    if not console.is_terminal:  # a log has no width: let no column be cut
        console.width = 160
    console.print(table)


def percent(share: float | None) -> str:
    """A share of labels, where there is one."""
    return "" if share is None else f"{100 * share:.2f}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
