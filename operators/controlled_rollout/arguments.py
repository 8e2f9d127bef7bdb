"""A task's arguments: what a template renders as text becomes the number, the time or the gate that was meant."""

import json
import math
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.gate import Gate

__all__ = ["ArgumentError", "choice", "duration", "flag", "gate_of", "mapping_of", "number", "whole_number"]

DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>s|min|h|d)?")
SECONDS = {None: 1, "s": 1, "min": 60, "h": 3600, "d": 86400}


class ArgumentError(ControlledRolloutError):
    """An argument of a task does not make sense; nothing was changed."""


def duration(name: str, value: timedelta | float | str) -> timedelta:
    """Return a length of time given as a timedelta, as seconds, or as text such as `90 s`, `5 min`, `2 h`, `1 d`.

    Raises:
        ArgumentError: It is none of these, or negative.
    """
    if isinstance(value, timedelta) and value >= timedelta(0):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return timedelta(seconds=value)
    if isinstance(value, str) and (found := DURATION.fullmatch(value.strip())):
        return timedelta(seconds=float(found["number"]) * SECONDS[found["unit"]])
    raise ArgumentError(
        f"{name} = {value!r} is not a length of time: give a timedelta, seconds, or text such as '5 min'"
    )


def number(name: str, value: float | str) -> float:
    """Return a finite number that may be given as text.

    Raises:
        ArgumentError: It is not a finite number.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise ArgumentError(f"{name} = {value!r} is not a number")
    return found


def whole_number(name: str, value: int | str) -> int:
    """Return a whole number, 0 or more, that may be given as text.

    Raises:
        ArgumentError: It is not a whole number, or negative.
    """
    found = number(name, value)
    if found < 0 or found != int(found):
        raise ArgumentError(f"{name} = {value!r} is not a whole number of 0 or more")
    return int(found)


def flag(name: str, value: bool | str) -> bool:
    """Return a truth value that may be given as the text that a template makes of it.

    Raises:
        ArgumentError: It is neither true nor false.
    """
    found = {"true": True, "false": False}.get(str(value).strip().lower())
    if found is None:
        raise ArgumentError(f"{name} = {value!r} is neither true nor false")
    return found


def choice(name: str, value: str, *known: str) -> str:
    """Return `value` if it is one of the known ones.

    Raises:
        ArgumentError: It is not.
    """
    if value not in known:
        raise ArgumentError(f"{name} = {value!r} is not known: choose one of {', '.join(known)}")
    return value


def gate_of(value: Gate | Mapping[str, Any] | str | None) -> Gate:
    """Return the gate that an author wrote as a `Gate`, as its fields, as their JSON text, or not at all.

    Raises:
        ArgumentError: A field is unknown or not valid.
    """
    if isinstance(value, Gate):
        return value
    fields = mapping_of("gate", value)
    if "warm_up" in fields:
        fields["warm_up"] = duration("gate.warm_up", fields["warm_up"])
    try:
        return Gate.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(
            f"gate.{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False)
        )
        raise ArgumentError(f"the gate is not valid: {faults}; known are {', '.join(Gate.model_fields)}") from None


def mapping_of(name: str, value: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """Return fields that are given as a mapping, as the JSON text of one, or not at all.

    Raises:
        ArgumentError: It is no mapping.
    """
    found: Any = value or {}
    if isinstance(found, str):
        try:
            found = json.loads(found)
        except json.JSONDecodeError:
            found = None
    if not isinstance(found, Mapping):
        raise ArgumentError(f"{name} = {value!r} is not a mapping of fields, nor the JSON text of one")
    return dict(found)
