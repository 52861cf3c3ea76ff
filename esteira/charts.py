"""Small charts as SVG text: drawn by hand, deterministic, no library, light and dark by the page's colours.

Every function takes plain numbers and returns one `<svg>`; colours are CSS classes that `esteira.report` styles. Each
mark has a `<title>`, so that a browser shows its numbers under the pointer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Pairs = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 360.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 12.0, 10.0, 40.0
_ROW = 20.0  # height of one row of a list chart
_LABEL, _NOTE = 26, 54.0  # characters of its label, room for its note


@dataclass(frozen=True)
class Series:
    """Points of one line: `kind` is `model`, `baseline` or `champion`, `name` its legend."""

    name: str
    points: Pairs
    kind: str = "model"


@dataclass(frozen=True)
class Mark:
    """One row of a list chart: a value with an optional interval; `note` is shown at the right, `kind` colours it."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    kind: str = "model"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, about that many."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: 12k, 3.4M, 0.05."""
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Spot:
    """One point of a cloud with a text of its own; `kind` colours it."""

    x: float
    y: float
    tip: str
    kind: str = "model"


class _Frame:
    """Axes of a chart and the way from numbers to places on it."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float]) -> None:
        self.x0, self.x1 = _widened(*xs)
        self.y0, self.y1 = _widened(*ys)
        self.parts: list[str] = []

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> None:
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        for tick in ticks(self.x0, self.x1):
            at = self.x(tick)
            self.parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>')
            self.parts.append(
                f'<text class="tick" x="{at:.1f}" y="{bottom + 14}" text-anchor="middle">{short(tick)}</text>'
            )
        for tick in ticks(self.y0, self.y1):
            at = self.y(tick)
            self.parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            self.parts.append(
                f'<text class="tick" x="{_LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{short(tick)}</text>'
            )
        middle = (_LEFT + right) / 2
        self.parts.append(
            f'<text class="label" x="{middle}" y="{_HEIGHT - 7}" text-anchor="middle">{escape(x_label)}</text>'
        )
        across = (_TOP + bottom) / 2
        self.parts.append(
            f'<text class="label" transform="translate(11 {across}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )

    def line(self, points: Pairs, kind: str, title: str = "") -> None:
        path = " ".join(f"{self.x(px):.1f},{self.y(py):.1f}" for px, py in points)
        self.parts.append(f'<polyline class="line {kind}" points="{path}"><title>{escape(title)}</title></polyline>')

    def svg(self, title: str, height: float = _HEIGHT) -> str:
        return _svg(self.parts, _WIDTH, height, title)


def _svg(parts: Sequence[str], width: float, height: float, title: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title, quote=True)}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    """An axis range that is not empty."""
    if high > low:
        return low, high
    pad = abs(low) * 0.1 or 1.0
    return low - pad, high + pad


def thin(points: Pairs, limit: int = 200) -> list[tuple[float, float]]:
    """At most `limit` points of a line, evenly taken, ends kept."""
    if len(points) <= limit:
        return list(points)
    return [points[round(k * (len(points) - 1) / (limit - 1))] for k in range(limit)]


def curves(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    xs: tuple[float, float] = (0, 1),
    ys: tuple[float, float] = (0, 1),
    dots: bool = False,
) -> str:
    """Lines in one frame with a legend; with `dots`, each point is marked too."""
    frame = _Frame(xs, ys)
    frame.axes(x_label, y_label)
    for one in series:
        frame.line(one.points, one.kind, one.name)
        if dots and one.kind == "model":
            for px, py in one.points:
                tip = f"{x_label} {short(px)}, {y_label} {short(py)}"
                frame.parts.append(
                    f'<circle class="dot {one.kind}" cx="{frame.x(px):.1f}" cy="{frame.y(py):.1f}" r="3.2">'
                    f"<title>{escape(tip)}</title></circle>"
                )
    for row, one in enumerate(reversed([one for one in series if one.name])):
        at = _HEIGHT - _BOTTOM - 10 - 14 * row
        frame.parts.append(f'<line class="line {one.kind}" x1="{_WIDTH - 34}" x2="{_WIDTH - 16}" y1="{at}" y2="{at}"/>')
        frame.parts.append(
            f'<text class="tick halo" x="{_WIDTH - 38}" y="{at + 3.5}" text-anchor="end">{escape(one.name)}</text>'
        )
    return frame.svg(title)


