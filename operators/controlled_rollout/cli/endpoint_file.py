"""Reads the file of an endpoint."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from controlled_rollout.arguments import authentication, sticky_key
from controlled_rollout.checks.plan import check_steps
from controlled_rollout.cli.checked_file import CheckedFile, read_with_faults
from controlled_rollout.cli.endpoint_settings import BuildSettings, EndpointFile, RolloutSettings, VersionSettings
from controlled_rollout.cli.gate_file import gate_from, read_gate
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ArgumentError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.version import Version

__all__ = ["read_endpoint_file"]


def read_endpoint_file(path: Path) -> EndpointFile:
    """Return what the file of an endpoint says.

    Raises:
        ArgumentError: It cannot be read, or settings are unknown or not valid; the message has file, line and setting,
            and all faults that are independent of each other.
    """
    file = read_with_faults(path, "endpoint")
    fields = dict(file.settings)
    auth = file.read(("auth",), lambda: authentication("auth", fields.get("auth")))
    file.read(("sticky",), lambda: sticky_key("sticky", fields.get("sticky")))
    rollout = _rollout(file)
    versions = _versions(file)
    file.refuse_faults()
    return EndpointFile(**{**fields, "auth": auth, "versions": versions, "rollout": rollout})


def _versions(file: CheckedFile) -> dict[str, VersionSettings | None]:
    """Return the versions of the file by name; None for one that is wrong."""
    entries: Any = file.settings.get("versions", {})
    if not isinstance(entries, Mapping):
        return {}
    versions = {
        name: file.read(("versions", name), partial(_version, name, fields, file.path.parent))
        for name, fields in entries.items()
    }
    name = file.settings["name"] if "name" in file.settings and file.is_sound("name") else "endpoint"
    # Not if one is wrong: that may be the default, or have a part of the traffic.
    if sound := [version for version in versions.values() if version is not None]:
        file.read(("versions",), lambda: _check_together(name, sound))
    return versions


def _version(name: str, fields: Mapping[str, Any], folder: Path) -> VersionSettings:
    """Return a version of the file, its paths from the file's folder.

    Raises:
        ArgumentError: It has an image and says how to build one, or a path is in a home folder that is not known.
        EndpointError: Settings contradict each other.
        ImageError: A model's path holds `..`, or a password.
    """
    version = VersionSettings(**{**fields, "name": name})
    if version.build is None:
        return version
    if version.image:
        raise ArgumentError("it has image and build: leave one of them out")
    try:
        return version.model_copy(update={"build": _beside(version.build, folder)})
    except RuntimeError as error:
        raise ArgumentError(f"a path is in a home folder that is not known here ({error}): write it out") from error


def _beside(build: BuildSettings, folder: Path) -> BuildSettings:
    """Return what an image is built of, with the paths that start at a folder.

    Raises:
        ImageError: A model's path holds `..`, or a password.
        RuntimeError: A path begins with `~` and there is no such home folder.
    """
    from controlled_rollout.image.inputs.remote_models import resolve_model_path

    models = {model: str(resolve_model_path(path, folder)) for model, path in build.models.items()}
    return build.model_copy(update={"folder": str(folder / Path(build.folder).expanduser()), "models": models})


def _rollout(file: CheckedFile) -> RolloutSettings:
    """Return how the file's versions are rolled out, with the gate of another file read; without what is wrong."""
    fields: Any = file.settings.get("rollout", {})
    if not isinstance(fields, Mapping):
        return RolloutSettings()
    given: dict[str, Any] = {}
    for name, value in fields.items():
        read = file.read(("rollout", name), partial(_setting, name, value, file.path.parent))
        if read is not None:
            # Not named is not given: an option overrules what a file names only.
            given[name] = getattr(read, name)
    return RolloutSettings(**given)


def _setting(name: str, value: Any, folder: Path) -> RolloutSettings:
    """Return one setting of a rollout.

    Raises:
        ArgumentError: It is a gate that cannot be read, or is not valid.
        ControlledRolloutError: It is a width of bins that does not divide a day.
        EndpointError: It is not valid.
        ValueError: It is steps that do not ascend.
    """
    if name == "gate" and value is not None:
        value = read_gate(folder / value) if isinstance(value, str) else gate_from(value, folder)
    read = RolloutSettings(**{name: value})
    check_steps(read.steps)
    EvidenceWindow(**{window: getattr(read, window) for window in EvidenceWindow.model_fields})
    return read


def _check_together(name: str, versions: Sequence[VersionSettings]) -> None:
    """Raise EndpointError if the versions cannot be those of one endpoint, such as two defaults or 120 per cent.

    Raises:
        EndpointError: They cannot.
    """
    together = {
        version.name: Version(**version.model_dump(exclude_unset=True, exclude={"build"})) for version in versions
    }
    if not any(version.is_default for version in together.values()):
        first = next(iter(together))
        together[first] = together[first].model_copy(update={"is_default": True})
    Endpoint(name=name, versions=together)
