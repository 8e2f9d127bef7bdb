"""The command `deploy`: a version of an endpoint, as options say it, as a file says it, or both."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlled_rollout.cli.arguments import (
    Commands,
    add_file_option,
    add_step_options,
    add_subject,
    duration,
    environment_variable,
    workspace_of,
)
from controlled_rollout.cli.image import build_reference
from controlled_rollout.cli.rollout import run_step, show_step, step_options
from controlled_rollout.cli.settings_file import read_value
from controlled_rollout.defaults import CONFLICT_TIMEOUT, READY_TIMEOUT, SILENCE
from controlled_rollout.duration import format_duration
from controlled_rollout.endpoint import Auth, Endpoint
from controlled_rollout.errors import ArgumentError, ControlledRolloutError
from controlled_rollout.rollout import OnSilence
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.version import SET_BY_STEPS, Version

if TYPE_CHECKING:
    from controlled_rollout.cli.endpoint_settings import BuildSettings, EndpointFile, VersionSettings

__all__ = ["Deployment", "add_to", "deployment", "steps_to_file"]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What `deploy` does.

    Attributes:
        endpoint, version: What is deployed, and where.
        image: What it runs, `name@sha256:…`; None if it is built.
        build: What it is built of; None if `image` names it.
        settings: Further fields of the version.
        about: Fields of the endpoint itself.
        auth, sticky: Who may call a new endpoint, and who stays with a version; None asks for nothing.
        on_silence, silence: What happens to the version without looks, and after which time.
        conflict_timeout: How long to wait while another rollout holds the endpoint.
        timeout: How long the version may take to become ready.
        overruled: The options that say something else than the file.
    """

    endpoint: str
    version: str
    image: str | None
    build: "BuildSettings | None"
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    auth: Auth | TokenIssuer | None
    sticky: str | None
    on_silence: OnSilence
    silence: timedelta
    conflict_timeout: timedelta
    timeout: timedelta
    overruled: tuple[str, ...] = ()


def add_to(commands: Commands) -> None:
    """Add the parser of `deploy`, with the options of a new version."""
    deploy = commands.add_parser(
        "deploy", help="create a version at 0 %%; the first version of a new endpoint gets all the traffic"
    )
    endpoint, version = add_subject(deploy)
    image = deploy.add_argument(
        "--image", required=True, metavar="NAME@sha256:DIGEST", help="what the version runs, by digest"
    )
    add_step_options(deploy, READY_TIMEOUT)
    deploy.set_defaults(run=_run_deploy, timeout=None)
    deploy.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        type=_field_and_value,
        action="append",
        dest="settings",
        help="a field of the version, such as cpu_cores=0.5; may be repeated",
    )
    deploy.add_argument(
        "--env",
        metavar="NAME=VALUE",
        type=environment_variable,
        action="append",
        default=[],
        help="an environment variable for the script; may be repeated",
    )
    deploy.add_argument(
        "--secret-env",
        metavar="NAME=SECRET/KEY",
        type=_secret_variable,
        action="append",
        default=[],
        help="an environment variable from a key of a secret, see the command secret; may be repeated",
    )
    deploy.add_argument(
        "--auth",
        type=_authentication,
        metavar="key|token|none|ISSUER",
        help="how callers of a new endpoint authenticate (default key): with keys, with tokens of the "
        "endpoint's own, not at all, or with tokens of an outside issuer, whose fields are given as YAML, such as "
        "'{issuer: https://…, audience: …, jwks_uri: https://…}'",
    )
    deploy.add_argument(
        "--sticky",
        metavar="KEY",
        help="by what callers of a new endpoint stay with a version: header:NAME or cookie:NAME (default: nothing)",
    )
    _add_rollout_options(deploy)
    add_file_option(deploy, endpoint, version, image)


