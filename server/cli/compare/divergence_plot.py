"""A plot of divergence by position, as SVG that needs nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence

from manylora.server.cli.plain_text import as_html

_WIDTH, _HEIGHT = 720, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
_LOWEST = -8  # power of ten at the bottom; what is smaller, and 0, lies on it

Line = tuple[str, Sequence[float]]  # label, value by position


def divergence_plot(lines: Sequence[Line], thresholds: Sequence[tuple[str, float]]) -> str:
    """An SVG of divergences by position over a logarithmic axis, with thresholds as dashed lines."""
    highest = max(1, math.ceil(max((_power(v) for _, values in lines for v in values), default=0)))
    count = max(len(values) for _, values in lines)
    frame = _Frame(count, highest)
    parts = [*frame.grid(), *(frame.line(index, *line) for index, line in enumerate(lines))]
    parts += [frame.threshold(name, value) for name, value in thresholds]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="KL divergence by position">'
        + "".join(parts)
        + "</svg>"
    )


def _power(value: float) -> float:
    return max(_LOWEST, math.log10(value)) if value > 0 else _LOWEST


class _Frame:
    """Where positions and values lie in the picture."""

    def __init__(self, count: int, highest: int) -> None:
        self.count = count
        self.highest = highest

    def x(self, position: int) -> float:
        """From the left, for a position in the reference."""
        inner = _WIDTH - _LEFT - _RIGHT
        return _LEFT + (inner / 2 if self.count == 1 else inner * position / (self.count - 1))

    def y(self, value: float) -> float:
        """From the top, for a divergence."""
        inner = _HEIGHT - _TOP - _BOTTOM
        return _TOP + inner * (self.highest - _power(value)) / (self.highest - _LOWEST)

    def grid(self) -> list[str]:
        """Lines and labels of both axes."""
        right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
        parts = []
        for power in range(_LOWEST, self.highest + 1, 2):
            y = self.y(10.0**power)
            label = "0" if power == _LOWEST else "1" if power == 0 else f"1e{power}"
            parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        step = max(1, round(self.count / 8))
        for position in range(0, self.count, step):
            x = self.x(position)
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{position}</text>')
        parts.append(f'<text x="{right}" y="{_HEIGHT - 3}" text-anchor="end">token of the reference</text>')
        parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 3}">KL, nats</text>')
        return parts

    def threshold(self, name: str, value: float) -> str:
        """A dashed line with its name."""
        y, right = self.y(value), _WIDTH - _RIGHT
        return (
            f'<line class="limit" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
            f'<text class="limit" x="{right}" y="{y - 4:.1f}" text-anchor="end">{as_html(name)}</text>'
        )

    def line(self, index: int, label: str, values: Sequence[float]) -> str:
        """The divergences of one target, with a dot and a hint at each position."""
        points = " ".join(f"{self.x(i):.1f},{self.y(v):.1f}" for i, v in enumerate(values))
        dots = "".join(
            f'<circle cx="{self.x(i):.1f}" cy="{self.y(v):.1f}" r="2.5"><title>{as_html(label)}, '
            f"token {i}: {v:.3g}</title></circle>"
            for i, v in enumerate(values)
        )
        return f'<g class="series s{index}"><polyline points="{points}"/>{dots}</g>'
