"""The one text table of the project: for logs, for reports, for a terminal and for a pipe."""

from collections.abc import Sequence

__all__ = ["text_table"]


def text_table(rows: Sequence[Sequence[str]], *, left_columns: int | None = None) -> str:
    """Return rows as aligned lines of text, with two spaces between columns.

    Args:
        rows: The cells, the headings first; line breaks inside a cell become spaces.
        left_columns: How many columns, counted from the first, are aligned left; the others are aligned right, as
            numbers are. None aligns all of them left.
    """
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = len(widths) if left_columns is None else left_columns
    aligned = (
        [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    )
    return "\n".join("  ".join(row).rstrip() for row in aligned)
