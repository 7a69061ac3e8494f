"""Rows of models on the terminal. Imports no torch."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_table(rows: list[dict]) -> None:
    """The rows on standard output."""
    table = Table()
    titles = ["model", rows[0]["metric"], "seeds", "parameters", "MB", "p50 ms", "speed-up"]
    for title in titles:
        table.add_column(title, justify="left" if title == "model" else "right", no_wrap=True)
    for row in rows:
        spread = f" ± {100 * row['accuracy_sd']:.2f}" if row["accuracy_sd"] is not None else ""
        latency, speedup = row.get("latency_ms_p50"), row.get("speedup")
        table.add_row(
            row["name"],
            f"{100 * row['accuracy_mean']:.2f}{spread}",
            str(row["seeds"]),
            f"{row['parameters']:,}",
            f"{row['megabytes']:.1f}",
            "" if latency is None else f"{latency:.2f}",
            "" if speedup is None else f"{speedup:.1f} x",
        )
    console = Console()
    if not console.is_terminal:  # a log has no width: let no column be cut
        console.width = 120
    console.print(table)
