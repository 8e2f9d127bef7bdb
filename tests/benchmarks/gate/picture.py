"""Grouped bars as SVG: small enough not to need a plotting library."""

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#0b6e4f", "#d1495b", "#f08a9b", "#7a1f2b", "#edae49", "#8d6a9f", "#66a5ad")
GROUP, HEIGHT, LEFT, TOP, BOTTOM = 190, 260, 50, 90, 60


def bars(
    title: str,
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    highest: float,
    line: float | None = None,
) -> str:
    """Return a picture of one group of bars per name, one bar per series.

    Args:
        title: What is shown, with its unit.
        groups: The groups' names.
        series: By name one value per group.
        highest: The value at full height.
        line: Where a line is drawn across, if anywhere.
    """
    width = LEFT + GROUP * len(groups) + 20
    bar = (GROUP - 24) / len(series)
    parts = [_text(LEFT, 20, title, size=15, anchor="start")]
    for index, name in enumerate(series):
        left, top = LEFT + index % 4 * 195, 34 + index // 4 * 20
        parts.append(f'<rect x="{left}" y="{top}" width="12" height="12" fill="{COLOURS[index]}"/>')
        parts.append(_text(left + 17, top + 10, name, anchor="start"))
    for tick in range(5):
        y = TOP + HEIGHT * (1 - tick / 4)
        parts.append(f'<line x1="{LEFT}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{highest * tick / 4:g}", anchor="end"))
    for position, group in enumerate(groups):
        for index, values in enumerate(series.values()):
            height = max(1.0, HEIGHT * min(values[position], highest) / highest)
            x = LEFT + GROUP * position + 12 + bar * index
            words = escape(f"{list(series)[index]}: {values[position]:.3g}")
            parts.append(
                f'<rect x="{x:.1f}" y="{TOP + HEIGHT - height:.1f}" width="{bar - 2:.1f}" height="{height:.1f}" '
                f'fill="{COLOURS[index]}"><title>{words}</title></rect>'
            )
        for row, word in enumerate(group.split(", ")):
            parts.append(_text(LEFT + GROUP * (position + 0.5), TOP + HEIGHT + 18 + 16 * row, word))
    if line is not None:
        y = TOP + HEIGHT * (1 - line / highest)
        parts.append(f'<line x1="{LEFT}" x2="{width - 20}" y1="{y}" y2="{y}" stroke="#333" stroke-dasharray="4 3"/>')
    body = "\n".join(parts)
    size = f"0 0 {width} {TOP + HEIGHT + BOTTOM}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'
