"""Reads the JSON of the retired SDK's endpoints (`AksEndpoint.serialize()`, azureml-core 1.61) as an endpoint. Pure.

Also that of one service (`AksWebservice.serialize()`), and of a deployment configuration: its attributes, or the file
of the retired command line.
"""

import json
import math
import reprlib
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ArgumentError, EndpointError
from controlled_rollout.version import Version

__all__ = ["ImportedEndpoint", "parse_json", "read_aks_endpoint"]

Reader = Callable[[Any], Any]


@dataclass(frozen=True)
class ImportedEndpoint:
    """An endpoint of the retired service as one of ours.

    Attributes:
        endpoint: The endpoint; its versions have no image yet.
        left_out: What has no counterpart here, a sentence for each field.
        notes: What is different from before, or is set by the file and by no command, a sentence each.
    """

    endpoint: Endpoint
    left_out: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the endpoint as JSON values, without what is a default."""
        own = self.endpoint.model_dump(mode="json", exclude_defaults=True, exclude={"versions"})
        versions = {
            name: {
                "image": "",
                **version.model_dump(mode="json", exclude_defaults=True, exclude={"name", "autoscale_enabled"}),
            }
            for name, version in self.endpoint.versions.items()
        }
        return {**own, "versions": versions}

    def commands(self) -> list[str]:
        """Return the command lines that make it so, the default version first, as the first one becomes it.

        One rollout holds an endpoint: each but the last is ended, at 0 %, before the next version is deployed.
        """
        endpoint = self.endpoint
        lines = []
        ordered = sorted(endpoint.versions.values(), key=lambda version: not version.is_default)
        for version in ordered:
            words = ["controlled-rollout", "deploy", endpoint.name, version.name, "--image", f"IMAGE-OF-{version.name}"]
            if version.is_default and endpoint.auth is not Auth.KEY:
                words += ["--auth", str(endpoint.auth)]
            fields = version.model_dump(mode="json", exclude_defaults=True, exclude=_SET_BY_STEPS)
            words += [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]
            lines.append(shlex.join(words))
            if version not in (ordered[0], ordered[-1]):
                reason = ["--reason", "the next version is deployed"]
                lines.append(shlex.join(["controlled-rollout", "rollback", endpoint.name, version.name, *reason]))
        lines += [
            shlex.join(["controlled-rollout", "shift", endpoint.name, version.name, f"{version.traffic_percentile:g}"])
            for version in endpoint.versions.values()
            if version.traffic_percentile and not version.is_default
        ]
        return lines


_SET_BY_STEPS: Final = {"name", "image", "traffic_percentile", "is_default", "is_control", "autoscale_enabled"}


def parse_json(text: str) -> Any:
    """Return JSON as values; two values for one name, and numbers that JSON does not have, are refused.

    Raises:
        ArgumentError: It is not such JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return the pairs as a mapping; raise ValueError for a name that occurs twice."""
        counted = Counter(name for name, _ in pairs)
        if repeated := sorted(name for name, count in counted.items() if count > 1):
            raise ValueError(f"{', '.join(map(reprlib.repr, repeated))}: given twice, so one of the two would be lost")
        return dict(pairs)

    def refuse(constant: str) -> NoReturn:
        """Raise ValueError: Python's JSON takes what the standard does not."""
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        problem = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ArgumentError(
            f"it is not the JSON of an endpoint: {problem}: write it with `json.dump(endpoint.serialize(), file)`"
        ) from None


def _boolean(value: Any) -> bool:
    """Return a boolean; raise ValueError for anything else."""
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


def _number(value: Any) -> float:
    """Return a finite number; raise ValueError for anything else, also for a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(_as_float(value)):
        raise ValueError("give a number")
    return value


def _as_float(value: float) -> float:
    """Return a number as a float; infinity for a whole number that is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _whole_number(value: Any) -> int:
    """Return a whole number; raise ValueError for anything else."""
    number = _number(value)
    if number != int(number):
        raise ValueError("give a whole number")
    return int(number)


def _text(value: Any) -> str:
    """Return a text; raise ValueError for anything else."""
    if not isinstance(value, str) or not _is_unicode(value):
        raise ValueError("give a text")
    return value


def _is_unicode(text: str) -> bool:
    """Return whether a text has whole characters only: JSON can write halves of one."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _texts(value: Any) -> dict[str, str]:
    """Return a mapping of texts; raise ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError("give texts by name")
    if not all(isinstance(text, str) and _is_unicode(text) for text in (*value, *value.values())):
        raise ValueError("give texts by name")
    return dict(value)


