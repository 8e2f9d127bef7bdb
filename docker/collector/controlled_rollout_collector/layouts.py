"""The layouts of parts: Parquet, and those of the two collectors of the old service, CSV and JSON Lines."""

import csv
import io
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout_collector.entries import INPUTS, PREDICTIONS, Entry
from controlled_rollout_collector.parts import Layout, Replica, path_element, utc
from controlled_rollout_collector.rows import Nested, Row, Value, json_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["LAYOUTS", "CsvLayout", "JsonLinesLayout", "ParquetLayout"]

# The key of a part's metadata that names the columns whose values are JSON, because they are of several types.
JSON_COLUMNS: Final = "controlled_rollout.json_columns"
NUMBERS: Final = {int, float}
# What the old service's version 1 writes into `$aml_dc_boundary`: the minutes of a day.
BOUNDARY_MIN: Final = 1440
NO_REQUEST_ID: Final = "00000000-0000-0000-0000-000000000000"
AGENT: Final = "controlled-rollout"
# How the payload logging of version 2 calls what an endpoint has received and answered.
PAYLOAD_COLLECTIONS: Final = {INPUTS: "request", PREDICTIONS: "response"}


class ParquetLayout:
    """Parquet in `collected/<endpoint>/<version>/<collection>/<yyyy>/<mm>/<dd>/`, with columns `$…` for the request."""

    prefix = ""
    suffix = ".parquet"

    def folder(self, replica: Replica, entry: Entry) -> str:
        """Return the folder of an entry's collection and day."""
        return (
            f"collected/{path_element(replica.endpoint)}/{path_element(replica.version)}/"
            f"{path_element(entry.collection)}/{utc(entry):%Y/%m/%d}"
        )

    def encode(self, replica: Replica, entries: Iterable[Entry]) -> bytes:
        """Return a Parquet file with a row for each row of the entries."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        entries = list(entries)
        data, json_columns = _data_columns(entries)
        table = pa.table(_request_columns(replica, entries) | data)
        table = table.replace_schema_metadata({JSON_COLUMNS: json.dumps(json_columns)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        return bytes(sink.getvalue())


def _request_columns(replica: Replica, entries: Sequence[Entry]) -> "dict[str, pa.Array]":
    """Return the columns that say of each row to which request it belongs."""
    import pyarrow as pa

    counts = [len(entry.rows) for entry in entries]

    def column(values: Iterable[Any], data_type: Any) -> Any:
        """Return a column with the value of an entry in each of its rows."""
        repeated = itertools.chain.from_iterable(map(itertools.repeat, values, counts))
        return pa.array(list(repeated), data_type)

    text = pa.string()
    columns = {
        "$request_id": column([entry.request_id for entry in entries], text),
        "$correlation_id": column([entry.correlation_id for entry in entries], text),
        "$row": pa.array(list(itertools.chain.from_iterable(map(range, counts))), pa.int32()),
        "$rows": column(counts, pa.int32()),
        "$time": column([entry.time_us for entry in entries], pa.timestamp("us", tz="UTC")),
        "$duration_ms": column([entry.duration_ms for entry in entries], pa.float64()),
        "$endpoint": column([replica.endpoint for _ in entries], text),
        "$version": column([replica.version for _ in entries], text),
        "$replica": column([replica.name for _ in entries], text),
        "$addressed": column([entry.is_addressed for entry in entries], pa.bool_()),
        "$status": column([entry.status for entry in entries], pa.int32()),
        "$content_type": column([entry.content_type for entry in entries], text),
        "$size": column([entry.size for entry in entries], pa.int64()),
        "$sha256": column([entry.sha256 for entry in entries], text),
        "$truncated": column([entry.truncated for entry in entries], pa.bool_()),
        "$body": column([entry.body for entry in entries], pa.binary()),
    }
    if entries[0].collection != PREDICTIONS:
        del columns["$duration_ms"]
    return columns


def _data_columns(entries: Sequence[Entry]) -> "tuple[dict[str, pa.Array], list[str]]":
    """Return the columns of the data, and which of them have values of several types, as JSON.

    A name that begins with `$` gets one more.
    """
    count = sum(len(entry.rows) for entry in entries)
    columns: dict[str, list[Value]] = {}
    for position, row in enumerate(row for entry in entries for row in entry.rows):
        for name, value in row.items():
            if name not in columns:
                columns[name] = [None] * count
            columns[name][position] = value
    named = {f"${name}" if name.startswith("$") else name: values for name, values in columns.items()}
    types = {name: {type(value) for value in values} - {type(None)} for name, values in named.items()}
    mixed = [name for name in named if len(types[name]) > 1 and not types[name] <= NUMBERS]
    return {name: _array(values, types[name]) for name, values in named.items()}, mixed


def _array(values: Sequence[Value], types: set[type]) -> "pa.Array":
    """Return a column of data in the type that all of its values have; else each value as its JSON.

    A column without any value is one of numbers: it can be read together with every other.
    """
    import pyarrow as pa

    if types <= NUMBERS:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())  # type: ignore[arg-type]
    if types == {bool}:
        return pa.array(values, pa.bool_())
    if types == {str}:
        return pa.array(values, pa.string())
    return pa.array([None if value is None else json_text(value) for value in values], pa.string())


class CsvLayout:
    """The old service's version 1: CSV in `modeldata/…`, with the columns `$aml_…` behind the data's."""

    # The old service appends to one file `data.csv` in the folder of a day. Replicas cannot append to one file each of
    # their rows exactly once, so theirs are files beside each other, which `data*.csv` finds.
    prefix = "data-"
    suffix = ".csv"

    def folder(self, replica: Replica, entry: Entry) -> str:
        """Return the folder of an entry's model, designation and day."""
        names = _model_names(replica, entry)
        designation = _data_name(entry)
        elements = [
            replica.subscription,
            replica.resource_group,
            *(names[name] for name in ("workspace", "service", "model", "version")),
            designation,
        ]
        return f"modeldata/{'/'.join(map(path_element, elements))}/{utc(entry):%Y/%m/%d}"

    def encode(self, replica: Replica, entries: Iterable[Entry]) -> bytes:
        """Return a CSV file with a header, and a line for each row of the entries."""
        entries = list(entries)
        columns = list(dict.fromkeys(name for entry in entries for row in entry.rows for name in row))
        # As in Parquet, a caller's column of the same name gets one more $.
        lines = [_csv_line([*(f"${name}" if name in _AML_COLUMNS else name for name in columns), *_AML_COLUMNS])]
        for entry in entries:
            names = _model_names(replica, entry)
            trailer = [
                entry.correlation_id,
                f"{utc(entry):%Y-%m-%dT%H:%M:%S.%f}",
                BOUNDARY_MIN,
                names["workspace"],
                names["service"],
                names["model"],
                names["version"],
                entry.request_id or NO_REQUEST_ID,
            ]
            lines.extend(_csv_line([*(_csv_field(row.get(name)) for name in columns), *trailer]) for row in entry.rows)
        return "".join(lines).encode()