def _add_rollout_options(deploy: argparse.ArgumentParser) -> None:
    """Add the options of `deploy` that are about its rollout: what happens without looks, and beside another one."""
    deploy.add_argument(
        "--on-silence",
        choices=[str(choice) for choice in OnSilence],
        help="what happens to the version while it has traffic and nobody has looked for --silence: a shift to the "
        "share that it has counts as a look (default keep)",
    )
    deploy.add_argument(
        "--silence",
        type=duration,
        metavar="DURATION",
        help=f"how long that is (default {format_duration(SILENCE)})",
    )
    deploy.add_argument(
        "--on-conflict",
        choices=["fail", "wait"],
        help="while somebody else's rollout holds the endpoint (default fail)",
    )
    deploy.add_argument(
        "--conflict-timeout",
        type=duration,
        metavar="DURATION",
        help=f"how long to wait for that (default {format_duration(CONFLICT_TIMEOUT)})",
    )


def deployment(options: argparse.Namespace, file: "EndpointFile | None") -> Deployment:
    """Return what `deploy` does: what an option says, else what the file says, else the default. Pure.

    Args:
        options: The command's options; None for one that was not given.
        file: The file of the endpoint, if one was given.

    Raises:
        ArgumentError: The file has no such version, or nothing says what the version runs.
        ImageError: The image is not named by its digest.
    """
    from controlled_rollout.cli.endpoint_settings import RolloutSettings
    from controlled_rollout.image.reference import ImageReference

    endpoint, entry = file.subject(options.endpoint, options.version) if file else (options.endpoint, None)
    version = entry.name if entry else options.version
    overruled: list[str] = []

    def chosen(option: str, given: Any, said: Any, default: Any = None) -> Any:
        """Return what an option says, else what the file says, else the default."""
        if given is not None and said is not None and given != said:
            overruled.append(option)
        return next((value for value in (given, said) if value is not None), default)

    rollout = {name: getattr(file.rollout, name) for name in file.rollout.model_fields_set} if file else {}
    usual = RolloutSettings()
    image = chosen("--image", options.image, entry.image or None if entry else None)
    if options.image is not None and entry is not None and entry.build is not None:
        overruled.append("--image")
    build = entry.build if entry is not None and image is None else None
    if image is None and build is None:
        raise ArgumentError(
            f"nothing says what version {version!r} runs: give its image, or build, in the file, or --image"
        )
    on_conflict = chosen("--on-conflict", options.on_conflict, rollout.get("on_conflict"), usual.on_conflict)
    conflict_timeout = chosen(
        "--conflict-timeout", options.conflict_timeout, rollout.get("conflict_timeout"), usual.conflict_timeout
    )
    return Deployment(
        endpoint=chosen(f"the endpoint {endpoint}", endpoint, file.name if file else None),
        version=version,
        image=None if image is None else str(ImageReference.parse(image)),
        build=build,
        settings=_settings(options, entry, overruled),
        about=file.about if file else {},
        auth=chosen("--auth", options.auth, file.auth if file else None),
        sticky=chosen("--sticky", options.sticky, file.sticky if file else None),
        on_silence=OnSilence(chosen("--on-silence", options.on_silence, rollout.get("on_silence"), usual.on_silence)),
        silence=chosen("--silence", options.silence, rollout.get("silence"), usual.silence),
        conflict_timeout=conflict_timeout if on_conflict == "wait" else timedelta(0),
        timeout=chosen("--timeout", options.timeout, rollout.get("ready_timeout"), usual.ready_timeout),
        overruled=tuple(overruled),
    )


def _settings(options: argparse.Namespace, entry: "VersionSettings | None", overruled: list[str]) -> dict[str, Any]:
    """Return the fields of the version, of the file and then of the options; note what these overrule."""
    settings = entry.settings if entry else {}
    variables = dict(settings.get("environment_variables") or {})
    for name, value in dict(options.settings or ()).items():
        if name in settings and settings[name] != value:
            overruled.append(f"--set {name}")
        settings[name] = value
    if given := dict([*options.env, *options.secret_env]):
        overruled += [f"--env {name}" for name in given if name in variables and variables[name] != given[name]]
        settings["environment_variables"] = {**(settings.get("environment_variables") or {}), **given}
    return settings


