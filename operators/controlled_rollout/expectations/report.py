"""The report on the collected data of one version, for people: what was expected, what was found, on which rows."""

import html
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from controlled_rollout.expectations.result import ExpectationResult, Validation
from controlled_rollout.visible_text import visible_text

__all__ = ["DataReport"]

TABLE: Final = ("expected", "result", "rows", "unexpected", "found", "examples (request: value)")
STYLE: Final = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.3em .6em;"
    "text-align:left;vertical-align:top}.failed{background:#fdd}.unknown{background:#ffd}"
)
# Whatever a value does to the page, it loads and runs nothing.
POLICY: Final = (
    '<meta http-equiv="Content-Security-Policy" '
    'content="default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;">'
)
MARKDOWN: Final = frozenset("\\`*[]|!")


@dataclass(frozen=True)
class DataReport:
    """What a suite found in what one version has collected.

    Attributes:
        endpoint, version: Whose data it is.
        suite: The suite's name.
        since, until: When the requests arrived.
        validations: By collection the results.
        notes: What was missing of the data, each in a sentence.
    """

    endpoint: str
    version: str
    suite: str
    since: datetime
    until: datetime
    validations: dict[str, Validation]
    notes: tuple[str, ...] = ()

    @property
    def results(self) -> tuple[ExpectationResult, ...]:
        """The results of all collections."""
        return tuple(result for one in self.validations.values() for result in one.results)

    @property
    def failed(self) -> tuple[ExpectationResult, ...]:
        """The expectations that are not fulfilled."""
        return tuple(one for one in self.results if one.success is False)

    @property
    def unseen(self) -> tuple[ExpectationResult, ...]:
        """The expectations that could not be evaluated."""
        return tuple(one for one in self.results if one.success is None)

    @property
    def headline(self) -> str:
        """The result in a line."""
        fulfilled = len(self.results) - len(self.failed) - len(self.unseen)
        return f"{fulfilled} fulfilled, {len(self.failed)} not fulfilled, {len(self.unseen)} could not be evaluated"

    def sentences(self, results: tuple[ExpectationResult, ...]) -> str:
        """Return some results in words, for a task's log or the reason of its failure: no values that callers sent."""
        return "; ".join(f"{one.name}: {one.found}" for one in results)

    def as_markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [f"# {_markdown(self._title())}", "", f"{self.headline}.", ""]
        lines += [f"- {_markdown(fact)}" for fact in self._fact_lines()]
        for collection, rows in self._tables():
            lines += ["", f"## {collection}", "", "| " + " | ".join(TABLE) + " |", "|" + " --- |" * len(TABLE)]
            lines += ["| " + " | ".join(map(_markdown, cells)) + " |" for _, cells in rows]
        return "\n".join(lines) + "\n"

    def as_html(self) -> str:
        """Return the report as one page of HTML, which loads nothing."""
        title = _html(self._title())
        parts = [
            f'<!doctype html><html lang="en"><meta charset="utf-8">{POLICY}<title>{title}</title><style>{STYLE}</style>'
        ]
        parts.append(f"<h1>{title}</h1><p>{_html(self.headline)}.</p><ul>")
        parts += [f"<li>{_html(fact)}</li>" for fact in self._fact_lines()]
        parts.append("</ul>")
        for collection, rows in self._tables():
            parts.append(f"<h2>{_html(collection)}</h2><table><tr>")
            parts += [f"<th>{name}</th>" for name in TABLE]
            for kind, cells in rows:
                parts.append(f'</tr><tr class="{kind}">')
                parts += [f"<td>{_html(cell)}</td>" for cell in cells]
            parts.append("</tr></table>")
        return "\n".join([*parts, "</html>"]) + "\n"

    def _title(self) -> str:
        """Return the title."""
        return f"{self.suite}: collected data of {self.endpoint}/{self.version}"

    def _fact_lines(self) -> Iterator[str]:
        """Yield what the results are about, and what was missing."""
        yield f"requests from {self.since:%Y-%m-%d %H:%M:%S} to {self.until:%Y-%m-%d %H:%M:%S} UTC"
        for collection, validation in self.validations.items():
            sampled = f", of {100 * validation.part:.3g} % of the requests" if validation.part < 1 else ""
            yield f"{validation.rows:,} rows of {collection}{sampled}"
        yield from self.notes

    def _tables(self) -> Iterator[tuple[str, list[tuple[str, tuple[str, ...]]]]]:
        """Yield by collection the rows of its table, each with its kind."""
        kinds = {True: "fulfilled", False: "failed", None: "unknown"}
        words = {True: "fulfilled", False: "NOT fulfilled", None: "not evaluated"}
        for collection, validation in self.validations.items():
            rows = []
            for result in validation.results:
                numbers = ("" if count is None else f"{count:,}" for count in (result.rows, result.unexpected))
                examples = ", ".join(f"{request}: {json.dumps(value)}" for request, value in result.examples)
                cells = (result.name, words[result.success], *numbers, result.fault or _found_text(result), examples)
                rows.append((kinds[result.success], cells))
            yield collection, rows


def _found_text(result: ExpectationResult) -> str:
    """Return what was found, in words; of the whole the value itself."""
    if result.rows is None or result.unexpected is None:
        return f"observed {json.dumps(result.observed)[:500]}"
    return result.found


def _html(text: str) -> str:
    """Return a text that is text in HTML, all of it visible."""
    return html.escape(visible_text(text))


def _markdown(text: str) -> str:
    """Return a text that is text in Markdown: no table's cell, link, image, code or HTML."""
    escaped = html.escape(" ".join(visible_text(text).split()), quote=False)
    return "".join(f"\\{character}" if character in MARKDOWN else character for character in escaped)
