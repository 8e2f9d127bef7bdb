"""What scripts get as `azureml.ai.monitoring`: `Collector` and its contexts, of azureml-ai-monitoring 1.0.0."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from controlled_rollout_scoring import capture
from controlled_rollout_scoring.collectors.tables import is_frame
from controlled_rollout_scoring.log import log

AGENT = "azureml-ai-monitoring/1.0.0"


class CorrelationContext:
    """What names rows that belong together."""

    def get_id(self) -> str:
        """Return the correlation id."""
        return ""

    def __str__(self) -> str:
        return self.get_id()

    def __repr__(self) -> str:
        return self.get_id()


class BasicCorrelationContext(CorrelationContext):
    """An id, made if none is given, the time in seconds since 1970, and further fields."""

    def __init__(
        self, id: str | None = None, timestamp: int | None = None, headers: Mapping[str, Any] | None = None
    ) -> None:
        self.id = id or str(uuid.uuid4())
        self.timestamp = timestamp or int(time.time())
        self.headers = headers or {}

    def get_id(self) -> str:
        """Return the correlation id."""
        return self.id

    def get_timestamp(self) -> int:
        """Return the time."""
        return self.timestamp

    def get_headers(self) -> Mapping[str, Any]:
        """Return the further fields."""
        return self.headers


def get_context() -> CorrelationContext:
    """Return a context with an id of its own."""
    return BasicCorrelationContext()


class Collector:
    """Collects frames; without `collect_model_data` it says so, and does nothing.

    Args:
        name: What the collection is called, such as `model_inputs`.
        on_error: Called with the exception instead of raising it.
    """

    def __init__(self, *, name: str, on_error: Callable[[Exception], Any] | None = None) -> None:
        self.name = name
        self._on_error = on_error
        self._capture = capture.active()
        if not name:
            self._fail(Exception("collection name is not provided"))
        elif self._capture is None:
            self._report_not_enabled()

    def collect(self, data: Any, correlation_context: CorrelationContext | None = None) -> CorrelationContext:
        """Keep the rows of a frame; return the context, which can be given for rows that belong to the same request."""
        context = get_context() if correlation_context is None else correlation_context
        if not self.name:
            self._fail(Exception("collection name is not provided"))
        elif self._capture is None:
            self._report_not_enabled()
        elif not is_frame(data):
            kind = type(data).__name__
            self._fail(TypeError(f"data type ({kind}) not supported, supported types: pandas.DataFrame"))
        else:
            self._capture.collect(lambda: [self._record(data, context)])
        return context

    def _record(self, frame: Any, context: CorrelationContext) -> tuple[dict[str, Any], bytes]:
        """Return the head and the body of a record."""
        headers, timestamp = (getattr(context, name, None) for name in ("get_headers", "get_timestamp"))
        head = {
            "collector": "v2",
            "collection": str(self.name),
            "correlation": str(context.get_id()),
            "columns": [str(name) for name in frame.columns],
            "rows": len(frame),
            "collectdatatype": f"{type(frame).__module__}.{type(frame).__qualname__}",
            "agent": AGENT,
            "context_time": timestamp() if timestamp else None,
            "context_headers": {str(name): str(value) for name, value in (headers() if headers else {}).items()},
        }
        return head, frame.to_json(orient="records").encode()

    def _report_not_enabled(self) -> None:
        """Say that nothing is kept. Without `on_error` the real package would raise, and the script not be served."""
        if self._on_error is not None:
            self._on_error(Exception("custom logging is not enabled, drop the data"))
        elif not _said:
            _said.append(True)
            log(f"the collection {self.name!r} of the script is not kept: set collect_model_data=True on the version")

    def _fail(self, error: Exception) -> None:
        """Hand an error to the script, as the real package does."""
        if self._on_error is None:
            raise error
        self._on_error(error)


# Whether the log has said that nothing is collected.
_said: list[bool] = []
