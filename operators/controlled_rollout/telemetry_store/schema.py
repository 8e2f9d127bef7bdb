"""The tables of a Log Analytics workspace that the store keeps, with Azure's names and types.

A table has *stored* columns, which are on disk, and *constant* columns, which Azure has too but which have the same
value in every row here: they are added when a query reads the table.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

__all__ = ["TABLES", "Column", "Row", "Table"]

# One row's values in the order of its table's stored columns. Times are microseconds since 1970, dynamic is JSON text.
Row = tuple[str | int | float | bool | None, ...]

# DuckDB's types by KQL's names.
DUCKDB_TYPES: Final = {
    "string": "VARCHAR",
    "datetime": "TIMESTAMP",
    "real": "DOUBLE",
    "int": "INTEGER",
    "bool": "BOOLEAN",
    "dynamic": "JSON",
}
# The types in which values are bound to an INSERT, which converts them to the column's type.
BOUND_TYPES: Final = {**DUCKDB_TYPES, "datetime": "BIGINT", "dynamic": "VARCHAR"}

# App Insights' buckets of a request's duration: upper bounds in milliseconds, and names.
PERFORMANCE_BUCKETS: Final = (
    (250, "<250ms"),
    (500, "250ms-500ms"),
    (1_000, "500ms-1sec"),
    (3_000, "1sec-3sec"),
    (7_000, "3sec-7sec"),
    (15_000, "7sec-15sec"),
    (30_000, "15sec-30sec"),
    (60_000, "30sec-1min"),
    (120_000, "1min-2min"),
    (300_000, "2min-5min"),
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Azure's name.
        type: KQL's name of the type.
        sql: The SQL of a constant column's value; None for a stored column.
    """

    name: str
    type: str
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table and its columns.

    Attributes:
        name: Azure's name of the table.
        stored: The columns on disk, in the order of `Row`.
        constant: The columns that are added when a query reads the table.
    """

    name: str
    stored: tuple[Column, ...]
    constant: tuple[Column, ...]

    @property
    def column_names(self) -> list[str]:
        """The names of all columns, in the order in which query results list them."""
        return [column.name for column in (*self.stored, *self.constant)]

    def create_sql(self) -> str:
        """Return the statement that creates the table unless it exists."""
        columns = ", ".join(f'"{column.name}" {DUCKDB_TYPES[column.type]}' for column in self.stored)
        return f'CREATE TABLE IF NOT EXISTS main."{self.name}" ({columns})'

    def insert_sql(self) -> str:
        """Return the statement that appends rows; its parameters are one list of values for each stored column."""
        unnested = ", ".join(
            f'unnest(${position}::{BOUND_TYPES[column.type]}[]) AS "{column.name}"'
            for position, column in enumerate(self.stored, 1)
        )
        values = ", ".join(
            f'make_timestamp("{column.name}")' if column.type == "datetime" else f'"{column.name}"'
            for column in self.stored
        )
        return f'INSERT INTO main."{self.name}" SELECT {values} FROM (SELECT {unnested})'  # noqa: S608 - our own names

    def view_sql(self, workspace_id: str, start: datetime | None, end: datetime | None) -> str:
        """Return the SELECT that replaces the table name in a query: all columns, rows of the time range only.

        Args:
            workspace_id: The value of the column TenantId.
            start: The first TimeGenerated; None for no bound.
            end: The last TimeGenerated; None for no bound.
        """
        constants = {"TenantId": f"'{workspace_id}'", "Type": f"'{self.name}'"}
        columns = [f'"{column.name}"' for column in self.stored]
        columns += [f'{constants.get(column.name, column.sql)} AS "{column.name}"' for column in self.constant]
        bounds = [
            f"\"TimeGenerated\" {sign} TIMESTAMP '{moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}'"
            for sign, moment in ((">=", start), ("<=", end))
            if moment is not None
        ]
        where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
        return f'SELECT {", ".join(columns)} FROM main."{self.name}"{where}'  # noqa: S608 - our own names


def _parse_columns(text: str) -> tuple[Column, ...]:
    """Parse column definitions such as `Id Success:bool`; a name without a type is a string column."""
    pairs = (word.partition(":") for word in text.split())
    return tuple(Column(name, kind or "string") for name, _, kind in pairs)


_FIRST = _parse_columns("TimeGenerated:datetime _TimeReceived:datetime")
# The sender and the operation: these columns are in every table, in this order.
CONTEXT: Final = _parse_columns(
    "OperationId OperationName ParentId AppRoleName AppRoleInstance AppVersion SDKVersion IKey UserId SessionId "
    "ClientIP SyntheticSource ItemCount:int Properties:dynamic"
)
_CONSTANT = (
    *(
        Column(column.name, "string", "''")
        for column in _parse_columns(
            "TenantId Type UserAuthenticatedId UserAccountId ClientType ClientModel ClientOS ClientBrowser ClientCity "
            "ClientStateOrProvince ClientCountryOrRegion ResourceGUID _ResourceId _SubscriptionId"
        )
    ),
    Column("SourceSystem", "string", "'Azure'"),
    Column("_IsBillable", "string", "'False'"),
    Column("_BilledSize", "real", "CAST(0 AS DOUBLE)"),
)
_BUCKET = Column(
    "PerformanceBucket",
    "string",
    "CASE "
    + " ".join(f"WHEN \"DurationMs\" < {bound} THEN '{name}'" for bound, name in PERFORMANCE_BUCKETS)
    + " ELSE '>=5min' END",
)


def _table_with_common_columns(name: str, columns: str, *, bucket: bool = False) -> Table:
    """Return a table with its own columns plus the columns that all tables have."""
    constant = (*((_BUCKET,) if bucket else ()), *_CONSTANT)
    return Table(name, (*_FIRST, *_parse_columns(columns), *CONTEXT), constant)


# https://learn.microsoft.com/azure/azure-monitor/reference/tables/apprequests and its neighbours.
TABLES: Final[dict[str, Table]] = {
    table.name: table
    for table in (
        _table_with_common_columns(
            "AppRequests",
            "Id Name Url Source Success:bool ResultCode DurationMs:real Measurements:dynamic",
            bucket=True,
        ),
        _table_with_common_columns(
            "AppDependencies",
            "Id Name Target DependencyType Data Success:bool ResultCode DurationMs:real Measurements:dynamic",
            bucket=True,
        ),
        _table_with_common_columns(
            "AppExceptions",
            "ProblemId ExceptionType Assembly Method OuterType OuterMessage OuterAssembly OuterMethod InnermostType "
            "InnermostMessage InnermostAssembly InnermostMethod SeverityLevel:int Details:dynamic Measurements:dynamic",
        ),
        _table_with_common_columns("AppTraces", "Message SeverityLevel:int Measurements:dynamic"),
        _table_with_common_columns("AppMetrics", "Name Sum:real Min:real Max:real"),
        _table_with_common_columns("AppEvents", "Name Measurements:dynamic"),
    )
}