def scatter(
    points: Pairs, *, title: str, x_label: str, y_label: str, diagonal: bool = False, zero: bool = False
) -> str:
    """A cloud of points; `diagonal` draws y = x over equal axes, `zero` draws y = 0."""
    xs, ys = [p[0] for p in points] or [0.0], [p[1] for p in points] or [0.0]
    span_x, span_y = (min(xs), max(xs)), (min(ys), max(ys))
    if diagonal:
        span_x = span_y = (min(span_x[0], span_y[0]), max(span_x[1], span_y[1]))
    frame = _Frame(_padded(*span_x), _padded(*span_y))
    frame.axes(x_label, y_label)
    marks = "".join(f'<circle cx="{frame.x(px):.1f}" cy="{frame.y(py):.1f}" r="2.1"/>' for px, py in points)
    frame.parts.append(f'<g class="cloud">{marks}</g>')
    if diagonal:
        frame.line([(span_x[0], span_x[0]), (span_x[1], span_x[1])], "baseline", "perfect")
    if zero:
        frame.line([(frame.x0, 0.0), (frame.x1, 0.0)], "baseline", "no error")
    return frame.svg(title)


def spots(points: Sequence[Spot], lines: Sequence[Series], *, title: str, x_label: str, y_label: str) -> str:
    """Points over lines, each line with its name at its first point."""
    places = [(p.x, p.y) for p in points] + [place for one in lines for place in one.points] or [(0.0, 0.0)]
    xs, ys = [x for x, _ in places], [y for _, y in places]
    frame = _Frame(_padded(min(xs), max(xs)), _padded(min(ys), max(ys)))
    frame.axes(x_label, y_label)
    for one in lines:
        frame.line(one.points, one.kind, one.name)
        if one.name:
            at_x, at_y = one.points[0]
            frame.parts.append(
                f'<text class="tick halo" x="{frame.x(at_x) - 4:.1f}" y="{frame.y(at_y) + 3.5:.1f}" text-anchor="end">'
                f"{escape(one.name)}</text>"
            )
    for p in points:
        frame.parts.append(
            f'<circle class="dot {p.kind}" cx="{frame.x(p.x):.1f}" cy="{frame.y(p.y):.1f}" r="3.2">'
            f"<title>{escape(p.tip)}</title></circle>"
        )
    return frame.svg(title)


def _padded(low: float, high: float) -> tuple[float, float]:
    low, high = _widened(low, high)
    return low - 0.03 * (high - low), high + 0.03 * (high - low)


def histogram(
    groups: Sequence[tuple[str, Sequence[int], str]],
    edges: Sequence[float],
    *,
    title: str,
    x_label: str,
    y_label: str = "rows",
) -> str:
    """Counts in bins, one outline a group: `(name, counts, kind)` with `len(edges) - 1` counts each."""
    top = max((max(counts, default=0) for _, counts, _ in groups), default=1) or 1
    frame = _Frame((edges[0], edges[-1]), (0, top * 1.06))
    frame.axes(x_label, y_label)
    for name, counts, kind in groups:
        for k, count in enumerate(counts):
            if count:
                left, right, up = frame.x(edges[k]), frame.x(edges[k + 1]), frame.y(count)
                tip = f"{name} {short(edges[k])} to {short(edges[k + 1])}: {count:,}"
                frame.parts.append(
                    f'<rect class="bar {kind}" x="{left:.1f}" y="{up:.1f}" width="{max(right - left - 0.6, 0.6):.1f}" '
                    f'height="{_HEIGHT - _BOTTOM - up:.1f}"><title>{escape(tip)}</title></rect>'
                )
    shown = [(name, kind) for name, _, kind in groups if name and len(groups) > 1]
    for row, (name, kind) in enumerate(shown):
        at = _TOP + 10 + 14 * row
        frame.parts.append(f'<rect class="bar {kind}" x="{_WIDTH - 26}" y="{at - 7}" width="10" height="9"/>')
        frame.parts.append(
            f'<text class="tick halo" x="{_WIDTH - 31}" y="{at + 1}" text-anchor="end">{escape(name)}</text>'
        )
    return frame.svg(title)


