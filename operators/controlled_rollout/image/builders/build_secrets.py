"""What a build may know of this machine: settings for installing packages, and the credentials of the indexes it uses.

A container's build gets them as secrets, which no image keeps; on this machine they are the environment variables.
"""

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.addresses import no_proxy_variables
from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.indexes_in_use import (
    hosts_in_addresses,
    named_indexes,
    netrc_entries,
    uv_configuration,
)
from controlled_rollout.image.environment.requirements import VARIABLE, check_variables_are_set

__all__ = ["build_secrets", "build_variables"]

PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
INDEXES: Final = re.compile(
    r"UV_(?:DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|NO_INDEX|INDEX_STRATEGY|FIND_LINKS"
    r"|INSECURE_HOST|HTTP_TIMEOUT|HTTP_RETRIES|PRERELEASE|EXCLUDE_NEWER|RESOLUTION|CONCURRENT_\w+)"
)
INDEX_CREDENTIAL: Final = re.compile(r"UV_INDEX_(?P<name>\w+)_(?:USERNAME|PASSWORD)")
# pip's own, for docker steps that call it.
PIP: Final = re.compile(r"PIP_\w+")
CALLS_PIP: Final = re.compile(r"(?m)^\s*[^#\s].*\bpip")
# What compilers, uv and its caches need of this machine; none of it holds a secret.
MACHINE: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|XDG_\w+|SOURCE_DATE_EPOCH|MAX_JOBS"
    r"|CC|CXX|CPP|LD|AR|NM|RANLIB|\w+FLAGS|CPATH|(?:C|CPLUS)_INCLUDE_PATH|LIBRARY_PATH|LD_LIBRARY_PATH|PKG_CONFIG\w*"
    r"|CMAKE_\w+|CUDA\w*|CARGO_HOME|RUSTUP_\w+|JAVA_HOME|NIX_\w+|PYTHONDONTWRITEBYTECODE|PYTHONUTF8"
    r"|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|GIT_SSL_\w+|NETRC"
    r"|UV_(?:CACHE_DIR|CONFIG_FILE|NO_CACHE|NO_CONFIG|OFFLINE|LINK_MODE|PYTHON_\w+|SYSTEM_CERTS|NATIVE_TLS|KEYRING_PROVIDER)"
)
# Where the certificates are named on this machine, and where the build finds them named.
CERTIFICATES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
CERTIFICATE_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")

SECRETS_FOLDER: Final = "/run/secrets"


def build_secrets(
    requirements: Sequence[str],
    dockerfile: str,
    environment: Mapping[str, str] = os.environ,
    *,
    system: Path = Path("/etc"),
) -> dict[str, bytes]:
    """Return the contents of the build's secret files (indexes, netrc, certificates) by secret name.

    `settings` is a shell script that exports variables. `uv.toml`, `netrc`, `pip.conf` and `certificates` are files,
    present if this machine has them and the build uses them: pip's if a step calls pip; of netrc, the entries of the
    indexes in use.

    Args:
        requirements: What is installed. Variables named in its addresses, as `${NAME}`, are among the settings.
        dockerfile: What is run.
        environment: This process's environment variables.
        system: The folder with the settings of all users.

    Raises:
        ImageError: A variable that the requirements name is not set, or a file cannot be read.
    """
    check_variables_are_set(requirements, environment)
    home = Path(environment.get("HOME") or "/nonexistent")
    configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    uses_pip = CALLS_PIP.search(dockerfile) is not None
    files = {
        "uv.toml": _first_readable_file(
            environment.get("UV_CONFIG_FILE"), configuration / "uv" / "uv.toml", system / "uv" / "uv.toml"
        ),
        "netrc": _first_readable_file(environment.get("NETRC"), home / ".netrc"),
        "pip.conf": _first_readable_file(
            environment.get("PIP_CONFIG_FILE"),
            configuration / "pip" / "pip.conf",
            home / ".pip" / "pip.conf",
            system / "pip.conf",
        )
        if uses_pip
        else None,
        "certificates": _first_readable_file(*(environment.get(name) for name in CERTIFICATES)),
    }
    secrets = {name: _read_file(path) for name, path in files.items() if path is not None}
    variables = {name: value for name, value in environment.items() if _is_setting(name, value, uses_pip)}
    names: set[str] = set()
    if path := files["uv.toml"]:
        try:
            secrets["uv.toml"], names = uv_configuration(secrets["uv.toml"])
        except ValueError as error:
            raise ImageError(f"uv's settings in {path} cannot be read: {error}") from error
    texts = [_expand_variables(line, environment) for line in requirements]
    texts += [*variables.values(), secrets.get("uv.toml", ""), secrets.get("pip.conf", "")]
    variables |= _variables_in_use(requirements, texts, names, environment) | no_proxy_variables(environment)
    if entries := netrc_entries(secrets.pop("netrc", ""), hosts_in_addresses(texts)):
        secrets["netrc"] = entries
    file_variables = {"UV_CONFIG_FILE": "uv.toml", "NETRC": "netrc", "PIP_CONFIG_FILE": "pip.conf"}
    file_variables |= dict.fromkeys(CERTIFICATE_VARIABLES, "certificates")
    variables |= {name: f"{SECRETS_FOLDER}/{file}" for name, file in file_variables.items() if file in secrets}
    secrets["settings"] = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
    return {name: content.encode("utf-8", "surrogateescape") for name, content in secrets.items()}