def _is_control(value: Any) -> bool:
    """Return whether a version's type is that of the control; raise ValueError for an unknown one."""
    kinds = {"control": True, "treatment": False}
    if not isinstance(value, str) or value.lower() not in kinds:
        raise ValueError("give Control or Treatment")
    return kinds[value.lower()]


# Ours, by the name in the JSON; in brackets the objects in it.
_ENDPOINT_FIELDS: Final[Mapping[str, tuple[str, Reader]]] = {
    "name": ("name", _text),
    "description": ("description", _text),
    "tags": ("tags", _texts),
    "properties": ("properties", _texts),
    "namespace": ("namespace", _text),
    "appInsightsEnabled": ("enable_app_insights", _boolean),
}
_VERSION_FIELDS: Final[Mapping[str, tuple[str, Reader]]] = {
    "description": ("description", _text),
    "tags": ("tags", _texts),
    "properties": ("properties", _texts),
    "trafficPercentile": ("traffic_percentile", _number),
    "isDefault": ("is_default", _boolean),
    "versionType": ("is_control", _is_control),
    "numReplicas": ("num_replicas", _whole_number),
    "scoringTimeoutMs": ("scoring_timeout_ms", _whole_number),
    "maxConcurrentRequestsPerContainer": ("replica_max_concurrent_requests", _whole_number),
    "maxQueueWaitMs": ("max_request_wait_time", _whole_number),
    "autoScaler.autoscaleEnabled": ("autoscale_enabled", _boolean),
    "autoScaler.minReplicas": ("autoscale_min_replicas", _whole_number),
    "autoScaler.maxReplicas": ("autoscale_max_replicas", _whole_number),
    "autoScaler.refreshPeriodInSeconds": ("autoscale_refresh_seconds", _whole_number),
    "autoScaler.targetUtilization": ("autoscale_target_utilization", _whole_number),
    "containerResourceRequirements.cpu": ("cpu_cores", _number),
    "containerResourceRequirements.cpuLimit": ("cpu_cores_limit", _number),
    "containerResourceRequirements.memoryInGB": ("memory_gb", _number),
    "containerResourceRequirements.memoryInGBLimit": ("memory_gb_limit", _number),
    "containerResourceRequirements.gpu": ("gpu_cores", _whole_number),
    "dataCollection.storageEnabled": ("collect_model_data", _boolean),
    "livenessProbeRequirements.periodSeconds": ("period_seconds", _whole_number),
    "livenessProbeRequirements.initialDelaySeconds": ("initial_delay_seconds", _whole_number),
    "livenessProbeRequirements.timeoutSeconds": ("timeout_seconds", _whole_number),
    "livenessProbeRequirements.successThreshold": ("success_threshold", _whole_number),
    "livenessProbeRequirements.failureThreshold": ("failure_threshold", _whole_number),
}
_OBJECTS: Final = ("autoScaler", "containerResourceRequirements", "dataCollection", "livenessProbeRequirements")
# A deployment configuration's attributes, by the same fields.
_CONFIGURATION: Final[Mapping[str, str]] = {
    **{ours: theirs for theirs, (ours, _) in _VERSION_FIELDS.items() if ours != "is_control"},
    "version_type": "versionType",
    "auth_enabled": "authEnabled",
    "token_auth_enabled": "aadAuthEnabled",
    "enable_app_insights": "appInsightsEnabled",
    "namespace": "namespace",
}
_BUILD: Final = "build it again with `controlled-rollout build`, and name the image in `image`"
_KEYS: Final = "the endpoint gets new keys: `controlled-rollout keys` prints them"
_WAS: Final = "what it was at the retired service, and no setting"
_WITHOUT_COUNTERPART: Final[Mapping[str, str]] = {
    **dict.fromkeys(("imageId", "imageDigest", "imageDetails", "environmentDetails", "modelDetails"), _BUILD),
    **dict.fromkeys(("keys", "primaryKey", "secondaryKey", "primary_key", "secondary_key"), _KEYS),
    **dict.fromkeys(
        (
            "state",
            "createdTime",
            "updatedTime",
            "createdBy",
            "error",
            "deploymentStatus",
            "scoringUri",
            "workspaceName",
        ),
        _WAS,
    ),
    **dict.fromkeys(
        ("computeName", "computeType", "compute_target_name"),
        "the cluster is that of the workspace, not of an endpoint",
    ),
    **dict.fromkeys(("storageInitEnabled", "blobfuse_enabled"), "models are in the image, or fetched when it is built"),
    "dataCollection.eventHubEnabled": "what versions collect goes to the workspace's storage only",
    "overwrite": "a command says what it replaces",
}
_SECRET: Final = ("keys", "primaryKey", "secondaryKey", "primary_key", "secondary_key")