def confusion(counts: Sequence[Sequence[int]], labels: Sequence[str], *, title: str) -> str:
    """A confusion matrix: rows are true classes, columns predicted ones, shade is the share of the true class."""
    k = len(labels)
    longest = max((len(label) for label in labels), default=1)
    left = min(110.0, 14.0 + 6.2 * min(longest, 17))
    side = min(52.0, (_WIDTH - left - 4) / max(k, 1))
    numbers, flat = side >= 24, side >= 40
    height = 18 + k * side + (20 if flat else 40)
    parts = [f'<text class="label" x="{left}" y="11">predicted &#8594;, true &#8595;</text>']
    for r, row in enumerate(counts):
        total = sum(row)
        at = 18 + r * side
        name = _cut(labels[r], 17)
        parts.append(
            f'<text class="tick" x="{left - 5}" y="{at + side / 2 + 3.5:.1f}" text-anchor="end">{escape(name)}</text>'
        )
        for c, count in enumerate(row):
            share = count / total if total else 0.0
            kind = "right" if r == c else "wrong"
            tip = f"true {labels[r]}, predicted {labels[c]}: {count:,} ({share:.1%} of the true class)"
            square = f'x="{left + c * side:.1f}" y="{at:.1f}" width="{side - 1:.1f}" height="{side - 1:.1f}"'
            parts.append(
                f'<rect class="cell" {square}/>'
                f'<rect class="{kind}" fill-opacity="{share:.3f}" {square}><title>{escape(tip)}</title></rect>'
            )
            if numbers and count:
                strong = " on" if share > 0.55 else ""
                parts.append(
                    f'<text class="tick{strong}" pointer-events="none" x="{left + (c + 0.5) * side - 0.5:.1f}" '
                    f'y="{at + side / 2 + 3.5:.1f}" text-anchor="middle">{short(count)}</text>'
                )
    bottom = 18 + k * side
    for c, label in enumerate(labels):
        at = left + (c + 0.5) * side
        if flat:
            parts.append(
                f'<text class="tick" x="{at:.1f}" y="{bottom + 13:.1f}" text-anchor="middle">'
                f"{escape(_cut(label, 9))}</text>"
            )
        else:
            parts.append(
                f'<text class="tick" transform="translate({at + 3:.1f} {bottom + 6:.1f}) rotate(-90)" '
                f'text-anchor="end">{escape(_cut(label, 6))}</text>'
            )
    return _svg(parts, _WIDTH, height, title)


def ranges(
    marks: Sequence[Mark], *, title: str, x_label: str, reference: float | None = None, reference_name: str = ""
) -> str:
    """Values with their intervals, one row each (a forest plot), and a reference line."""
    ends = [v for m in marks for v in (m.value, m.low, m.high) if v is not None]
    if reference is not None:
        ends.append(reference)
    frame, parts, wide, left = _list_frame(marks, _padded(min(ends, default=0.0), max(ends, default=1.0)))
    bottom = 8 + _ROW * len(marks)
    parts += _list_axis(frame, bottom, left, wide, x_label)
    if reference is not None:
        at = _list_x(frame, reference, left, wide)
        parts.append(f'<line class="line baseline" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{bottom}"/>')
        if reference_name:
            parts.append(
                f'<text class="tick halo" x="{at:.1f}" y="{bottom + 40}" text-anchor="middle">'
                f"{escape(reference_name)}</text>"
            )
    for row, mark in enumerate(marks):
        at = 8 + _ROW * (row + 0.5)
        parts.append(_row_texts(mark, at, left, wide))
        tip = escape(f"{mark.label}: {'undefined' if mark.value is None else short(mark.value)} {mark.note}")
        if mark.low is not None and mark.high is not None:
            x0, x1 = _list_x(frame, mark.low, left, wide), _list_x(frame, mark.high, left, wide)
            parts.append(
                f'<line class="whisker {mark.kind}" x1="{x0:.1f}" x2="{x1:.1f}" y1="{at}" y2="{at}">'
                f"<title>{tip}</title></line>"
            )
        if mark.value is not None:
            parts.append(
                f'<circle class="dot {mark.kind}" cx="{_list_x(frame, mark.value, left, wide):.1f}" cy="{at}" r="4">'
                f"<title>{tip}</title></circle>"
            )
    return _svg(parts, _WIDTH, bottom + (48 if reference_name else 34), title)


def bars(marks: Sequence[Mark], *, title: str, x_label: str) -> str:
    """Lengths, one row each, from zero."""
    values = [mark.value for mark in marks if mark.value is not None]
    frame, parts, wide, left = _list_frame(marks, _widened(min([0.0, *values]), max([0.0, *values])))
    bottom = 8 + _ROW * len(marks)
    parts += _list_axis(frame, bottom, left, wide, x_label)
    zero = _list_x(frame, 0.0, left, wide)
    for row, mark in enumerate(marks):
        at = 8 + _ROW * (row + 0.5)
        parts.append(_row_texts(mark, at, left, wide))
        if mark.value is not None:
            end = _list_x(frame, mark.value, left, wide)
            place = f'x="{min(zero, end):.1f}" y="{at - 6}" width="{max(abs(end - zero), 0.8):.1f}" height="12" rx="2"'
            tip = escape(f"{mark.label}: {short(mark.value)}")
            parts.append(f'<rect class="bar {mark.kind}" {place}><title>{tip}</title></rect>')
    return _svg(parts, _WIDTH, bottom + 34, title)


