"""Reads the file of an endpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controlled_rollout.arguments import authentication
from controlled_rollout.checks.plan import check_steps
from controlled_rollout.cli.checked_file import CheckedFile, read_checked
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
        ArgumentError: It cannot be read, or a setting is unknown or not valid; the message has file, line and setting.
    """
    file = read_checked(path, "endpoint")
    fields = dict(file.settings)
    with file.at("auth"):
        auth = authentication("auth", fields.get("auth"))
    versions = {name: _version(file, name, settings) for name, settings in fields["versions"].items()}
    rollout = _rollout(file, fields.get("rollout", {}))
    with file.at():
        read = EndpointFile(**{**fields, "auth": auth, "versions": versions, "rollout": rollout})
    with file.at("versions"):
        _check_together(read)
    return read


def _version(file: CheckedFile, name: str, fields: Mapping[str, Any]) -> VersionSettings:
    """Return a version of the file, its paths from the file's folder."""
    with file.at("versions", name):
        version = VersionSettings(**{**fields, "name": name})
        if version.build is None:
            return version
        if version.image:
            raise ArgumentError("it has image and build: leave one of them out")
        try:
            return version.model_copy(update={"build": _beside(version.build, file.path.parent)})
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


def _rollout(file: CheckedFile, fields: Mapping[str, Any]) -> RolloutSettings:
    """Return how the file's versions are rolled out, with the gate of another file read."""
    gate = fields.get("gate")
    with file.at("rollout", "gate"):
        if isinstance(gate, str):
            gate = read_gate(file.path.parent / gate)
        elif gate is not None:
            gate = gate_from(gate, file.path.parent)
    with file.at("rollout"):
        # Not named is not given: an option overrules what a file names only.
        rollout = RolloutSettings(**(fields if gate is None else {**fields, "gate": gate}))
        check_steps(rollout.steps)
        EvidenceWindow(**{name: getattr(rollout, name) for name in EvidenceWindow.model_fields})
        return rollout


def _check_together(file: EndpointFile) -> None:
    """Raise EndpointError if the versions cannot be those of one endpoint, such as two defaults or 120 per cent.

    Raises:
        EndpointError: They cannot.
    """
    versions = {
        name: Version(**version.model_dump(exclude_unset=True, exclude={"build"}))
        for name, version in file.versions.items()
    }
    if not any(version.is_default for version in versions.values()):
        first = next(iter(versions))
        versions[first] = versions[first].model_copy(update={"is_default": True})
    Endpoint(name=file.name, versions=versions)