@dataclass
class _Reading:
    """What has been found in the JSON so far."""

    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def read(self, path: str, value: Any, reader: Reader) -> Any:
        """Return a field's value as `reader` takes it; None, after a note, for one that it refuses."""
        try:
            return reader(value)
        except ValueError as error:
            self.problems.append(f"{path} = {reprlib.repr(value)}: {error}")
            return None

    def leave_out(self, path: str, name: str, value: Any) -> None:
        """Note that a field has no counterpart."""
        shown = "…" if name in _SECRET else reprlib.repr(value)
        reason = _WITHOUT_COUNTERPART.get(name, "a field that the retired SDK did not write, as far as is known")
        self.left_out.append(f"{path} = {shown}: {reason}")


def read_aks_endpoint(document: Any, *, endpoint: str | None = None, version: str | None = None) -> ImportedEndpoint:
    """Return an endpoint of the retired service as one of ours, and what has no counterpart.

    Args:
        document: The JSON values.
        endpoint: The endpoint's name; None for the one in the document. A deployment configuration has none.
        version: The version's name, for a document of one version.

    Raises:
        ArgumentError: Fields have other types than the SDK wrote, or break a rule; the message names all of them.
    """
    if not isinstance(document, Mapping):
        raise ArgumentError(f"it is {reprlib.repr(document)}, and not the fields of an endpoint: give the whole JSON")
    known = {*_ENDPOINT_FIELDS, *_OBJECTS, *_CONFIGURATION, "versions", "numReplicas"}
    if not known & set(document):
        raise ArgumentError(
            f"it has the fields {reprlib.repr(sorted(document))}, and none of an endpoint or a deployment configuration"
        )
    reading = _Reading()
    fields = _camel_case(document, reading)
    versions = fields.pop("versions", None)
    if versions is None:
        own, settings = _one_version(fields)
        entries: Mapping[str, Any] = {version or "": settings}
        if not version:
            reading.problems.append("it is of one version, which it does not name: give --version NAME")
    else:
        own = fields
        entries = versions if isinstance(versions, Mapping) else {}
        if not entries:
            reading.problems.append(f"versions = {reprlib.repr(versions)}: give versions by name, at least one")
    values = _endpoint_values(own, reading)
    if endpoint is not None:
        values["name"] = endpoint
    if "name" not in values:
        reading.problems.append("the endpoint has no name: give --endpoint NAME")
    made = {name: _version_values(name, entry, own, reading) for name, entry in entries.items()}
    if versions is None:
        for only in made.values():
            only |= {"is_default": True, "is_control": True}
    if reading.problems:
        raise ArgumentError("\n".join(reading.problems))
    imported = _endpoint(values, made)
    default = imported.default
    if default is not None and not default.is_control:
        control = f"{imported.control.name!r} is control" if imported.control else "no version is control"
        reading.notes.append(
            f"{control}, and the default is {default.name!r}: the commands make the default the control, because the "
            "first version of an endpoint is both"
        )
    return ImportedEndpoint(imported, tuple(reading.left_out), tuple(reading.notes))


def _endpoint(values: Mapping[str, Any], versions: Mapping[str, Mapping[str, Any]]) -> Endpoint:
    """Return the endpoint; raise ArgumentError if it breaks a rule, such as a seventh version."""
    try:
        made = {name: Version(name=name, **fields) for name, fields in versions.items()}
        return Endpoint(**values, versions=made)
    except EndpointError as error:
        raise ArgumentError(str(error)) from error


def _camel_case(document: Mapping[str, Any], reading: _Reading) -> dict[str, Any]:
    """Return the fields of a document by the names of `serialize()`, also those of a configuration's attributes."""
    fields: dict[str, Any] = {}
    for name, value in document.items():
        path = _CONFIGURATION.get(name) if name not in _ENDPOINT_FIELDS and name not in _VERSION_FIELDS else None
        group, _, inner = (path or name).partition(".")
        if not inner or path is None:
            fields[path or name] = value
        elif isinstance(fields.setdefault(group, {}), dict):
            fields[group][inner] = value
        else:
            reading.problems.append(f"{name} and {group} say the same in two ways: leave one of them out")
    return fields


