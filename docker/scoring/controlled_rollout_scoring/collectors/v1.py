"""What scripts of the old service get as `azureml.monitoring`: `ModelDataCollector`, of azureml-monitoring 0.1.0a21."""

from __future__ import annotations

import calendar
import itertools
import os
import sys
import time
import uuid
import warnings
from collections.abc import Sequence
from typing import Any

from controlled_rollout_scoring import capture
from controlled_rollout_scoring.collectors.tables import is_array, is_frame, json_of, table_of, without_spark

DESIGNATIONS = ("inputs", "predictions", "labels", "signals", "general")
# Their files have their name, those of the others the collection's.
NAMED_BY_DESIGNATION = ("inputs", "predictions", "labels")
NO_REQUEST = "00000000-0000-0000-0000-000000000000"
DAY_MIN, HOUR_MIN = 24 * 60, 60
TIMESTAMP = "%Y-%m-%dT%H:%M:%S"
WRONG_TYPE = "input data must be list, numpy array, pandas dataframe, or spark dataframe"


class ModelDataCollector:
    """Collects rows of a model's inputs, predictions or others; without `collect_model_data` it does nothing.

    Args:
        model_name: The model's name.
        designation: What the rows are: `inputs`, `predictions`, `labels`, `signals` or `general`, the default.
        feature_names: The names of the columns of lists and arrays.
        workspace: `<subscription>/<resource group>/<workspace>`.
        webservice_name: The service's name; that of the endpoint unless it is given.
        model_version: The model's version; the newest one that the version has unless it is given.
        collection_name: What `signals` and `general` are called.
    """

    AML_DC_CORRELATION_HEADER = "$aml_dc_correlation_id"
    AML_DC_SCORING_TIMESTAMP_HEADER = "$aml_dc_scoring_timestamp"
    AML_DC_BOUNDARY_HEADER = "$aml_dc_boundary"
    AML_WORKSPACE_HEADER = "$aml_workspace"
    AML_SERVICE_NAME_HEADER = "$aml_service_name"
    AML_MODEL_NAME_HEADER = "$aml_model_name"
    AML_MODEL_VERSION_HEADER = "$aml_model_version"
    AML_REQUEST_ID_HEADER = "$aml_request_id"

    def __init__(
        self,
        model_name: str,
        designation: str = "default",
        feature_names: Sequence[str] | None = None,
        workspace: str = "default/default/default",
        webservice_name: str = "default",
        model_version: str = "default",
        collection_name: str = "default",
    ) -> None:
        self._capture = capture.active()
        self._feature_names = [str(name) for name in feature_names] if feature_names is not None else []
        self._has_correlations = False
        self._designation = "general" if designation == "default" else designation
        if self._capture is None:
            print("Data collection is not enabled: set collect_model_data=True on the version")  # noqa: T201
        elif self._designation not in DESIGNATIONS:
            supported = ", ".join(map(repr, ("default", *DESIGNATIONS)))
            print(f"Incorrect designation value. Supported values: {supported}")  # noqa: T201
            self._capture = None
        own_service = os.environ.get("SERVICE_NAME") or os.environ.get("CAPTURE_ENDPOINT") or "default"
        self.workspace = str(workspace).lower()
        self.service_name = own_service if webservice_name == "default" else webservice_name
        self.model_name = model_name
        self.model_version = newest_version(model_name) if model_version == "default" else str(model_version)
        self._collection = self._designation if self._designation in NAMED_BY_DESIGNATION else str(collection_name)

    def collect(self, input_data: Any, user_correlation_id: str = "") -> dict[str, Any] | None:
        """Keep rows.

        Args:
            input_data: A list or an array of one dimension, which is one row; an array or a frame of several.
            user_correlation_id: The caller's own id, which the correlation id of inputs begins with.

        Returns:
            For inputs, what `add_correlations` adds to rows of others; else None.
        """
        if self._capture is None:
            return None
        input_data, correlations = without_spark(input_data), None
        if self._designation == "inputs":
            correlations = self._new_correlations(user_correlation_id)
            input_data = self.add_correlations(input_data, correlations)
        if not (isinstance(input_data, list) or is_array(input_data) or is_frame(input_data)):
            warnings.warn(f"collect failed: {WRONG_TYPE}", stacklevel=2)
            return None
        self._capture.collect(lambda: self._records(input_data))
        return correlations

    def add_correlations(self, input_data: Any, correlations: dict[str, Any] | None) -> Any:
        """Return rows with eight columns more, which say what inputs they belong to.

        Args:
            input_data: A list, an array or a frame.
            correlations: What `collect` has returned for the inputs; for None the rows are returned as they are.
        """
        if correlations is None:
            return input_data
        self._has_correlations = True
        values = [correlations[name] for name in HEADERS]
        input_data = without_spark(input_data)
        if isinstance(input_data, list):
            return input_data + values
        if is_array(input_data):
            numpy = sys.modules["numpy"]
            rows = input_data if input_data.ndim > 1 else input_data.reshape(1, -1)
            added = numpy.tile(numpy.array(values, dtype=object), (len(rows), 1))
            return numpy.concatenate((rows, added), axis=1)
        if is_frame(input_data):
            return input_data.assign(**dict(zip(HEADERS, values, strict=True)))
        warnings.warn(f"collect failed: {WRONG_TYPE}", stacklevel=2)
        return input_data

    def _new_correlations(self, user_correlation_id: str) -> dict[str, Any]:
        """Return the values of the eight columns for the request that is being scored."""
        identity = capture.CURRENT.get()
        generated = str(uuid.uuid4())
        return {
            self.AML_DC_SCORING_TIMESTAMP_HEADER: timestamp_of(time.time()),
            self.AML_REQUEST_ID_HEADER: identity.id if identity else NO_REQUEST,
            self.AML_DC_CORRELATION_HEADER: f"{user_correlation_id}-{generated}" if user_correlation_id else generated,
            self.AML_DC_BOUNDARY_HEADER: HOUR_MIN if os.environ.get("AML_MODEL_DC_BOUNDARY") == "hour" else DAY_MIN,
            self.AML_WORKSPACE_HEADER: self.workspace,
            self.AML_SERVICE_NAME_HEADER: self.service_name,
            self.AML_MODEL_NAME_HEADER: self.model_name,
            self.AML_MODEL_VERSION_HEADER: self.model_version,
        }

    def _records(self, data: Any) -> list[tuple[dict[str, Any], bytes]]:
        """Return the head and the body of a record for each run of rows that belong to the same inputs."""
        table = table_of(data)
        names = table.columns or [*self._feature_names, *(HEADERS if self._has_correlations else ())]
        columns = [name for name in names if name not in HEADERS]
        split = (without_correlations(row, names) for row in table.rows)
        records = []
        for correlations, group in itertools.groupby(split, key=lambda pair: pair[0]):
            rows = [row for _, row in group]
            fit = bool(columns) and all(len(row) == len(columns) for row in rows)
            head = {
                "collector": "v1",
                "collection": self._collection,
                "designation": self._designation,
                "workspace": self.workspace,
                "webservice_name": self.service_name,
                "model_name": self.model_name,
                "model_version": self.model_version,
                "columns": columns if fit else None,
                "rows": len(rows),
                **fields_of(dict(correlations)),
            }
            records.append((head, json_of(rows)))
        return records