_AML_COLUMNS: Final = (
    "$aml_dc_correlation_id",
    "$aml_dc_scoring_timestamp",
    "$aml_dc_boundary",
    "$aml_workspace",
    "$aml_service_name",
    "$aml_model_name",
    "$aml_model_version",
    "$aml_request_id",
)


def _model_names(replica: Replica, entry: Entry) -> dict[str, str]:
    """Return the names of an entry's workspace, service, model and version: those that its script has given."""
    defaults = {
        "workspace": ("workspace", replica.workspace),
        "service": ("webservice_name", replica.endpoint),
        "model": ("model_name", replica.endpoint),
        "version": ("model_version", replica.version),
    }
    return {name: _text_field(entry, key) or default for name, (key, default) in defaults.items()}


def _data_name(entry: Entry) -> str:
    """Return what a script calls its data, such as `inputs`; the collection of what no script has collected."""
    return _text_field(entry, "designation") or _text_field(entry, "collection") or entry.collection


def _text_field(entry: Entry, key: str) -> str:
    """Return a text that a script's collector has added; nothing if there is none."""
    value = entry.fields.get(key)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _csv_line(fields: Sequence[Any]) -> str:
    """Return a line of CSV; a carriage return in a field is quoted as well, as it ends a line for readers."""
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\r\n").writerow(fields)
    return line.getvalue()[:-2] + "\n"


def _csv_field(value: Value) -> Any:
    """Return a value as it is written into CSV; null and NaN are empty, as in a frame's own CSV."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value.text if isinstance(value, Nested) else value


class JsonLinesLayout:
    """The old service's version 2: CloudEvents in `modelDataCollector/…`, one a line for each request."""

    prefix = ""
    suffix = ".jsonl"

    def folder(self, replica: Replica, entry: Entry) -> str:
        """Return the folder of an entry's collection and hour."""
        return (
            f"modelDataCollector/{path_element(replica.endpoint)}/{path_element(replica.version)}/"
            f"{path_element(_payload_collection(entry))}/{utc(entry):%Y/%m/%d/%H}"
        )

    def encode(self, replica: Replica, entries: Iterable[Entry]) -> bytes:
        """Return a file with a CloudEvent on each line."""
        return b"".join(
            json.dumps(_cloud_event(replica, entry), ensure_ascii=False, allow_nan=False).encode() + b"\n"
            for entry in entries
        )


def _payload_collection(entry: Entry) -> str:
    """Return the name of an entry's collection: a script's own, or that of the old service's payload logging."""
    return _text_field(entry, "collection") if entry.is_script else PAYLOAD_COLLECTIONS[entry.collection]


def _cloud_event(replica: Replica, entry: Entry) -> dict[str, Any]:
    """Return the CloudEvent of an entry (CloudEvents 1.0, JSON format)."""
    collection = _payload_collection(entry)
    # A script's empty table has data, which are no rows.
    has_data = any(entry.rows) or not entry.rows
    return {
        "specversion": "1.0",
        "id": f"{entry.request_id}-{collection}-{entry.time_us}",
        "source": f"/endpoints/{replica.endpoint}/deployments/{replica.version}",
        "type": f"azureml.inference.{collection}",
        "datacontenttype": "application/json",
        "time": utc(entry).isoformat().replace("+00:00", "Z"),
        "data": [_json_row(row) for row in entry.rows] if has_data else None,
        "correlationid": entry.correlation_id,
        "xrequestid": entry.request_id,
        "modelversion": replica.version,
        "collectdatatype": _text_field(entry, "collectdatatype") or "pandas.core.frame.DataFrame",
        "agent": _text_field(entry, "agent") or AGENT,
        "contentrange": f"bytes 0-{max(0, entry.size - 1)}/{entry.size}",
    }


def _json_row(row: Row) -> dict[str, Any]:
    """Return a row for JSON, which has no NaN and no infinity."""
    return {name: _json_value(value) for name, value in row.items()}


def _json_value(value: Value) -> Any:
    """Return a value for JSON."""
    if isinstance(value, Nested):
        return json.loads(value.text, parse_constant=lambda name: None)
    return None if isinstance(value, float) and not math.isfinite(value) else value


LAYOUTS: Final[dict[str, Layout]] = {"parquet": ParquetLayout(), "csv": CsvLayout(), "jsonl": JsonLinesLayout()}
