"""Translation of KQL to SQL, and the queries that are refused."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.telemetry_store.database import Database
from controlled_rollout.telemetry_store.kql import QueryRefusedError, parse_timespan, translate
from controlled_rollout.telemetry_store.query import run_query
from controlled_rollout.telemetry_store.query_limits import QueryLimits
from tests.examples import examples

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WORKSPACE = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(tmp_path_factory.mktemp("store"))
    properties = json.dumps({"endpoint": "digits", "version": "v1"})
    stamp = int(NOW.timestamp()) * 1_000_000
    context = ("op", "POST /", "", "router", "", "", "", "", "", "", "", "", 2, properties)
    database.insert(
        {
            "AppRequests": [
                (stamp + n * 1_000_000, stamp, f"id{n}", "POST /", "", "", True, "200", 1.5 + n, "{}", *context)
                for n in range(10)
            ]
        }
    )
    database.restrict_to_queries(tmp_path_factory.mktemp("spill"), threads=1, memory_limit="256MB")
    yield database
    database.close()


def ask(database: Database, query: str, *, timespan: str | None = None, **limits: Any) -> tuple[int, Any]:
    answer = run_query(
        database,
        query,
        timespan=timespan,
        workspace_id=WORKSPACE,
        limits=QueryLimits(**limits),
    )
    return answer.status, json.loads(answer.body)


def rows(database: Database, query: str, **kwargs: Any) -> Any:
    status, body = ask(database, query, **kwargs)
    assert status == 200, body
    return body["tables"][0]["rows"]


def innermost(body: dict[str, Any]) -> dict[str, Any]:
    error = body["error"]
    while "innererror" in error:
        error = error["innererror"]
    return dict(error)


@pytest.mark.parametrize(
    "query",
    [
        ".drop table AppRequests",
        "// innocent\n .set T <| AppRequests",
        ".show tables",
        "AppRequests | count; AppRequests | count",
        "externaldata(x:string)['/etc/passwd']",
        "['duckdb_settings'] | count",
        "['/etc/passwd'] | take 1",
        "['store.main.AppRequests'] | count",
        "information_schema_tables | count",
        "pragma_database_size | count",
        "sqlite_master | count",
        "database('main').AppRequests | count",
        "cluster('c').database('d').AppRequests | count",
        "AppRequests | where Id == read_csv('/etc/passwd')",
        "AppRequests | extend x = getenv('HOME')",
        "AppRequests | extend x = current_setting('memory_limit')",
        'AppRequests | join kind=inner (["duckdb_secrets"]) on Id',
        "union withsource=T duckdb_tables, AppRequests | count",
        "AppRequests | where Id in (duckdb_settings | project name)",
        "let T = duckdb_settings; T | count",
        "let f = (x:string) { duckdb_settings | where name == x }; f('memory_limit')",
    ],
)
def test_a_query_reaches_nothing_but_the_store_s_tables(database: Database, query: str) -> None:
    status, body = ask(database, query)

    assert status == 400
    assert body["error"]["code"] == "BadArgumentError"
    assert rows(database, "AppRequests | count") == [[10]]


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE AppRequests; --",
        "\"; ATTACH 'x.db'; --",
        "\\",
        "$1",
        "{}",
        "%s",
        "/* */",
        "a\nb",
        "\u0000",
        "é☃😀",
    ],
)
def test_text_in_a_query_stays_text(database: Database, text: str) -> None:
    literal = "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\0", "\\0") + "'"

    status, body = ask(database, f"print x = {literal}")

    if status == 200:
        assert body["tables"][0]["rows"] == [[text]]
    else:
        assert body["error"]["code"] == "BadArgumentError"
    assert rows(database, "AppRequests | count") == [[10]]


@examples(40)
@given(st.text(max_size=40))
def test_any_text_in_a_comparison_finds_no_row_or_is_refused(database: Database, text: str) -> None:
    literal = json.dumps(text)

    status, body = ask(database, f"AppRequests | where Id == {literal} | count")

    assert status in (200, 400)
    if status == 200:
        assert body["tables"][0]["rows"] == [[0]]


def test_the_connection_of_a_query_cannot_write_or_reach_out(database: Database) -> None:
    import duckdb

    for statement in (
        "DROP TABLE main.AppRequests",
        "COPY main.AppRequests TO '/tmp/stolen.csv'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "ATTACH '/tmp/other.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
    ):
        with database.cursor() as cursor:
            cursor.execute("BEGIN TRANSACTION READ ONLY")
            with pytest.raises(duckdb.Error):
                cursor.execute(statement).fetchall()
    assert rows(database, "AppRequests | count") == [[10]]


def test_syntax_errors_name_the_place_as_azure_does(database: Database) -> None:
    status, body = ask(database, "AppRequests\n| wherre x")

    assert status == 400
    assert body["error"]["innererror"]["code"] == "SyntaxError"
    fault = innermost(body)
    assert (fault["code"], fault["line"]) == ("SYN0002", 2)


@pytest.mark.parametrize("query", ["nosuch | count", "apprequests | count", "AppRequests | where Nope == 1"])
def test_unknown_names_are_a_semantic_error(database: Database, query: str) -> None:
    status, body = ask(database, query)

    assert status == 400
    assert body["error"]["innererror"]["code"] == "SemanticError"
    assert innermost(body)["code"] == "SEM0100"


@pytest.mark.parametrize("query", ["", "   ", "x" * 40_000, "print " + "(" * 3_000 + "1" + ")" * 3_000])
def test_no_query_and_too_much_of_one_are_refused(database: Database, query: str) -> None:
    status, body = ask(database, query)

    assert (status, body["error"]["code"]) == (400, "BadArgumentError")


def test_every_type_is_named_and_written_as_azure_does(database: Database) -> None:
    status, body = ask(
        database,
        "print a='t', b=datetime(2026-03-01T12:00:00.5Z), c=1.5, d=real(nan), e=1, f=int(2), g=true, "
        "h=dynamic({'k':[1]}), i=1d+2h, j=real(null), k=real(+inf)",
    )

    assert status == 200
    table = body["tables"][0]
    assert table["name"] == "PrimaryResult"
    assert [column["type"] for column in table["columns"]] == [
        "string", "datetime", "real", "real", "long", "int", "bool", "dynamic", "timespan", "real", "real",
    ]  # fmt: skip
    assert table["rows"] == [
        ["t", "2026-03-01T12:00:00.5Z", 1.5, "NaN", 1, 2, True, '{"k":[1]}', "1.02:00:00", None, "Infinity"]
    ]


def test_a_table_has_azure_s_columns_besides_the_stored_ones(database: Database) -> None:
    result = rows(database, "AppRequests | take 1 | project TenantId, Type, PerformanceBucket, ItemCount, SourceSystem")

    assert result == [[WORKSPACE, "AppRequests", "<250ms", 2, "Azure"]]


@pytest.mark.parametrize(
    ("timespan", "count"),
    [
        (None, 10),
        ("2026-03-01T12:00:00Z/2026-03-01T12:00:04Z", 5),
        ("2026-03-01T12:00:02Z/PT1.5S", 2),
        ("PT1S/2026-03-01T12:00:01Z", 2),
        ("2026-03-01T12:00:00/P1D", 10),
        ("2026-03-01T14:00:00.0000000+02:00/PT0S", 1),
        ("P36500D", 10),
        ("PT1H", 0),
    ],
)
def test_a_timespan_is_laid_over_every_table_of_the_query(database: Database, timespan: str | None, count: int) -> None:
    assert rows(database, "AppRequests | count", timespan=timespan) == [[count]]
    joined = "AppRequests | join kind=inner (AppRequests) on Id | count"
    assert rows(database, joined, timespan=timespan) == [[count]]


@pytest.mark.parametrize(
    "timespan", ["yesterday", "P", "PT", "2026-03-01/x", "/", "P1Y", "P1M", "-P1D", "5 min", "P9999999D"]
)
def test_invalid_timespan_is_refused(timespan: str) -> None:
    with pytest.raises(QueryRefusedError, match="ISO 8601"):
        parse_timespan(timespan, NOW)


@given(st.text(max_size=30))
def test_any_text_is_a_timespan_or_refused(text: str) -> None:
    try:
        parse_timespan(text, NOW)
    except QueryRefusedError as error:
        assert error.kind == "InvalidTimespan"


def test_a_duration_ends_now() -> None:
    assert parse_timespan("PT3600.0S", NOW) == (NOW - timedelta(hours=1), NOW)


@pytest.mark.parametrize("limits", [{"max_rows": 4}, {"max_bytes": 60}])
def test_more_rows_or_bytes_than_allowed_are_a_partial_result(database: Database, limits: dict[str, Any]) -> None:
    status, body = ask(database, "range x from 1000 to 11000 step 1000", **limits)

    assert status == 200
    assert body["error"]["code"] == "PartialError"
    assert len(body["tables"][0]["rows"]) <= 4
    assert "exceed" in body["error"]["details"][0]["innererror"]["message"]


def test_exactly_as_many_rows_as_allowed_are_a_whole_result(database: Database) -> None:
    status, body = ask(database, "AppRequests | project Id", max_rows=10)

    assert (status, len(body["tables"][0]["rows"])) == (200, 10)
    assert "error" not in body


def test_the_gate_s_operators_are_translated_to_one_select(tmp_path: Path) -> None:
    statement = translate("let T = AppRequests | where Success; union T, AppDependencies | summarize sum(ItemCount)")

    assert statement.tables == ("AppDependencies", "AppRequests")


@pytest.mark.parametrize(
    "query",
    [
        "AppRequests | getschema | count",
        "range x from 1 to 3 step 1 | count",
        "datatable(a:long) [1, 2] | count",
        "let T = AppRequests | where Success; T | join kind=inner (T) on Id | count",
        "AppRequests | mv-expand k = dynamic([1, 2]) | count",
        "AppRequests | where Id in (AppRequests | project Id) | count",
        "union App* | count",
        "let sqlite_master = AppRequests | take 1; sqlite_master | count",
        "AppRequests | extend v = tostring(Properties.version) | top 3 by DurationMs | summarize make_set(v)",
    ],
)
def test_ordinary_kql_passes_both_locks(database: Database, query: str) -> None:
    assert len(rows(database, query)) == 1


def test_ingestion_time_is_translated_outside_of_quotes_only(database: Database) -> None:
    query = "AppRequests | extend Came = ingestion_time ( ) | summarize max(Came) | extend Text = 'ingestion_time()'"

    [[came, text]] = rows(database, query)

    assert came == NOW.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert text == "ingestion_time()"
    faults = [ask(database, f"AppRequests | extend a = {word} | wherre x") for word in ("ingestion_time()", "x" * 16)]
    assert [status for status, _ in faults] == [400, 400]
    assert innermost(faults[0][1])["pos"] == innermost(faults[1][1])["pos"]


def test_long_text_counts_as_one_token_and_too_many_tokens_are_refused(database: Database) -> None:
    assert rows(database, f"print strlen('{'x' * 200_000}')") == [[200_000]]
    assert ask(database, "print " + ", ".join("1" for _ in range(20_000)))[0] == 400
    assert ask(database, f"print strlen('{'x' * 1_000_000}')")[0] == 400
