"""Queries for labels in the styles of drivers that are not installed here."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseHook

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.hooks import sql_labels
from controlled_rollout.hooks.sql_labels import SqlLabels

T0 = datetime(2026, 11, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
QUERY = r"""SELECT id::text AS correlation_id, label, arrived FROM outcomes
WHERE arrived >= :since AND arrived < :until AND endpoint = :endpoint AND :since <> :until AND note LIKE '10%\:x'"""


class Cursor:
    """A cursor that answers with the same rows for ever, or once."""

    description = (("CORRELATION_ID",), ("LABEL",), ("ARRIVED",))

    def __init__(self, rows: Iterator[list[Any]]) -> None:
        self.rows = rows
        self.executed: tuple[Any, ...] = ()

    def execute(self, *arguments: Any) -> None:
        self.executed = arguments

    def fetchmany(self, size: int) -> list[Any]:
        return next(self.rows, [])


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Use a driver of a style, with its rows; return its cursor."""

    def use(style: str | None, rows: Iterator[list[Any]], placeholder: str = "%s") -> Cursor:
        module = ModuleType("somedriver")
        if style is not None:
            module.paramstyle = style  # type: ignore[attr-defined] # PEP 249
        monkeypatch.setitem(sys.modules, "somedriver", module)
        cursor = Cursor(rows)
        connection = type("Connection", (), {"__module__": "somedriver.connections", "cursor": lambda self: cursor})()
        hook = SimpleNamespace(get_conn=lambda: connection, placeholder=placeholder)
        found = SimpleNamespace(get_hook=lambda: hook)
        monkeypatch.setattr(BaseHook, "get_connection", classmethod(lambda cls, conn_id: found))
        return cursor

    yield use


def read(query: str = QUERY, **settings: Any) -> list[Any]:
    source = SqlLabels(conn_id="outcomes", query=query, **settings).source("digits")
    return list(source.read(since=T0, until=T0 + HOUR, limit=10_000_000))


@pytest.mark.parametrize(
    ("style", "placeholder", "condition", "values"),
    [
        ("qmark", "%s", "arrived >= ? AND arrived < ? AND endpoint = ? AND ? <> ? AND note LIKE '10%:x'", list),
        ("format", "?", "arrived >= %s AND arrived < %s AND endpoint = %s AND %s <> %s AND note LIKE '10%%:x'", list),
        ("numeric", "?", "arrived >= :1 AND arrived < :2 AND endpoint = :3 AND :1 <> :2 AND note LIKE '10%:x'", list),
        ("named", "?", "arrived >= :since AND arrived < :until AND endpoint = :endpoint AND :since <> :until", dict),
        ("pyformat", "?", "arrived >= %(since)s AND arrived < %(until)s AND endpoint = %(endpoint)s AND", dict),
        (None, "?", "arrived >= ? AND arrived < ?", list),
        (None, "%s", "arrived >= %s AND arrived < %s", list),
    ],
)
def test_parameters_are_bound_in_the_style_of_the_driver(
    driver: Any, style: str | None, placeholder: str, condition: str, values: type[Any]
) -> None:
    cursor = driver(style, iter([[("a", "1", T0)]]), placeholder)

    assert [row.correlation_id for row in read()] == ["a"]

    statement, bound = cursor.executed
    assert condition in statement
    assert "id::text" in statement
    assert isinstance(bound, values)
    found: list[Any] = list(bound.values()) if isinstance(bound, dict) else list(bound)
    assert set(found) == {"digits", T0, T0 + HOUR}


def test_a_query_without_parameters_is_sent_as_it_is_and_rows_may_be_mappings(driver: Any) -> None:
    cursor = driver("pyformat", iter([[{"CORRELATION_ID": 7, "LABEL": True, "ARRIVED": T0}]]))

    [row] = read("SELECT * FROM labels WHERE note LIKE '10%';")

    assert (row.correlation_id, row.label) == ("7", True)
    assert cursor.executed == ("SELECT * FROM labels WHERE note LIKE '10%'",)


def test_a_driver_that_cannot_end_a_query_is_left_between_two_parts_of_the_answer(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 7))
    monkeypatch.setattr(sql_labels, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    driver("qmark", iter(lambda: [("a", "1", T0)] * 5, None))
    with pytest.raises(EvidenceUnavailableError, match="has not ended within 60 s"):
        read(timeout=60)