def _list_frame(
    marks: Sequence[Mark], span: tuple[float, float]
) -> tuple[tuple[float, float], list[str], float, float]:
    longest = max((min(len(mark.label), _LABEL) for mark in marks), default=1)
    left = 12.0 + 6.0 * longest
    noted = any(mark.note for mark in marks)
    return _widened(*span), [], _WIDTH - left - (_NOTE if noted else _RIGHT), left


def _list_x(frame: tuple[float, float], value: float, left: float, wide: float) -> float:
    low, high = frame
    return left + (min(max(value, low), high) - low) / (high - low) * wide


def _list_axis(frame: tuple[float, float], bottom: float, left: float, wide: float, x_label: str) -> list[str]:
    parts = []
    for tick in ticks(*frame):
        at = _list_x(frame, tick, left, wide)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 13}" text-anchor="middle">{short(tick)}</text>')
    parts.append(
        f'<text class="label" x="{left + wide / 2}" y="{bottom + 28}" text-anchor="middle">{escape(x_label)}</text>'
    )
    return parts


def _row_texts(mark: Mark, at: float, left: float, wide: float) -> str:
    label = (
        f'<text class="tick" x="{left - 8}" y="{at + 3.5}" text-anchor="end">{escape(_cut(mark.label, _LABEL))}</text>'
    )
    note = f'<text class="tick" x="{left + wide + 8}" y="{at + 3.5}">{escape(mark.note)}</text>' if mark.note else ""
    return label + note


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "\u2026"


@dataclass(frozen=True)
class Stair:
    """A value that changes in steps: `(x, y from there on, text of that step)`; `kind` colours it, `filled` tints what is below.

    `end` is where it ends; without it the line goes on to the frame's end.
    """

    name: str
    steps: Sequence[tuple[float, float, str]]
    kind: str = "model"
    filled: bool = False
    end: float | None = None


def stairs(
    series: Sequence[Stair],
    *,
    title: str,
    xs: tuple[float, float],
    marks: Sequence[tuple[float, str]],
    top: float = 100.0,
    unit: str = " %",
) -> str:
    """Values over time that hold until they change, in one wide frame from 0 to `top`; each line has its name at its end.

    Args:
        xs: ends of the horizontal axis.
        marks: places on it, each with its text.
    """
    width, height, left, right, above, below = 760.0, 250.0, 46.0, 64.0, 12.0, 30.0
    (x0, x1), bottom = _widened(*xs), height - below

    def across(value: float) -> float:
        return left + (min(max(value, x0), x1) - x0) / (x1 - x0) * (width - left - right)

    def up(value: float) -> float:
        return bottom - min(max(value, 0.0), top) / top * (bottom - above)

    parts = []
    for tick in ticks(0.0, top):
        at = up(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{at + 3.5:.1f}" text-anchor="end">{short(tick)}{escape(unit)}</text>'
        )
    for place, text in marks:
        at = across(place)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{above}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    ends = []
    for one in series:
        if not one.steps:
            continue
        path = f"M{across(one.steps[0][0]):.1f},{up(one.steps[0][1]):.1f}"
        for x, y, _ in one.steps[1:]:
            path += f"H{across(x):.1f}V{up(y):.1f}"
        path += f"H{across(x1 if one.end is None else one.end):.1f}"
        if one.filled:
            area = f"{path}V{bottom:.1f}H{across(one.steps[0][0]):.1f}Z"
            parts.append(f'<path class="dot {one.kind}" fill-opacity=".14" d="{area}"/>')
        parts.append(f'<path class="line {one.kind}" d="{path}"><title>{escape(one.name)}</title></path>')
        for x, y, text in one.steps:
            if text:
                parts.append(
                    f'<circle class="dot {one.kind}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.4">'
                    f"<title>{escape(text)}</title></circle>"
                )
        if one.end is None:
            ends.append((up(one.steps[-1][1]), one))
        else:
            spot = f'x="{across(one.end) + 4:.1f}" y="{up(one.steps[-1][1]) - 5:.1f}"'
            parts.append(f'<text class="tick halo" {spot}>{escape(_cut(one.name, 9))}</text>')
    lowest = above - 13.0
    for at, one in sorted(ends, key=lambda end: end[0]):
        lowest = max(at, lowest + 13.0)  # names that would lie upon each other move down
        parts.append(
            f'<text class="tick halo" x="{width - right + 7}" y="{min(lowest, height - 4) + 3.5:.1f}">{escape(_cut(one.name, 9))}</text>'
        )
    return _svg(parts, width, height, title)
