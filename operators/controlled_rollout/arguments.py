"""Reads the arguments of a task or a command: text from a template or a shell becomes a number, a duration, a gate."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from pydantic import ValidationError

from controlled_rollout.duration import parse_duration
from controlled_rollout.endpoint import Auth
from controlled_rollout.errors import ArgumentError, ControlledRolloutError, EndpointError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.sticky import StickyKey
from controlled_rollout.tokens import TokenIssuer

__all__ = [
    "authentication",
    "check_authentication",
    "check_choice",
    "choice",
    "duration",
    "evidence_window",
    "flag",
    "gate_of",
    "mapping_of",
    "number",
    "optional_text",
    "read_all",
    "sticky_key",
    "text",
    "whole_number",
]


# Without the value: it may be a key that somebody has pasted.
NO_AUTHENTICATION: Final = f"has an unknown value: choose one of {', '.join(Auth)}, or give an issuer's fields"


def duration(name: str, value: timedelta | float | str) -> timedelta:
    """Parse an argument of an Airflow task as a duration; raise ArgumentError if it is none.

    Raises:
        ArgumentError: It is not a length of time.
    """
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ArgumentError(f"{name} = {error}") from None


def evidence_window(
    bin_width: timedelta | float | str, allowed_lag: timedelta | float | str, baseline_length: timedelta | float | str
) -> EvidenceWindow:
    """Parse the three durations that say how evidence is read, and return them as an evidence window.

    Raises:
        ArgumentError: One of the three is not a length of time, or `bin_width` does not divide a day.
    """
    lengths = {
        "bin_width": duration("bin_width", bin_width),
        "allowed_lag": duration("allowed_lag", allowed_lag),
        "baseline_length": duration("baseline_length", baseline_length),
    }
    try:
        return EvidenceWindow(**lengths)
    except ControlledRolloutError as error:
        raise ArgumentError(str(error)) from None


def text(name: str, value: Any) -> str:
    """Return an argument as text, also if Airflow's native rendering has made a number of it.

    Raises:
        ArgumentError: There is none.
    """
    if value is None:
        raise ArgumentError(f"{name} = None: give a text")
    return str(value)


def optional_text(value: Any) -> str | None:
    """Return an argument as text; None for None, an empty text, and what a template makes of None."""
    return None if value in (None, "", "None") else str(value)


def number(name: str, value: float | str) -> float:
    """Parse an argument as a finite number.

    Raises:
        ArgumentError: It is not a finite number.
    """
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise ArgumentError(f"{name} = {value!r} is not a number")
    return result


def whole_number(name: str, value: int | str) -> int:
    """Parse an argument as an integer of 0 or more.

    Raises:
        ArgumentError: It is not a whole number, or negative.
    """
    result = number(name, value)
    if result < 0 or not result.is_integer():
        raise ArgumentError(f"{name} = {value!r} is not a whole number of 0 or more")
    return int(result)


def flag(name: str, value: bool | str) -> bool:
    """Parse an argument as a boolean, also from the text "True" or "false" that a template gives.

    Raises:
        ArgumentError: It is neither true nor false.
    """
    result = {"true": True, "false": False}.get(str(value).strip().lower())
    if result is None:
        raise ArgumentError(f"{name} = {value!r} is neither true nor false")
    return result


def optional_duration(name: str, value: timedelta | float | str | None) -> timedelta | None:
    """Parse an argument as a duration of 0 or more; None and an empty text are none.

    Raises:
        ArgumentError: It is neither.
    """
    return None if value is None or str(value) in ("", "None") else duration(name, value)


def sticky_key(name: str, value: Any) -> str | None:
    """Parse an argument as the key of a sticky endpoint, such as `header:x-user`; None and an empty text are none.

    Raises:
        ArgumentError: It names no key of a caller.
    """
    if value is None or str(value) in ("", "None"):
        return None
    try:
        return str(StickyKey.parse(str(value)))
    except EndpointError as error:
        raise ArgumentError(f"{name}: {error}") from error


def choice(name: str, value: str, *allowed: str) -> str:
    """Return an argument if it is one of the allowed values; raise ArgumentError otherwise.

    Raises:
        ArgumentError: It is not.
    """
    if value not in allowed:
        raise ArgumentError(f"{name} = {value!r} is not known: choose one of {', '.join(allowed)}")
    return value


def authentication(name: str, value: Any) -> Auth | TokenIssuer | None:
    """Parse an argument as how callers authenticate: `key`, `token`, `none`, or the fields of an issuer of tokens.

    None, also as a template renders it, asks for nothing: an endpoint that exists keeps what it has, and a new one gets
    keys.

    Raises:
        ArgumentError: It is none of the names, and a field of the issuer is missing, unknown or not valid.
    """
    if value is None or value == "None":
        return None
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        if value not in [*Auth]:
            raise ArgumentError(f"{name} {NO_AUTHENTICATION}")
        return Auth(value)
    if isinstance(value, TokenIssuer):
        return value
    try:
        fields = mapping_of(name, value)
    except ArgumentError:
        raise ArgumentError(f"{name} {NO_AUTHENTICATION}") from None
    try:
        return TokenIssuer(**fields)
    except (EndpointError, TypeError) as error:
        raise ArgumentError(f"{name} is no issuer of tokens: {error}") from None


def check_authentication(name: str, value: Any) -> None:
    """Raise ValueError for a way to authenticate that is written into a DAG and not known; a template is read later.

    Raises:
        ValueError: It is text without a template, and neither one of the names nor the JSON text of an issuer.
    """
    is_written = (
        isinstance(value, str) and "{{" not in value and "{%" not in value and not value.lstrip().startswith("{")
    )
    if is_written and value not in [*Auth]:
        raise ValueError(f"{name} {NO_AUTHENTICATION}")


def check_choice(name: str, value: Any, *allowed: str) -> None:
    """Raise ValueError for an argument that is written into a DAG and is not allowed; a template is read later.

    Raises:
        ValueError: It is text without a template, and none of the allowed values.
    """
    if isinstance(value, str) and "{{" not in value and "{%" not in value and value not in allowed:
        raise ValueError(f"{name} = {value!r} is not known: choose one of {', '.join(allowed)}")


def gate_of(value: Gate | Mapping[str, Any] | str | None) -> Gate:
    """Parse an argument as a gate: a `Gate`, its fields, their JSON text, or None for the default gate.

    Raises:
        ArgumentError: A field is unknown or not valid.
    """
    if isinstance(value, Gate):
        return value
    fields = mapping_of("gate", value)
    try:
        return Gate.model_validate(fields)
    except ValidationError as error:
        raise ArgumentError(f"the gate is not valid: {_gate_faults(error)}") from None


def _gate_faults(error: ValidationError) -> str:
    """Return each wrong field of a gate with its value and what is wrong with it."""
    faults = error.errors(include_url=False, include_context=False)
    texts = []
    for fault in faults:
        message = fault["msg"].removeprefix("Value error, ")
        # What several fields say together is no value of one.
        place = ".".join(map(str, fault["loc"]))
        texts.append(f"gate.{place} = {reprlib.repr(fault['input'])}: {message}" if place else message)
    if any(fault["type"] == "extra_forbidden" for fault in faults):
        texts.append(f"known are {', '.join(Gate.model_fields)}")
    return "; ".join(texts)


def mapping_of(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Parse an argument as a mapping: a mapping, its JSON text, or None for an empty one.

    Raises:
        ArgumentError: It is no mapping.
    """
    fields: Any = {} if value is None or value == "" else value
    if isinstance(fields, str):
        try:
            fields = json.loads(fields)
        except (ValueError, RecursionError):  # numbers of thousands of digits, or nested too deep
            fields = None
    if not isinstance(fields, Mapping):
        raise ArgumentError(f"{name} = {reprlib.repr(value)} is not a mapping of fields, nor the JSON text of one")
    return dict(fields)


def read_all(readers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Call every reader and return the results by name; raise one ArgumentError with the faults of all of them.

    Raises:
        ArgumentError: Some failed; the message has the reasons of all of them.
    """
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, read in readers.items():
        try:
            values[name] = read()
        except ControlledRolloutError as error:
            faults.append(str(error))
    if faults:
        raise ArgumentError("\n".join(faults))
    return values
