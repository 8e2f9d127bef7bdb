"""The tables of a Log Analytics workspace that the store keeps, with the names and types that Azure gives them.

A table has *stored* columns, which lie on disk, and *constant* ones, which every row of an Azure workspace has and
which say nothing here: those are added when a query reads the table.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

__all__ = ["TABLES", "Column", "Row", "Table"]

# One row's values in the order of its table's stored columns. Times are microseconds since 1970, dynamic is JSON text.
Row = tuple[str | int | float | bool | None, ...]

# KQL's type names -> DuckDB's.
DUCKDB_TYPES: Final = {
    "string": "VARCHAR",
    "datetime": "TIMESTAMP",
    "real": "DOUBLE",
    "int": "INTEGER",
    "bool": "BOOLEAN",
    "dynamic": "JSON",
}
# What a stored value is bound as before it is made into the column's type.
BOUND_TYPES: Final = {**DUCKDB_TYPES, "datetime": "BIGINT", "dynamic": "VARCHAR"}

# App Insights' own bounds of a request's duration, in milliseconds, and their names.
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
    """A column: its name and KQL type, and for a constant one the SQL of its value."""

    name: str
    type: str
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A table: what is stored, and what a query sees besides.

    Attributes:
        name: Azure's name of the table.
        stored: The columns on disk, in the order of `Row`.
        constant: Columns whose value the view makes up.
    """

    name: str
    stored: tuple[Column, ...]
    constant: tuple[Column, ...]

    @property
    def column_names(self) -> list[str]:
        """What a query sees, in order."""
        return [column.name for column in (*self.stored, *self.constant)]

    def create_sql(self) -> str:
        """Return the statement that creates the table where it does not exist."""
        columns = ", ".join(f'"{column.name}" {DUCKDB_TYPES[column.type]}' for column in self.stored)
        return f'CREATE TABLE IF NOT EXISTS main."{self.name}" ({columns})'

    def insert_sql(self) -> str:
        """Return the statement that appends rows given as one list per stored column: one bind, not one per row."""
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
        """Return the SELECT that a query's table name stands for: all columns, rows within [start, end]."""
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


def _columns(text: str) -> tuple[Column, ...]:
    """Read `name:type name name:type …`; a column without a type is a string."""
    pairs = (word.partition(":") for word in text.split())
    return tuple(Column(name, kind or "string") for name, _, kind in pairs)


_FIRST = _columns("TimeGenerated:datetime _TimeReceived:datetime")
# What the sender says of itself and of the operation: the same columns, in the same order, in every table.
CONTEXT: Final = _columns(
    "OperationId OperationName ParentId AppRoleName AppRoleInstance AppVersion SDKVersion IKey UserId SessionId "
    "ClientIP SyntheticSource ItemCount:int Properties:dynamic"
)
_CONSTANT = (
    *(
        Column(column.name, "string", "''")
        for column in _columns(
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


def _table(name: str, own: str, *, bucket: bool = False) -> Table:
    constant = (*((_BUCKET,) if bucket else ()), *_CONSTANT)
    return Table(name, (*_FIRST, *_columns(own), *CONTEXT), constant)


# https://learn.microsoft.com/azure/azure-monitor/reference/tables/apprequests and its neighbours.
TABLES: Final[dict[str, Table]] = {
    table.name: table
    for table in (
        _table(
            "AppRequests",
            "Id Name Url Source Success:bool ResultCode DurationMs:real Measurements:dynamic",
            bucket=True,
        ),
        _table(
            "AppDependencies",
            "Id Name Target DependencyType Data Success:bool ResultCode DurationMs:real Measurements:dynamic",
            bucket=True,
        ),
        _table(
            "AppExceptions",
            "ProblemId ExceptionType Assembly Method OuterType OuterMessage OuterAssembly OuterMethod InnermostType "
            "InnermostMessage InnermostAssembly InnermostMethod SeverityLevel:int Details:dynamic Measurements:dynamic",
        ),
        _table("AppTraces", "Message SeverityLevel:int Measurements:dynamic"),
        _table("AppMetrics", "Name Sum:real Min:real Max:real"),
        _table("AppEvents", "Name Measurements:dynamic"),
    )
}
