"""Tables of the report page, and numbers as its readers see them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Row = dict[str, Any]


def number_of(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def numbers_of(rows: Sequence[Row], key: str) -> list[float]:
    """The finite numbers of a column."""
    return [number for row in rows if (number := number_of(row.get(key))) is not None]


def scaled(value: Any, factor: float) -> float | None:
    """A number so many times as large, or None for anything else."""
    number = number_of(value)
    return None if number is None else number * factor


def percent_factor(name: str, values: Sequence[float]) -> float:
    """100 for scores logged as fractions, 1 for losses and for scores already in percent."""
    fractions = all(abs(value) <= 1 for value in values)
    return 100.0 if fractions and "loss" not in name else 1.0


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as they suit."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02d} min" if hours else f"{minute} min {second:02d} s"


def short(value: float) -> str:
    """Three digits, without exponents: 0.0123, 1.23, 12.3, 1,234."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}" if value else "0"


def energy(watt_hours: float) -> str:
    """Wh, or kWh from a thousand on."""
    return f"{short(watt_hours / 1000)} kWh" if watt_hours >= 1000 else f"{short(watt_hours)} Wh"


def millions(value: float) -> str:
    """Thousands as k, millions as M."""
    if value < 1000:
        return f"{value:.0f}"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def count(value: float) -> str:
    """A whole number, its thousands parted."""
    return f"{value:,.0f}"


@dataclass(frozen=True)
class Column:
    """One column: how a number is shown, and which is best (`max`, `min` or neither)."""

    key: str
    head: str
    show: Callable[[float], str] | None = None  # None for text
    best: Callable[[list[float]], float] | None = None
    spread: str | None = None  # the key of a deviation, shown in a span of fixed width


def html_table(columns: Sequence[Column], rows: Sequence[Row], rank: bool = True) -> str:
    """Rows under the columns that any row fills; the best number of a column is marked."""
    used = [c for c in columns if any(row.get(c.key) is not None for row in rows)]
    head = "".join(f"<th{_kind(c)}>{escape(c.head)}</th>" for c in used)
    body = []
    for row in rows:
        cells = (_cell(c, row, _best(c, rows) if rank else None) for c in used)
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _kind(column: Column) -> str:
    return ' class="n"' if column.show else ""


def _best(column: Column, rows: Sequence[Row]) -> float | None:
    values = numbers_of(rows, column.key)
    return column.best(values) if column.best and len(set(values)) > 1 else None


def _cell(column: Column, row: Row, best: float | None) -> str:
    value, number = row.get(column.key), number_of(row.get(column.key))
    if column.show is None:
        text = escape(str(value)) if value is not None else "–"
    else:
        text = column.show(number) if number is not None else "–"
    text = f"<b>{text}</b>" if best is not None and number == best else text
    if column.spread:
        spread = number_of(row.get(column.spread))
        text += f'<span class="sd">{f" ± {spread:.1f}" if spread is not None else ""}</span>'
    return f"<td{_kind(column)}>{text}</td>"