def _one_version(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of one service as those of its endpoint, and those of its only version."""
    of_endpoint = {"name", "namespace", "appInsightsEnabled", "authEnabled", "aadAuthEnabled", "keys", *_SECRET}
    return (
        {name: value for name, value in fields.items() if name in of_endpoint},
        {name: value for name, value in fields.items() if name not in of_endpoint},
    )


def _endpoint_values(fields: Mapping[str, Any], reading: _Reading) -> dict[str, Any]:
    """Return the arguments of `Endpoint` that a document gives."""
    values: dict[str, Any] = {}
    only_in_file: list[str] = []
    keys, tokens = (
        None if fields.get(name) is None else reading.read(name, fields[name], _boolean)
        for name in ("authEnabled", "aadAuthEnabled")
    )
    if keys and tokens:
        reading.problems.append(
            "authEnabled and aadAuthEnabled are both true, and callers have keys or tokens, never both: set one false"
        )
    elif tokens:
        values["auth"] = Auth.TOKEN
        reading.notes.append(
            "aadAuthEnabled = True: tokens are signed by the endpoint itself; for those of Entra ID give the fields of "
            "an issuer as `--auth`"
        )
    elif keys is False:
        values["auth"] = Auth.NONE
    for name, value in fields.items():
        if value is None or name in ("authEnabled", "aadAuthEnabled"):
            continue
        if name not in _ENDPOINT_FIELDS:
            reading.leave_out(name, name, value)
            continue
        ours, reader = _ENDPOINT_FIELDS[name]
        values[ours] = reading.read(name, value, reader)
        if (value and ours not in ("name", "enable_app_insights")) or (
            ours == "enable_app_insights" and value is False
        ):
            only_in_file.append(ours)
    if only_in_file:
        reading.notes.append(
            f"{', '.join(only_in_file)} of the endpoint: in this file; no option of a command sets that"
        )
    if fields.get("appInsightsEnabled") is None:
        reading.notes.append("appInsightsEnabled is not set: it is on here, because a gate judges by it")
    return values


def _version_values(name: str, entry: Any, endpoint: Mapping[str, Any], reading: _Reading) -> dict[str, Any]:
    """Return the arguments of `Version` that a version's fields give.

    Args:
        name: The version's name.
        entry: Its fields, as `serialize()` gives them.
        endpoint: The endpoint's fields: what a version repeats of them is no loss.
        reading: Takes problems, and what has no counterpart.
    """
    at = f"versions.{name}" if name else "version"
    values: dict[str, Any] = {}
    if not isinstance(entry, Mapping):
        reading.problems.append(f"{at} = {reprlib.repr(entry)}: give the version's fields")
        return values
    for path, value in _flat(entry, at, reading):
        if value is None or (path == "name" and value == name):
            continue
        if path not in _VERSION_FIELDS:
            if endpoint.get(path) != value or path not in {*_ENDPOINT_FIELDS, "authEnabled", "aadAuthEnabled"}:
                reading.leave_out(f"{at}.{path}", path, value)
            continue
        ours, reader = _VERSION_FIELDS[path]
        values[ours] = reading.read(f"{at}.{path}", value, reader)
    return _replicas(values, at, reading)


def _replicas(values: dict[str, Any], at: str, reading: _Reading) -> dict[str, Any]:
    """Return a version's arguments with a fixed number of replicas or the autoscaler's fields, but not both.

    The retired service wrote the present number of replicas beside the autoscaler, and bounds beside a fixed number.
    """
    fixed = values.get("num_replicas") is not None and not values.get("autoscale_enabled")
    if fixed:
        unused = [name for name in values if name.startswith("autoscale_") and name != "autoscale_enabled"]
    else:
        unused = ["num_replicas"] if "num_replicas" in values else []
    for name in unused:
        reason = "num_replicas is fixed" if fixed else "the autoscaler chooses the number"
        reading.left_out.append(f"{at}: {name} = {reprlib.repr(values.pop(name))}: {reason}")
    return values


def _flat(entry: Mapping[str, Any], at: str, reading: _Reading) -> list[tuple[str, Any]]:
    """Return a version's fields by path, such as `autoScaler.minReplicas`."""
    flat: list[tuple[str, Any]] = []
    for name, value in entry.items():
        if name not in _OBJECTS or value is None:
            flat.append((name, value))
        elif isinstance(value, Mapping):
            flat += [(f"{name}.{inner}", item) for inner, item in value.items()]
        else:
            reading.problems.append(f"{at}.{name} = {reprlib.repr(value)}: give its fields by name")
    return flat
