"""Charts as inline SVG: pure functions from numbers to markup, without script, fonts or images.

Colours are CSS classes (`line0` ... `line5` for strokes), so that the page decides what they
look like in light and in dark; a line is told by its dash as well as by its colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from rich.cells import cell_len

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom

COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3", "14 4")  # 5 against 6 colours: 30 pairs before one repeats
LIMIT = 120  # points per line: more would only draw noise, and hide the dashes
MOST_CLASSES = 60  # of a confusion matrix that is drawn
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 26, 40  # pixels around the plot
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """One named curve; `style` picks its colour and dash."""

    name: str
    points: list[Point]
    style: int = 0


@dataclass(frozen=True)
class Dot:
    """One named point of a scatter; `spread` draws a bar of plus and minus that much."""

    name: str
    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class Axis:
    """A scale from `lo` to `hi` with its ticks and its title."""

    title: str
    lo: float
    hi: float
    ticks: list[float]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies: 0 at `lo`, 1 at `hi`."""
        if self.log:
            return math.log(value / self.lo) / math.log(self.hi / self.lo)
        return (value - self.lo) / (self.hi - self.lo)


def down_sample(points: Sequence[Point], limit: int = LIMIT) -> list[Point]:
    """At most `limit` points, each the mean of a bucket of neighbours."""
    if len(points) <= limit:
        return list(points)
    cuts = [i * len(points) // limit for i in range(limit + 1)]
    buckets = [points[a:b] for a, b in pairwise(cuts)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in buckets]


def linear_axis(title: str, values: Sequence[float], count: int = 5, snug: bool = False) -> Axis:
    """An axis with round ticks (1, 2 or 5 times a power of ten); `snug` ends at the data, not at a tick."""
    lo, hi = min(values), max(values)
    if 0 <= lo < 0.4 * hi:
        lo = 0.0  # the base line is worth its room
    if hi - lo <= 1e-9 * max(abs(hi), abs(lo)):
        lo, hi = (min(lo, 0.0), max(hi, 0.0)) if hi else (-1.0, 1.0)  # of one value, no room above 100 %
    rough = (hi - lo) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(lo / step), math.ceil(hi / step)
    ticks = [i * step for i in range(first, last + 1)]
    if snug:
        return Axis(title, lo, hi, [t for t in ticks if lo <= t <= hi])
    return Axis(title, ticks[0], ticks[-1], ticks)


def log_axis(title: str, values: Sequence[float], room: float = 1.15) -> Axis:
    """An axis with ticks at the powers of ten, and between them when there are too few."""
    lo, hi = min(values) / room, max(values) * room
    powers = [10.0**e for e in range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1)]
    ticks: list[float] = []
    for between in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [p * m for p in powers for m in between if lo <= p * m <= hi]
        if len(ticks) >= 3:
            return Axis(title, lo, hi, ticks[:: 1 + len(ticks) // 8], log=True)
    ticks = linear_axis(title, [lo, hi], 4, snug=True).ticks
    return Axis(title, lo, hi, [t for t in ticks if t > 0], log=True)


def tick_texts(axis: Axis) -> list[str]:
    """The labels of an axis: one unit, and one number of decimals unless it is logarithmic."""
    top = max(map(abs, axis.ticks))
    unit, suffix = (1e6, "M") if top >= 2e6 else (1e3, "k") if top >= 1e4 else (1.0, "")
    texts = [f"{tick / unit:.4g}" for tick in axis.ticks]
    if not axis.log and not any("e" in text for text in texts):
        decimals = max(len(text.partition(".")[2]) for text in texts)
        texts = [f"{tick / unit:.{decimals}f}" for tick in axis.ticks]
    return [(text + suffix if float(text) else text).replace("-", "−") for text in texts]


def line_chart(
    title: str, lines: Sequence[Line], y_title: str, small: bool = False, scale: str = "plain"
) -> str:
    """A figure of curves over steps; nothing when there are no lines.

    `scale` is "plain", "zero" (the y axis starts at 0; very small values get a power of ten in
    the title) or "decades" (logarithmic when no other axis could show all values).
    """
    if not lines:
        return ""
    width, height, limit = (300, 190, LIMIT // 2) if small else (440, 260, LIMIT)
    curves = [down_sample(line.points, limit) for line in lines]
    ys = [y for curve in curves for _, y in curve]
    factor = 1.0
    if scale == "zero" and 0 < max(ys) < 0.01:
        exponent = math.floor(math.log10(max(ys)) + 1e-9)
        factor, y_title = 10.0**-exponent, f"{y_title} (×10{str(exponent).translate(SUPERSCRIPT)})"
    if scale == "decades" and min(ys) > 0 and max(ys) > 50 * min(ys):
        y_axis = log_axis(f"{y_title} (log scale)", ys)
    else:
        seen = [y * factor for y in ys] + ([0.0] if scale == "zero" else [])
        y_axis = linear_axis(y_title, seen, 3 if small else 5)
    xs = [x for curve in curves for x, _ in curve]
    frame = Frame(linear_axis("step", xs, 4 if small else 6, snug=True), y_axis, width, height)
    marks = [
        _curve(line, [frame.place(x, y * factor) for x, y in curve])
        for line, curve in zip(lines, curves, strict=True)
    ]
    return frame.figure(title, marks)


def front(points: list[tuple[float, float]]) -> list[bool]:
    """Which points (score, cost) no other beats: at least as good in both and better in one."""
    return [
        not any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in points)
        for score, cost in points
    ]


def front_line(frame: Frame, dots: Sequence[Dot]) -> str:
    """A line through dots from left to right; nothing for less than two of them."""
    places = _in_order(frame, dots)
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    return f'<path class="line1" d="M{path}"/>' if len(places) > 1 else ""


def _in_order(frame: Frame, dots: Sequence[Dot]) -> list[Point]:
    return sorted({frame.place(dot.x, dot.y) for dot in dots})


def scatter_chart(title: str, dots: Sequence[Dot], x_title: str, y_title: str) -> str:
    """A figure of labelled points, in percent, over a logarithmic x; a line joins those that none beats."""
    lows = [dot.y - dot.spread for dot in dots]
    highs = [min(dot.y + dot.spread, max(dot.y, 100.0)) for dot in dots]  # a share ends at 100 %
    x_axis = log_axis(x_title, [dot.x for dot in dots], room=1.3)
    frame = Frame(x_axis, linear_axis(y_title, [*lows, *highs]), 480, 300)
    bars, marks = [], []
    for dot, bottom, top in zip(dots, lows, highs, strict=True):
        (x, low), (_, y), (_, high) = (frame.place(dot.x, value) for value in (bottom, dot.y, top))
        bars.append((x - 5, min(high, y) - 5, x + 5, low + 5))
        marks.append(f'<path class="line0" d="M{x:.1f} {high:.1f}V{low:.1f}"/>')
        marks.append(f'<circle class="dot0" cx="{x:.1f}" cy="{y:.1f}" r="4">')
        marks.append(f"<title>{escape(dot.name)}</title></circle>")
    best = [dot for dot, is_best in zip(dots, front([(d.y, d.x) for d in dots]), strict=True) if is_best]
    marks.insert(0, front_line(frame, best))
    taken = [*bars, *_along(_in_order(frame, best)), (0.0, 0.0, 7.0 * len(y_title), 15.0)]
    marks += [_label(dot.name, bar, taken, frame) for dot, bar in zip(dots, bars, strict=True)]
    return frame.figure(title, marks)


def _along(places: Sequence[Point]) -> list[Box]:
    """Small boxes that cover a line."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(places):
        count = 1 + int(max(x1 - x0, abs(y1 - y0)) / 3)
        for step in range(count + 1):
            x, y = x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count
            boxes.append((x - 2, y - 2, x + 2, y + 2))
    return boxes


def confusion_chart(title: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A figure of a confusion matrix: a row for each true class, shaded by its share of the row.

    Nothing of more than MOST_CLASSES: its size grows with their square.
    """
    if len(labels) > MOST_CLASSES:
        return ""
    cell = max(18, min(64, 420 // len(labels)))
    names = [label if len(label) <= 14 else label[:13] + "…" for label in labels]
    room = 12 + 7 * max(map(cell_len, names))  # a Chinese character is as wide as two letters
    flat = room <= cell  # names of columns that fit stand upright
    left, top = max(room, 36), (18 if flat else room) + 18  # above them stands what they are
    marks = [_text(left, 12, "predicted", "start"), _text(0, top - 6, "true", "start")]
    for row, (label, short, line) in enumerate(zip(labels, names, counts, strict=True)):
        y = top + row * cell
        marks.append(_text(left - 6, y + cell / 2 + 4, short, "end", "name"))
        if flat:
            marks.append(_text(left + (row + 0.5) * cell, top - 6, short, "middle", "name"))
        else:
            turn = f"translate({left + (row + 0.5) * cell + 4:.0f} {top - 6}) rotate(-90)"
            marks.append(f'<g transform="{turn}">{_text(0, 0, short, "start", "name")}</g>')
        for column, count in enumerate(line):
            x, share = left + column * cell, count / max(1, sum(line))
            marks.append(
                f'<rect class="dot0" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{0.75 * share:.3f}"><title>{escape(label)} as '
                f"{escape(labels[column])}: {count}</title></rect>"
            )
            if cell >= 30:
                marks.append(_text(x + cell / 2, y + cell / 2 + 4, str(count), "middle", "name"))
    wide, high = left + cell * len(labels) + 8, top + cell * len(labels) + 8
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" role="img" '
        f'aria-label="{escape(title)}" style="max-width:{wide}px">{"".join(marks)}</svg></figure>'
    )


def standalone(figure: str) -> str:
    """The picture of a figure as a file of its own, with the colours of a light page."""
    begin, end = figure.index("<svg"), figure.index("</svg>")
    head, marks = figure[begin:end].split(">", 1)
    style = "text{font:12px sans-serif;fill:#1c1f23}.dot0{fill:#1f5fa8}"
    return f"{head}><style>{style}</style>{marks}</svg>\n"


def legend(lines: Sequence[Line]) -> str:
    """The names of lines, each beside a piece of its stroke."""
    items = "".join(
        f'<li><svg viewBox="0 0 30 10" width="30" height="10" aria-hidden="true">'
        f'<path {stroke(line.style)} d="M0 5H30"/></svg>{escape(line.name)}</li>'
        for line in lines
    )
    return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True)
class Frame:
    """Two axes and the size of the picture around them."""

    x: Axis
    y: Axis
    width: int
    height: int

    def place(self, x: float, y: float) -> Point:
        """The pixel of a point."""
        across, up = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        return LEFT + self.x.at(x) * across, self.height - BOTTOM - self.y.at(y) * up

    def holds(self, box: Box) -> bool:
        """Whether a box lies on the plot; it may reach into the margins to the right and above."""
        left, top, right, bottom = box
        return left >= LEFT and right <= self.width and top >= 0 and bottom <= self.height - BOTTOM

    def grid(self) -> str:
        """Grid lines with their labels, and the two titles."""
        base, right, parts = self.height - BOTTOM, self.width - RIGHT, []
        for tick, text in zip(self.y.ticks, tick_texts(self.y), strict=True):
            _, y = self.place(self.x.lo, tick)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
            parts.append(_text(LEFT - 6, y + 4, text, "end"))
        for tick, text in zip(self.x.ticks, tick_texts(self.x), strict=True):
            x, _ = self.place(tick, self.y.lo)
            parts.append(f'<path class="axis" d="M{x:.1f} {base}v4"/>')
            parts.append(_text(x, base + 17, text, "middle"))
        parts.append(f'<path class="axis" d="M{LEFT} {base}H{right}"/>')
        parts.append(_text(0, 12, self.y.title, "start"))
        parts.append(_text(right, self.height - 6, self.x.title, "end"))
        return "".join(parts)

    def figure(self, title: str, marks: Sequence[str]) -> str:
        """The picture with its caption."""
        label = escape(f"{title}: {self.y.title} over {self.x.title}")
        return (
            f"<figure><figcaption>{escape(title)}</figcaption>"
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{label}" '
            f'style="max-width:{1.15 * self.width:.0f}px">{self.grid()}{"".join(marks)}</svg>'
            "</figure>"
        )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def stroke(style: int) -> str:
    """The attributes of a path that make it a line of this style."""
    dash = DASHES[style % len(DASHES)]
    return f'class="line{style % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _curve(line: Line, at: Sequence[Point]) -> str:
    """The path of a line; few points are also marked one by one."""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    kind = f'class="dot{line.style % COLOURS}" r="2.5"'
    dots = [f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in at if len(at) <= 24]
    name = f"<title>{escape(line.name)}</title>"
    return f'<path {stroke(line.style)} d="M{path}">{name}</path>{"".join(dots)}'


def _label(name: str, dot: Box, taken: list[Box], frame: Frame) -> str:
    """A dot's name, or its beginning, at the first free side of its box; else nothing."""
    x, y = (dot[0] + dot[2]) / 2, (dot[1] + dot[3]) / 2
    for limit in (30, 15):
        short = name if len(name) <= limit else name[: limit - 1] + "…"
        long = 7.0 * cell_len(short)  # generous: the true width is not known here
        sides = [(dot[2] + 4, y + 4), (dot[0] - 4 - long, y + 4)]
        for start in (x - long / 2, x - long, x):
            left = min(max(start, LEFT), frame.width - long)
            sides += [(left, dot[1] - 4), (left, dot[3] + 12)]
        for left, base in sides:
            box = (left, base - 11, left + long, base + 3)
            if frame.holds(box) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                ends = left + long <= x
                return _text(left + long * ends, base, short, "end" if ends else "start", "name")
    return ""  # the dot still tells its name when pointed at


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