HEADERS = (
    ModelDataCollector.AML_DC_CORRELATION_HEADER,
    ModelDataCollector.AML_DC_SCORING_TIMESTAMP_HEADER,
    ModelDataCollector.AML_DC_BOUNDARY_HEADER,
    ModelDataCollector.AML_WORKSPACE_HEADER,
    ModelDataCollector.AML_SERVICE_NAME_HEADER,
    ModelDataCollector.AML_MODEL_NAME_HEADER,
    ModelDataCollector.AML_MODEL_VERSION_HEADER,
    ModelDataCollector.AML_REQUEST_ID_HEADER,
)


def without_correlations(row: list[Any], names: Sequence[str]) -> tuple[list[tuple[str, Any]], list[Any]]:
    """Return the correlations of a row, by the names of their columns, and the row without them.

    Args:
        row: The row.
        names: The names of its columns, as far as they are known.
    """
    if len(names) == len(row):
        named = list(zip(names, row, strict=True))
        return [(name, value) for name, value in named if name in HEADERS], [
            v for name, v in named if name not in HEADERS
        ]
    # A list without names of features: what `add_correlations` has added is at its end.
    added = row[-len(HEADERS) :]
    if len(added) == len(HEADERS) and seconds_of(added[1]) is not None:
        return list(zip(HEADERS, added, strict=True)), row[: -len(HEADERS)]
    return [], row


def fields_of(correlations: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that say what inputs its rows belong to."""
    names = {
        ModelDataCollector.AML_DC_CORRELATION_HEADER: "correlation",
        ModelDataCollector.AML_REQUEST_ID_HEADER: "id",
        ModelDataCollector.AML_WORKSPACE_HEADER: "workspace",
        ModelDataCollector.AML_SERVICE_NAME_HEADER: "webservice_name",
        ModelDataCollector.AML_MODEL_NAME_HEADER: "model_name",
        ModelDataCollector.AML_MODEL_VERSION_HEADER: "model_version",
    }
    fields: dict[str, Any] = {key: str(correlations[name]) for name, key in names.items() if name in correlations}
    if fields.get("id") == NO_REQUEST:
        fields["id"] = ""
    seconds = seconds_of(correlations.get(ModelDataCollector.AML_DC_SCORING_TIMESTAMP_HEADER))
    return fields if seconds is None else {**fields, "time": seconds}


def timestamp_of(seconds: float) -> str:
    """Return a time as the old service wrote it: UTC, without a zone."""
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime(TIMESTAMP, time.gmtime(whole))}.{microseconds:06d}"


def seconds_of(timestamp: object) -> float | None:
    """Return the time of a timestamp of the old service, in seconds since 1970; None if it is none."""
    if not isinstance(timestamp, str):
        return None
    whole, _, fraction = timestamp.partition(".")
    try:
        return calendar.timegm(time.strptime(whole, TIMESTAMP)) + float(f"0.{fraction or 0}")
    except ValueError:
        return None


def newest_version(model_name: str) -> str:
    """Return the highest version of a model that the project has; `default` if it has none of that name."""
    folder = os.path.join(os.environ.get("AML_APP_ROOT", "."), "azureml-models", str(model_name))
    try:
        versions = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except (OSError, ValueError):
        versions = []
    return str(max(versions)) if versions else "default"
