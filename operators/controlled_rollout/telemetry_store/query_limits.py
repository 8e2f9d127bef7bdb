"""The limits of one query, and what one asks."""

from dataclasses import dataclass

__all__ = ["QueryLimits", "QueryRequest"]


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """The limits of one query; rows, bytes and time are by default Azure's.

    Attributes:
        max_rows: With more rows the result is partial.
        max_bytes: With a longer response the result is partial.
        timeout_s: After so many seconds a query is stopped.
        max_timeout_s: The longest timeout that a caller may ask for, in seconds.
        max_memory_bytes: The most address space of a query's process.
    """

    max_rows: int = 500_000
    max_bytes: int = 100 * 2**20
    timeout_s: float = 180.0
    max_timeout_s: float = 600.0
    max_memory_bytes: int = 2**30


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """One query.

    Attributes:
        query: The KQL, if it is text.
        timespan: An ISO 8601 duration or interval laid over TimeGenerated; None for all rows.
        workspace_id: The value of the column TenantId.
        limits: Rows, bytes and memory.
        timeout_s: After so many seconds its process is killed.
        with_statistics: Whether the response tells how long the query took.
    """

    query: object
    timespan: object
    workspace_id: str
    limits: QueryLimits
    timeout_s: float
    with_statistics: bool = False
