"""Line charts as SVG, with nothing but text in them: they are shown inline, without scripts and without network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["COLOURS", "chart"]

# Okabe & Ito (2008), which people of all kinds of colour vision tell apart; its yellow is too pale for lines.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b", "#17becf", "#bcbd22")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 300, 54, 12, 28, 44
STEPS = (1, 2, 5)  # of ticks, times powers of ten
MOST_TICKS = 8  # of budgets, each of which is then one

Series = Mapping[str, Sequence[tuple[float, float]]]


def chart(title: str, x_name: str, series: Series) -> str:
    """One line a name, through its points (x, y) in their order; both axes logarithmic. Points that are not positive
    are left out."""
    lines = {name: [(x, y) for x, y in points if x > 0 and y > 0] for name, points in series.items()}
    points = [point for line in lines.values() for point in line]
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = (_range([p[axis] for p in points]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x_low) / math.log(x_high / x_low)
        up = math.log(y / y_low) / math.log(y_high / y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>']
    for value in _ticks(y_low, y_high):
        y = place(x_low, value)[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="rule"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
    budgets = sorted({x for x, _ in points if x == int(x)})
    for value in budgets if len(budgets) == len({x for x, _ in points}) <= MOST_TICKS else _ticks(x_low, x_high):
        x = place(value, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>')
    for (name, line), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in line:
            across, down = place(x, y)
            told = f"<title>{escape(name)}: {y:.4g} at {x:.4g}</title>"
            parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.5" fill="{colour}">{told}</circle>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little wider than the values are."""
    low, high = min(values), max(values)
    margin = (high / low) ** 0.05 if high > low else 1.5
    return low / margin, high * margin


def _ticks(low: float, high: float) -> list[float]:
    """Numbers that are easily read: over decades, else evenly."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    sizes = [step * 10.0**power for power in powers for step in STEPS]
    if high > 5 * low:
        return [size for size in sizes if low <= size <= high]
    room = (high - low) / 3
    size = 10.0 ** math.floor(math.log10(room))
    size *= max(step for step in STEPS if step * size <= room)
    return [k * size for k in range(math.ceil(low / size), math.floor(high / size) + 1)]
