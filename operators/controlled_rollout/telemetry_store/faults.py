"""What the store can be told to do wrong, so that whoever asks it can be tested against a real one.

A JSON file that is looked at before every query: absent or empty, nothing goes wrong. Telemetry is always taken.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from controlled_rollout.telemetry_store.answer import Answer, error_answer

__all__ = ["NO_FAULT", "Fault", "Faults"]

# As the service answers, by what it is told to do.
REFUSALS: Final[dict[str, tuple[int, str, str]]] = {
    "throttle": (429, "ThrottledError", "The request has been throttled: too many queries in 30 s"),
    "forbid": (403, "InsufficientAccessError", "The provided credentials have insufficient access to the workspace"),
    "time_out": (504, "GatewayTimeout", "The query was stopped: it took too long"),
    "unavailable": (503, "ServiceUnavailable", "The service is not available"),
}


class Fault(BaseModel):
    """What goes wrong now.

    Attributes:
        answer: Every query is answered `throttle` (429), `forbid` (403), `time_out` (504), `unavailable` (503),
            `partial` (200 with half of the rows and an error) or `garbage` (200 with what is no JSON).
        longer_than: Only queries of more than so many characters get that answer.
        retry_after: What the header Retry-After says, word for word.
        late_s: Rows are seen only so many seconds after they came.
        lost: Rows whose properties have all these values are not seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answer: Literal["throttle", "forbid", "time_out", "unavailable", "partial", "garbage"] | None = None
    longer_than: int = 0
    retry_after: str | None = None
    late_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    lost: dict[str, str] = {}

    def refusal(self, query: object) -> Answer | None:
        """Return what a query is answered instead of being run; None where it is run."""
        if self.answer is None or len(str(query)) <= self.longer_than:
            return None
        if self.answer == "garbage":
            return Answer(200, b"<html>Our services aren't available right now</html>")
        if self.answer == "partial":
            return None
        refused = error_answer(*REFUSALS[self.answer])
        return Answer(refused.status, refused.body, self.retry_after)

    @property
    def is_partial(self) -> bool:
        """Whether answers are cut in half."""
        return self.answer == "partial"

    def view(self, sql: str) -> str:
        """Return the SELECT of a table's visible rows, from the one of all its rows."""
        if self.late_s:
            came = f"\"_TimeReceived\" + INTERVAL '{self.late_s:.3f} seconds'"
            sql = (
                f'SELECT * REPLACE ({came} AS "_TimeReceived") FROM ({sql}) '  # noqa: S608 - a number, our own SQL
                f"WHERE {came} <= now() AT TIME ZONE 'UTC'"
            )
        if self.lost:
            others = " OR ".join(
                f"{_property(name)} IS DISTINCT FROM {_quoted(text)}" for name, text in self.lost.items()
            )
            sql = f"SELECT * FROM ({sql}) WHERE {others}"  # noqa: S608 - quoted
        return sql


def _property(name: str) -> str:
    return f"json_extract_string(\"Properties\", '$.' || {_quoted(json.dumps(name))})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


NO_FAULT: Final = Fault()


@dataclass(slots=True)
class Faults:
    """The faults that a file tells.

    Attributes:
        file: The file; None for a store that cannot be told.
    """

    file: Path | None = None
    _known: tuple[Any, Fault] = field(default=(None, NO_FAULT))

    def now(self) -> Fault:
        """Return what goes wrong now.

        Raises:
            ValueError: The file does not say it in its own terms.
        """
        if self.file is None:
            return NO_FAULT
        try:
            text = self.file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return NO_FAULT
        if self._known[0] != text:
            try:
                self._known = (text, Fault.model_validate_json(text or "{}"))
            except ValidationError as error:
                raise ValueError(f"{self.file} tells no fault that is known: {error}") from None
        return self._known[1]