def build_variables(requirements: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables of a build on this machine: no secret but those of the indexes in use.

    uv finds its own files, such as uv.toml and netrc, where it always does.

    Args:
        requirements: What is installed. Variables named in its addresses, as `${NAME}`, are passed on.
        environment: This process's environment variables.

    Raises:
        ImageError: A variable that the requirements name is not set.
    """
    check_variables_are_set(requirements, environment)
    variables = {
        name: value
        for name, value in environment.items()
        if name.upper() in PROXIES or INDEXES.fullmatch(name) or MACHINE.fullmatch(name)
    }
    if any("git+ssh://" in line for line in requirements):
        variables |= {name: environment[name] for name in ("SSH_AUTH_SOCK",) if name in environment}
    texts = [*(_expand_variables(line, environment) for line in requirements), *variables.values()]
    # Names of indexes in uv.toml are not known here, so a password of a named index is passed on without looking.
    names = [match["name"] for name in environment if (match := INDEX_CREDENTIAL.fullmatch(name))]
    return variables | _variables_in_use(requirements, texts, names, environment) | no_proxy_variables(environment)


def _variables_in_use(
    requirements: Sequence[str], texts: Sequence[str], names: Collection[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that requirements name, and users and passwords of the indexes that are in use."""
    used = named_indexes(texts, names)
    variables = {name: environment[name] for line in requirements for name in VARIABLE.findall(line)}
    return variables | {
        name: value
        for name, value in environment.items()
        if (index := INDEX_CREDENTIAL.fullmatch(name)) and index["name"] in used
    }


def _is_setting(name: str, value: str, uses_pip: bool) -> bool:
    """Whether an environment variable is passed to a container's build: proxies, and settings that name no file."""
    if name.upper() in PROXIES:
        return True
    is_known = INDEXES.fullmatch(name) or (uses_pip and PIP.fullmatch(name))
    return bool(is_known) and not value.startswith(("/", "~", "."))


def _expand_variables(text: str, environment: Mapping[str, str]) -> str:
    """Return a requirement with its variables replaced by their values."""
    return VARIABLE.sub(lambda found: environment.get(found[1], ""), text)


def _read_file(path: Path) -> str:
    """Return the text of a settings file."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def _first_readable_file(*candidates: str | Path | None) -> Path | None:
    """Return the first path that exists and is readable, or None."""
    paths = (Path(candidate) for candidate in candidates if candidate)
    return next((path for path in paths if path.is_file() and os.access(path, os.R_OK)), None)