def steps_to_file(file: "EndpointFile", version: str, stored: Endpoint) -> list[str]:
    """Return in sentences what is left to do until a deployed version is what the file says of it. Pure.

    Args:
        file: The file of the endpoint.
        version: The version.
        stored: The endpoint as it is now.
    """
    asked, found = file.versions[version], stored.versions[version]
    subject = f"{stored.name} {version}"
    if (asked.is_default and not found.is_default) or (asked.is_control and not found.is_control):
        return [f"the file has {version} as default or control: `controlled-rollout promote {subject}` makes it both"]
    percent, is_named = asked.traffic_percentile, "traffic_percentile" in asked.model_fields_set
    if is_named and not found.is_default and percent != found.traffic_percentile:
        return [f"the file has {version} at {percent:g} %: `controlled-rollout shift {subject} {percent:g}` sets that"]
    return []


def _run_deploy(options: argparse.Namespace) -> int:
    """Run `controlled-rollout deploy`: create a version and wait until it is ready; return the exit code."""
    from controlled_rollout import steps

    file = _file(options.file)
    if file is None:
        asked = deployment(options, None)
    else:
        try:
            asked = deployment(options, file)
        except ArgumentError as error:
            raise ArgumentError(f"{options.file}: {error}") from error
    # As the other steps name what they are about.
    options.endpoint, options.version, options.timeout = asked.endpoint, asked.version, asked.timeout
    change = step_options(options)
    if asked.overruled:
        change["progress"](f"as given here, and not as in {options.file}: {', '.join(asked.overruled)}")
    # What would be refused after the build is refused before it.
    Endpoint(name=asked.endpoint).create_version(asked.version, **asked.settings)
    image = asked.image if asked.build is None else _built(options, asked.build)
    step = steps.deploy(
        workspace_of(options),
        asked.endpoint,
        asked.version,
        image=str(image),
        owner=change["change"].who,
        sticky=asked.sticky,
        on_silence=asked.on_silence,
        silence=asked.silence,
        auth=asked.auth,
        settings=asked.settings,
        about=asked.about,
        conflict_timeout=asked.conflict_timeout,
        **change,
    )
    stored = run_step(options, "deploy", step)
    for sentence in steps_to_file(file, asked.version, stored) if file else []:
        change["progress"](sentence)
    return show_step(options, "deploy", stored)


def _file(path: Path | None) -> "EndpointFile | None":
    """Return what the file of an endpoint says; None without one."""
    if path is None:
        return None
    from controlled_rollout.cli.endpoint_file import read_endpoint_file

    return read_endpoint_file(path)


def _built(options: argparse.Namespace, build: "BuildSettings") -> str:
    """Build the image that a file describes, or find it; return its reference."""
    return build_reference(
        workspace_of(options),
        Path(build.folder),
        name=build.name or options.endpoint,
        environment=build.environment,
        entry_script=build.entry_script,
        models=list(build.models.items()),
    )


def _authentication(text: str) -> Auth | TokenIssuer | None:
    """Parse the value of `--auth` (argparse type)."""
    from controlled_rollout.arguments import authentication

    try:
        return authentication("auth", read_value(text) if text.lstrip().startswith("{") else text)
    except ControlledRolloutError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _secret_variable(text: str) -> tuple[str, dict[str, str]]:
    """Parse the value of `--secret-env`, `NAME=SECRET/KEY`, into name and reference (argparse type)."""
    name, is_named, reference = text.partition("=")
    secret, separator, key = reference.partition("/")
    if not (name and secret and separator and key):
        # Not the text: it may be the secret's value.
        variable = name if is_named and name else "a variable"
        raise argparse.ArgumentTypeError(
            f"what is given for {variable} is not of the form NAME=SECRET/KEY: store the value with "
            "`controlled-rollout secret SECRET KEY`"
        )
    return name, {"secret": secret, "key": key}


def _field_and_value(text: str) -> tuple[str, Any]:
    """Parse the value of `--set`, `FIELD=VALUE`, into field name and YAML value (argparse type)."""
    name, separator, value = text.partition("=")
    known = [field for field in Version.model_fields if field not in SET_BY_STEPS]
    if not separator or name not in known:
        # Not the value: it may be a secret.
        given = f"{name}=…" if separator else name
        raise argparse.ArgumentTypeError(f"{given!r} is not FIELD=VALUE with one of the fields {', '.join(known)}")
    try:
        return name, read_value(value)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None
