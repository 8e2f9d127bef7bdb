"""Charts below each other as one SVG: lines and bars over time, without a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

GOOD: Final = "#0b6e4f"
BAD: Final = "#d1495b"
GREY: Final = "#8a8f98"
BLUE: Final = "#2b6cb0"

WIDTH, LEFT, RIGHT, TOP, GAP = 700, 64, 36, 46, 32


@dataclass(frozen=True)
class Line:
    """One line of a chart; without a name it is not in the legend."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    name: str = ""
    dash: str = ""
    width: float = 1.8


@dataclass(frozen=True)
class Bars:
    """Bars on each other: by position the heights, lowest part first."""

    x: Sequence[float]
    heights: Sequence[Sequence[float]]
    colours: Sequence[str]
    names: Sequence[str]
    width: float


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: What is shown, with its unit.
        x_range: The horizontal axis' ends.
        y_range: The vertical axis' ends; what is outside is drawn at the end.
        x_ticks, y_ticks: Where values are written, with their words.
        lines: The lines.
        bars: The bars, if any.
        levels: Horizontal dashed lines with a word each.
        moments: Vertical dashed lines with a word each.
        log: Whether the vertical axis is logarithmic.
        height: In pixels.
    """

    title: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line] = ()
    bars: Bars | None = None
    levels: Sequence[tuple[float, str]] = ()
    moments: Sequence[tuple[float, str]] = ()
    log: bool = False
    height: int = 170


@dataclass
class _Frame:
    """Where a panel's values are in the picture."""

    panel: Panel
    top: float
    parts: list[str] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high = self.panel.x_range
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.panel.y_range
        value = min(max(value, low), high)
        if self.panel.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.top + self.panel.height * (1 - (value - low) / (high - low))


def picture(panels: Sequence[Panel]) -> str:
    """Return the panels below each other."""
    parts: list[str] = []
    top = 0.0
    for panel in panels:
        top += TOP
        parts += _panel(panel, top)
        top += panel.height + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:.0f}" font-family="sans-serif">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(panel: Panel, top: float) -> list[str]:
    frame = _Frame(panel, top)
    parts = frame.parts
    bottom = top + panel.height
    parts.append(_text(LEFT, top - 28, panel.title, size=14, anchor="start", weight="bold"))
    _legend(frame)
    for value, word in panel.y_ticks:
        y = frame.y(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>')
        parts.append(_text(LEFT - 7, y + 4, word, anchor="end"))
    for value, word in panel.x_ticks:
        parts.append(_text(frame.x(value), bottom + 18, word))
    if panel.bars is not None:
        _bars(frame, panel.bars)
    for line in panel.lines:
        _line(frame, line)
    for value, word in panel.levels:
        y = frame.y(value)
        parts.append(_dashed(LEFT, WIDTH - RIGHT, y, y))
        parts.append(_text(WIDTH - RIGHT - 4, y - 5, word, anchor="end"))
    for value, word in panel.moments:
        x = frame.x(value)
        parts.append(_dashed(x, x, top, bottom))
        is_left = x < LEFT + 90
        parts.append(_text(x + 5 if is_left else x - 5, top + 12, word, anchor="start" if is_left else "end"))
    return parts


def _legend(frame: _Frame) -> None:
    named = [(line.name, line.colour, line.dash) for line in frame.panel.lines if line.name]
    if frame.panel.bars is not None:
        named += [
            (name, colour, "") for name, colour in zip(frame.panel.bars.names, frame.panel.bars.colours, strict=True)
        ]
    x = float(LEFT)
    for name, colour, dash in named:
        y = frame.top - 13
        frame.parts.append(
            f'<line x1="{x:.0f}" x2="{x + 20:.0f}" y1="{y:.0f}" y2="{y:.0f}" stroke="{colour}" stroke-width="3"'
            f' stroke-dasharray="{dash}"/>'
        )
        frame.parts.append(_text(x + 26, y + 4, name, anchor="start"))
        x += 44 + 6.4 * len(name)


def _line(frame: _Frame, line: Line) -> None:
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in zip(line.x, line.y, strict=True))
    dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
    frame.parts.append(
        f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="{line.width}"{dash}/>'
    )


def _bars(frame: _Frame, bars: Bars) -> None:
    for position, heights in zip(bars.x, bars.heights, strict=True):
        below = 0.0
        for height, colour in zip(heights, bars.colours, strict=True):
            low, high = frame.y(below), frame.y(below + height)
            left = frame.x(position - bars.width / 2)
            width = frame.x(position + bars.width / 2) - left
            frame.parts.append(
                f'<rect x="{left:.1f}" y="{high:.1f}" width="{width:.1f}" height="{low - high:.1f}" fill="{colour}"/>'
            )
            below += height


def _dashed(x1: float, x2: float, y1: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" stroke="#333" stroke-width="1.2" '
        'stroke-dasharray="5 4"/>'
    )


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "middle", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )
