"""A telemetry store with faults that a JSON file describes, to test its readers against a real server.

Run as `python -m tests.local.faulty_telemetry_store <port> <data folder> <faults file>`.
"""

import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from json import loads
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from controlled_rollout.telemetry_store.query_limits import QueryLimits
from controlled_rollout.telemetry_store.responses import ApiResponse, error_response
from controlled_rollout.telemetry_store.schema import Row
from controlled_rollout.telemetry_store.server import serve
from controlled_rollout.telemetry_store.store import TelemetryStore

# Azure's errors, by the name of the fault.
ERRORS: Final[dict[str, tuple[int, str, str]]] = {
    "throttle": (429, "ThrottledError", "The request has been throttled: too many queries in 30 s"),
    "forbid": (403, "InsufficientAccessError", "The provided credentials have insufficient access to the workspace"),
    "time_out": (504, "GatewayTimeout", "The query was stopped: it took too long"),
    "unavailable": (503, "ServiceUnavailable", "The service is not available"),
}
# The position of `_TimeReceived` in a row.
TIME_RECEIVED: Final = 1


class Fault(BaseModel):
    """A fault of the store.

    Attributes:
        answer: How every query is answered: with an error (see `ERRORS`), `partial` (the first row, and an error) or
            `garbage` (status 200, and no JSON).
        longer_than: Only queries of more than so many characters are answered so.
        retry_after: The header Retry-After, word for word.
        late_s: Rows that are uploaded now can be seen only after so many seconds, and arrive then.
        lost: Rows that are uploaded now are lost if their properties have all these values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Literal["throttle", "forbid", "time_out", "unavailable", "partial", "garbage"] | None = None
    longer_than: int = 0
    retry_after: str | None = None
    late_s: Annotated[float, Field(ge=0, le=60)] = 0.0
    lost: dict[str, str] = {}


class FaultyTelemetryStore(TelemetryStore):
    """A telemetry store with the faults that a file names.

    Args:
        arguments: Those of `TelemetryStore`.
        faults_file: Holds a `Fault` as JSON; absent for no fault. It is read at every upload and every query.
    """

    def __init__(self, *arguments: Any, faults_file: Path) -> None:
        super().__init__(*arguments)
        self._faults_file = faults_file

    def _fault(self) -> Fault:
        try:
            return Fault.model_validate_json(self._faults_file.read_bytes())
        except FileNotFoundError:
            return Fault()

    def accept(self, rows: Mapping[str, Sequence[Row]], size: int, *, may_fill: bool = True) -> None:
        fault = self._fault()
        kept = {table: [row for row in batch if not _has(row, fault.lost)] for table, batch in rows.items()}
        if not fault.late_s:
            super().accept(kept, size, may_fill=may_fill)
            return
        late_us = round(fault.late_s * 1e6)
        late = {table: [_received_later(row, late_us) for row in batch] for table, batch in kept.items()}
        timer = threading.Timer(fault.late_s, super().accept, (late, size))
        timer.daemon = True
        timer.start()

    def run_query_blocking(
        self, query: object, timespan: object, *, timeout_s: float, with_statistics: bool, stop: threading.Event
    ) -> ApiResponse:
        fault = self._fault()
        if fault.answer is None or len(str(query)) <= fault.longer_than:
            self.limits = QueryLimits()
        elif fault.answer == "garbage":
            return ApiResponse(200, b"<html>Our services aren't available right now</html>")
        elif fault.answer == "partial":
            self.limits = QueryLimits(max_rows=1)
        else:
            response = error_response(*ERRORS[fault.answer])
            return response if fault.retry_after is None else _with_retry_after(response, fault.retry_after)
        return super().run_query_blocking(
            query, timespan, timeout_s=timeout_s, with_statistics=with_statistics, stop=stop
        )


def _has(row: Row, values: Mapping[str, str]) -> bool:
    """Return whether a row's properties, its last column, contain all of some values."""
    return bool(values) and values.items() <= loads(str(row[-1])).items()


def _received_later(row: Row, microseconds: int) -> Row:
    received = row[TIME_RECEIVED]
    assert isinstance(received, int)
    return (*row[:TIME_RECEIVED], received + microseconds, *row[TIME_RECEIVED + 1 :])


def _with_retry_after(response: ApiResponse, retry_after: str) -> ApiResponse:
    return replace(response, headers={"Retry-After": retry_after})


if __name__ == "__main__":
    port, data, faults_file = sys.argv[1:]
    sys.exit(
        serve(port=int(port), data=Path(data), make_store=partial(FaultyTelemetryStore, faults_file=Path(faults_file)))
    )
