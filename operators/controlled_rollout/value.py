"""Immutable values without unknown fields, whose validation errors are `EndpointError`. Pure."""

import re
from typing import Any, Final, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator

from controlled_rollout.errors import EndpointError

__all__ = ["Value", "not_a_bool"]

# The user and the password of a URL.
_USER: Final = re.compile(r"://[^'\"\s]*@")
# What is missing has no value; one of a field that nobody knows may be a secret, such as an issuer's.
_VALUE_IS_NOT_SHOWN: Final = ("missing", "extra_forbidden")


def not_a_bool(value: Any) -> Any:
    """Return the value; raise for True and False, which Python would accept as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


class Value(BaseModel):
    """An immutable value without unknown fields, whose validation errors are `EndpointError`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _raise_endpoint_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise EndpointError instead of pydantic's ValidationError (a wrap validator)."""
        try:
            return handler(data)
        except ValidationError as error:
            _raise_endpoint_error(cls.__name__, error)


def _raise_endpoint_error(what: str, error: ValidationError) -> NoReturn:
    """Raise EndpointError with one line that lists each wrong field, its value without secrets, and the fault."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in fault["loc"]) or what
        value = "" if fault["type"] in _VALUE_IS_NOT_SHOWN else f" = {_USER.sub('://…@', repr(fault['input']))}"
        faults.append(f"{where}{value}: {fault['msg'].removeprefix('Value error, ')}")
    raise EndpointError(f"{what} is not valid: " + "; ".join(faults)) from None
