"""The alias of a model in MLflow's registry: it follows the endpoint's control, forwards and back.

Which model a version is made of, and by which alias the registry should show it, is in the version's `properties`: a
promotion by hand and a roll-back find it there.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.addresses import no_proxy_variables
from controlled_rollout.errors import ArgumentError

if TYPE_CHECKING:
    from controlled_rollout.endpoint import Endpoint

__all__ = [
    "alias_properties",
    "check_alias",
    "check_model",
    "follow_control",
    "resolve_model",
    "stale_alias",
    "with_alias",
]

MODEL_PROPERTY: Final = "mlflow_model"
ALIAS_PROPERTY: Final = "mlflow_alias"
MODEL: Final = re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>[1-9]\d*)")
BY_ALIAS: Final = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")
# What MLflow takes: `latest` and `v7` would be read as versions.
ALIAS: Final = re.compile(r"(?!(?i:latest)$)(?![vV]\d+$)[A-Za-z0-9_-]{1,255}")
# A registry that is away must not keep the task for the minutes that MLflow would try by itself.
PATIENCE: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check_alias(name: str, value: str) -> str:
    """Return an alias; raise ArgumentError if MLflow does not take it.

    Args:
        name: The argument's name.
        value: The alias.
    """
    if not ALIAS.fullmatch(value):
        raise ArgumentError(
            f"{name} = {value!r} is no alias for MLflow: give letters, digits, - and _, such as 'champion'; "
            "not 'latest', and nothing like 'v7'"
        )
    return value


def check_model(name: str, value: str) -> str:
    """Return a model version's address; raise ArgumentError unless it is `models:/<name>/<version>`.

    Args:
        name: The argument's name.
        value: The address.
    """
    if not MODEL.fullmatch(value):
        raise ArgumentError(
            f"{name} = {value!r} is no model version of MLflow's registry: give models:/<name>/<version>"
        )
    return value


def alias_properties(alias: str | None, model: str | None) -> dict[str, str]:
    """Return the properties of a version whose model has an alias in the registry; empty without an alias.

    Args:
        alias: The alias that the model gets when the version becomes control.
        model: The model's version, `models:/<name>/<version>`.

    Raises:
        ArgumentError: One of them is not valid, or the model is not known.
    """
    if alias is None:
        return {}
    if model is None:
        raise ArgumentError(
            f"mlflow_alias = {alias!r} was given, and which model of MLflow's registry the version is made of is not "
            "known: give mlflow_model='models:/<name>/<version>', or build the image by a BuildImageOperator with one "
            "such model"
        )
    return {ALIAS_PROPERTY: check_alias("mlflow_alias", alias), MODEL_PROPERTY: check_model("mlflow_model", model)}


def with_alias(settings: Mapping[str, Any], alias: str | None, model: str | None) -> dict[str, Any]:
    """Return the settings of a version with the properties that say which alias its model gets.

    Args:
        settings: The version's settings.
        alias: The alias; None for none.
        model: The model's version, `models:/<name>/<version>`.

    Raises:
        ArgumentError: One of them is not valid, or the model is not known.
    """
    if not (properties := alias_properties(alias, model)):
        return dict(settings)
    given = settings.get("properties") or {}
    if not isinstance(given, Mapping):
        raise ArgumentError(f"settings.properties = {given!r}: give a mapping of texts")
    return {**settings, "properties": {**given, **properties}}


def resolve_model(address: str) -> str:
    """Return `models:/<name>/<version>` for the address of a registered model, also for one by an alias.

    Args:
        address: `models:/<name>/<version>`, or `models:/<name>@<alias>`: then what the alias means now.

    Raises:
        ImageError: There is no such model, or the registry refuses.
        ModelStoreUnavailableError: The registry does not answer.
    """
    from controlled_rollout.image.inputs.remote_models import MlflowStore

    os.environ.update(no_proxy_variables(os.environ))
    return MlflowStore(address).address if BY_ALIAS.fullmatch(address) else address


def follow_control(endpoint: "Endpoint", progress: Callable[[str], None]) -> str | None:
    """Move the alias that the control's properties name to the control's model. It may be called again.

    Args:
        endpoint: The endpoint as stored.
        progress: Takes a sentence once the alias is moved.

    Returns:
        What kept the alias from being moved, in a sentence; None if nothing did, or none is named.
    """
    control = endpoint.control
    properties = control.properties if control is not None else {}
    alias, model = properties.get(ALIAS_PROPERTY), properties.get(MODEL_PROPERTY)
    if not alias or not model:
        return None
    try:
        parts = MODEL.fullmatch(check_model(MODEL_PROPERTY, model))
        assert parts is not None  # noqa: S101 - it was checked
        os.environ.update(no_proxy_variables(os.environ))
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        MlflowClient().set_registered_model_alias(parts["name"], check_alias(ALIAS_PROPERTY, alias), parts["version"])
    except Exception as error:  # the endpoint serves the version, whatever the registry says
        why = str(error).partition("\n")[0] or type(error).__name__
        return (
            f"the alias {alias!r} in MLflow's registry was NOT moved to {model}, which endpoint {endpoint.name!r} "
            f"serves now: {why}"
        )
    progress(f"the alias {alias!r} in MLflow's registry is {model} now")
    return None


def stale_alias(endpoint: "Endpoint", former: str | None) -> str | None:
    """Return, in a sentence, which alias stays at the model of the former control; None if none does. Pure.

    Args:
        endpoint: The endpoint as stored.
        former: The version that was control before; None if there was none, or it is not known.
    """
    control, before = endpoint.control, endpoint.versions.get(former or "")
    if control is None or before is None:
        return None
    alias, model = before.properties.get(ALIAS_PROPERTY), before.properties.get(MODEL_PROPERTY)
    moved, moved_to = control.properties.get(ALIAS_PROPERTY), control.properties.get(MODEL_PROPERTY, "")
    if not alias or not model or (moved, moved_to.rpartition("/")[0]) == (alias, model.rpartition("/")[0]):
        return None
    other = f"has the alias {moved!r} of {moved_to}" if moved else "was deployed without mlflow_alias"
    return (
        f"the alias {alias!r} in MLflow's registry stays at {model} of {former!r}, which is control no longer: "
        f"{control.name!r} {other}; move the alias by hand if it should follow, or delete it"
    )
