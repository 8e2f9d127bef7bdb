"""The environment variables of a version: plain text, or a reference to a key of a secret. Pure.

A reference names a secret of the target and a key in it; its value is in no document, log or command line.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from controlled_rollout.errors import EndpointError

__all__ = [
    "EnvironmentVariables",
    "SecretReference",
    "can_be_variable",
    "check_secret",
    "check_secret_values",
    "check_variables",
]

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# As Kubernetes has them.
SECRET_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
SECRET_KEY: Final = re.compile(r"(?!\.\.?$)[-._A-Za-z0-9]{1,253}")
MAX_SECRET_NAME: Final = 253
# Such as the Secret with an endpoint's keys.
OWN_SECRETS: Final = "controlled-rollout-"
# Linux starts no process with a variable of 128 KiB, its name included.
MAX_SECRET_BYTES: Final = 100_000
# A revision of an endpoint is one object, and has all of its versions.
MAX_CHARACTERS: Final = 32_768

# What a field of the version sets, and what the target or the image sets.
FIELDS: Final = {
    "WORKER_COUNT": "worker_count",
    "SCORING_TIMEOUT_MS": "scoring_timeout_ms",
    "REPLICA_MAX_CONCURRENT_REQUESTS": "replica_max_concurrent_requests",
    "MAX_REQUEST_WAIT_TIME_MS": "max_request_wait_time",
    "DRAIN_TIMEOUT_S": "scoring_timeout_ms",
}
RESERVED: Final = (
    "AML_APP_ROOT",
    "AZUREML_ENTRY_SCRIPT",
    "AZUREML_MODEL_DIR",
    "CAPTURE_ENDPOINT",
    "CAPTURE_MAX_BODY_BYTES",
    "CAPTURE_REPLICA",
    "CAPTURE_SHARE",
    "CAPTURE_SPOOL",
    "CAPTURE_SPOOL_BYTES",
    "CAPTURE_VERSION",
    "CONTROLLED_ROLLOUT_RUNTIME",
    "PATH",
    "PYTHONPATH",
)
# Settings of the scoring runtime that are whole numbers, and their limits. The routers take no larger body.
NUMBERS: Final = {"MAX_BODY_BYTES": 100_000_000, "MAX_QUEUED_REQUESTS": 10_000}

LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class SecretReference(BaseModel):
    """A key of a secret: of a Kubernetes Secret in the versions' namespace, or of a secret of the local workspace.

    Attributes:
        secret: The secret's name.
        key: The key in it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    secret: str
    key: str


def can_be_variable(value: str) -> bool:
    """Return whether a text can be the value of an environment variable: UTF-8 without NUL characters."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def check_secret_values(name: str, values: Mapping[str, str]) -> None:
    """Raise EndpointError unless a secret may have this name, these keys, and these values as environment variables.

    Raises:
        EndpointError: It may not; the message has no value.
    """
    check_secret(name, *values)
    for key, value in values.items():
        if not can_be_variable(value):
            raise EndpointError(
                f"the value for the key {key!r} of the secret {name!r} has a NUL character or half of a surrogate "
                "pair, which no environment variable can have: encode it, such as with base64"
            )
        if (size := len(value.encode())) > MAX_SECRET_BYTES:
            raise EndpointError(
                f"the value for the key {key!r} of the secret {name!r} has {size:,} bytes, and an environment variable "
                f"may have {MAX_SECRET_BYTES:,}: put what is long into a file of a model"
            )


def check_secret(name: str, *keys: str) -> None:
    """Raise EndpointError unless a secret and its keys may have these names, which are Kubernetes' rules.

    Raises:
        EndpointError: They may not.
    """
    if len(name) > MAX_SECRET_NAME or not SECRET_NAME.fullmatch(name):
        raise EndpointError(
            f"a secret cannot have the name {name!r}: use lower-case letters, digits, hyphens and dots, beginning and "
            "ending with a letter or a digit"
        )
    if name.startswith(OWN_SECRETS):
        raise EndpointError(
            f"a secret cannot have the name {name!r}: names with {OWN_SECRETS} have endpoints' own secrets"
        )
    for key in keys:
        if not SECRET_KEY.fullmatch(key):
            raise EndpointError(
                f"the secret {name!r} cannot have the key {key!r}: use letters, digits, hyphens, underscores and dots"
            )


def check_variables(variables: Any) -> dict[str, str | SecretReference]:
    """Return the variables by name; raise EndpointError, without any value in its message, if one is not valid.

    Raises:
        EndpointError: One is not.
    """
    if not isinstance(variables, Mapping):
        raise EndpointError("environment_variables is no mapping: give names and values, such as {'THRESHOLD': '0.7'}")
    checked = {}
    for name, value in variables.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise EndpointError(
                f"environment_variables has the name {name!r}: use letters, digits and underscores, not beginning with "
                "a digit"
            )
        if name in FIELDS:
            raise EndpointError(f"environment_variables sets {name}: set the version's {FIELDS[name]} instead")
        if name in RESERVED:
            raise EndpointError(f"environment_variables sets {name}, which the image or the target sets: leave it out")
        checked[name] = _checked_value(name, value)
    size = sum(len(name) + len(value) for name, value in checked.items() if isinstance(value, str))
    if size > MAX_CHARACTERS:
        raise EndpointError(
            f"environment_variables has {size:,} characters, and may have {MAX_CHARACTERS:,}: put what is long into a "
            "file of the project folder or of a model"
        )
    return checked


def _checked_value(name: str, value: Any) -> str | SecretReference:
    """Return the value of one variable; raise EndpointError, without the value in its message, if it is not valid."""
    if isinstance(value, SecretReference):
        return value
    if isinstance(value, Mapping):
        if set(value) != {"secret", "key"} or not all(isinstance(part, str) for part in value.values()):
            known = sorted(str(part) for part in value)
            raise EndpointError(
                f"environment_variables.{name} has the fields {', '.join(known) or 'none'}: a reference has the fields "
                "secret and key, both text (a task of Airflow takes connection and field, too)"
            )
        check_secret(value["secret"], value["key"])
        return SecretReference(**value)
    if not isinstance(value, str):
        raise EndpointError(
            f"environment_variables.{name} is of the type {type(value).__name__}: give a text (in quotes), or a "
            "reference to a secret"
        )
    if not can_be_variable(value):
        raise EndpointError(
            f"environment_variables.{name} has a NUL character or half of a surrogate pair, which no environment "
            "variable can have"
        )
    limit = NUMBERS.get(name)
    # No limit has more than twelve digits, and Python reads none with thousands of them.
    if limit and not (value.isascii() and value.isdigit() and len(value) <= 12 and 0 < int(value) <= limit):
        raise EndpointError(f"environment_variables.{name} is no whole number from 1 to {limit:,}: give one")
    if name == "AZUREML_LOG_LEVEL" and value.upper() not in LOG_LEVELS:
        raise EndpointError(f"environment_variables.{name} is not known: choose one of {', '.join(LOG_LEVELS)}")
    return value


# For a schema: the names, without those that something else sets.
NAMES_SCHEMA: Final[dict[str, Any]] = {
    "pattern": f"^{NAME.pattern}$",
    "not": {"enum": sorted([*FIELDS, *RESERVED])},
}
EnvironmentVariables = Annotated[
    dict[str, str | SecretReference],
    BeforeValidator(check_variables),
    Field(json_schema_extra={"propertyNames": NAMES_SCHEMA}),
]
