"""The Pareto plot as inline SVG: what each recipe costs, against what it loses."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

WIDTH, HEIGHT = 760, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 20, 48
_TICKS: Final = 6

Told = Mapping[str, Any]


def pareto_plot(points: Sequence[Told], *, cost: str, cost_name: str, loss_name: str, allowed: float) -> str:
    """The points by `cost` (a key: "seconds" or "bytes", told in ms or MB) and drop, with their intervals.

    A point without cost is left out. What loses far more than is allowed stands at the upper edge.
    """
    shown = [point for point in points if point.get(cost) is not None]
    if not shown:
        return "<p>No mix was measured.</p>"
    scale = 1e3 if cost == "seconds" else 1e-6
    costs = [float(point[cost]) * scale for point in shown]
    top = _top(shown, allowed)
    low = min(0.0, *(max(point["drop"]["low"], -top) for point in shown))
    x = _Axis(min(costs) * 0.9, max(costs) * 1.05, _LEFT, WIDTH - _RIGHT)
    y = _Axis(low, top, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(cost_name)} against '
        f'{html.escape(loss_name)}">',
        *_grid(x, y, cost_name, loss_name),
        _budget(y, allowed),
        _front_line(shown, costs, x, y),
        *(_mark(point, value, x, y) for point, value in zip(shown, costs, strict=True)),
        "</svg>",
    ]
    return "\n".join(parts)


class _Axis:
    """Values to pixels, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.step = _round_step((high - low) / _TICKS or 1.0)
        self.low = math.floor(low / self.step) * self.step
        self.high = math.ceil(high / self.step) * self.step
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self._start + (inside - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + place * self.step for place in range(count + 1)]


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return min(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= rough)


def _top(points: Sequence[Told], allowed: float) -> float:
    highest = max(float(point["drop"]["high"]) for point in points)
    return min(max(highest, allowed * 1.5, 1e-9), max(allowed * 6, 1e-9)) if allowed else max(highest, 1e-9)


def _grid(x: _Axis, y: _Axis, cost_name: str, loss_name: str) -> list[str]:
    parts = []
    for value in x.ticks():
        parts.append(
            f'<line class="grid" x1="{x.at(value):.1f}" x2="{x.at(value):.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
        )
        parts.append(f'<text x="{x.at(value):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{value:.4g}</text>')
    for value in y.ticks():
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y.at(value):.1f}" y2="{y.at(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y.at(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    middle, centre = (_TOP + HEIGHT - _BOTTOM) / 2, (_LEFT + WIDTH - _RIGHT) / 2
    return [
        *parts,
        f'<text x="{centre}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(cost_name)}</text>',
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor="middle">{html.escape(loss_name)}</text>',
    ]


def _budget(y: _Axis, allowed: float) -> str:
    place = y.at(allowed)
    return (
        f'<line class="budget" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        f'<text class="budget-text" x="{WIDTH - _RIGHT - 4}" y="{place - 6:.1f}" text-anchor="end">allowed</text>'
    )


def _front_line(points: Sequence[Told], costs: Sequence[float], x: _Axis, y: _Axis) -> str:
    places = sorted(
        (x.at(value), y.at(point["drop"]["value"]))
        for point, value in zip(points, costs, strict=True)
        if point["front"]
    )
    path = " ".join(f"{left:.1f},{down:.1f}" for left, down in places)
    return f'<polyline class="front" points="{path}"/>' if len(places) > 1 else ""


def _mark(point: Told, value: float, x: _Axis, y: _Axis) -> str:
    drop = point["drop"]
    left, down = x.at(value), y.at(drop["value"])
    kind = "returned" if point["verdict"] == "returned" else "baseline" if not point["recipe"] else "tried"
    told = f"{point['name']}: {value:.4g}, loses {drop['value']:.3g} ({drop['low']:.3g} to {drop['high']:.3g})"
    low, high = y.at(drop["low"]), y.at(drop["high"])
    bar = f'<line class="bar" x1="{left:.1f}" x2="{left:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    beside = f'text-anchor="end" x="{left - 9:.1f}"' if left > WIDTH * 0.6 else f'x="{left + 9:.1f}"'
    label = (
        f'<text class="label" {beside} y="{down - 8:.1f}">{html.escape(point["name"])}</text>'
        if kind != "tried"
        else ""
    )
    radius = 5 if kind == "tried" else 7
    circle = f'<circle cx="{left:.1f}" cy="{down:.1f}" r="{radius}"><title>{html.escape(told)}</title></circle>'
    return f'<g class="{kind}">{bar}{circle}{label}</g>'
