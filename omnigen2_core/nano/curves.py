"""Curves of shares as SVG pictures, written without a library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, Sequence

COLOURS = ("#2563c9", "#d9622b", "#2f8f4e", "#8e44ad", "#c0392b", "#8d6e3a", "#d64b9a", "#6b7280", "#159a9c", "#b39b00")


def floor_of(shares: Iterable[float]) -> float:
    """Where an axis of shares may begin: a tenth at or below the least of them, at most 0.9."""
    return min(0.9, 0.1 * int(10 * min(shares)))


@dataclass(frozen=True)
class Panel:
    """A frame in a picture, in pixels, for shares from `lowest` to 1 over values from `x[0]` to `x[1]`.

    log: equal distances are equal factors; values are above 0.
    """

    left: int
    top: int
    width: int
    height: int
    x: tuple[float, float]
    lowest: float
    log: bool = False

    def at(self, x: float, share: float) -> tuple[str, str]:
        """The place of a point."""
        first, last = self.x
        if self.log:
            x, first, last = map(math.log, (x, first, last))
        across = (x - first) / (last - first)
        down = 1 - (share - self.lowest) / (1 - self.lowest)
        return f"{self.left + across * self.width:.1f}", f"{self.top + down * self.height:.1f}"

    def frame(self, title: str, x_name: str, ticks: Sequence[float]) -> list[str]:
        """Border, title and axes."""
        bottom = self.top + self.height
        parts = [
            f'<text x="{self.left}" y="{self.top - 14}" font-weight="bold">{title}</text>',
            f'<text x="{self.left + self.width / 2}" y="{bottom + 34}" text-anchor="middle">{x_name}</text>',
            f'<rect x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}" fill="none" stroke="#999"/>',
            f'<text x="{self.left - 6}" y="{self.top + 5}" text-anchor="end">100 %</text>',
            f'<text x="{self.left - 6}" y="{bottom}" text-anchor="end">{100 * self.lowest:.0f} %</text>',
        ]
        for x in ticks:
            across, _ = self.at(x, self.lowest)
            parts.append(f'<text x="{across}" y="{bottom + 16}" text-anchor="middle" font-size="10">{x:g}</text>')
        return parts

    def line(self, xs: Sequence[float], shares: Sequence[float], colour: str) -> list[str]:
        """Points, connected."""
        points = [self.at(x, share) for x, share in zip(xs, shares)]
        joined = " ".join(map(",".join, points))
        parts = [f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>']
        return parts + [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]

    def interval(self, x: float, low: float, high: float, colour: str) -> str:
        """An upright bar from `low` to `high`, as far as it is in the frame."""
        (across, bottom), (_, top) = self.at(x, max(low, self.lowest)), self.at(x, high)
        return f'<line x1="{across}" y1="{bottom}" x2="{across}" y2="{top}" stroke="{colour}" stroke-opacity="0.5"/>'

    def diamond(self, x: float, share: float, colour: str) -> str:
        """A point that stands out."""
        across, down = map(float, self.at(x, share))
        corners = " ".join(f"{across + dx:.1f},{down + dy:.1f}" for dx, dy in ((0, -6), (6, 0), (0, 6), (-6, 0)))
        return f'<polygon points="{corners}" fill="{colour}"/>'

    def ring(self, x: float, share: float, colour: str) -> str:
        """A point that stands back."""
        across, down = self.at(x, share)
        return f'<circle cx="{across}" cy="{down}" r="5" fill="none" stroke="{colour}"/>'

    def note(self, x: float, share: float, text: str, colour: str) -> str:
        """A few letters below a point: to its right, or to its left where the frame ends."""
        across, down = map(float, self.at(x, share))
        anchor, side = ("start", 5) if across + 8 * len(text) < self.left + self.width else ("end", -5)
        place = f'x="{across + side:.1f}" y="{down + 13:.1f}" text-anchor="{anchor}"'
        return f'<text {place} font-size="10" fill="{colour}">{text}</text>'

    def legend(self, names: Iterable[str]) -> list[str]:
        """The names of the lines in their colours, upwards from the lower right corner."""
        x, y = self.left + self.width - 6, self.top + self.height - 8
        return [
            f'<text x="{x}" y="{y - 16 * i}" text-anchor="end" fill="{colour}">{name}</text>'
            for i, (name, colour) in enumerate(zip(names, COLOURS))
        ]


def picture(width: int, height: int, parts: Iterable[str]) -> str:
    """The whole file."""
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
    )
    return "\n".join([opening, '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>\n"])
