"""This machine's settings for installing packages (indexes, proxies, certificates), as secrets of a build.

The build can read them; no image keeps them.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.image.environment.requirements import VARIABLE, check_variables

__all__ = ["build_secrets"]

PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
INDEXES: Final = re.compile(
    r"UV_(?:DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INDEX_\w+_(?:USERNAME|PASSWORD)|NO_INDEX|INDEX_STRATEGY"
    r"|INSECURE_HOST|HTTP_TIMEOUT|HTTP_RETRIES|PRERELEASE|EXCLUDE_NEWER|RESOLUTION|CONCURRENT_\w+)"
)
# pip's own, for docker steps that call it.
PIP: Final = re.compile(r"PIP_\w+")
# Where the certificates are named on this machine, and where the build finds them named.
CERTIFICATES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
CERTIFICATE_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")

SECRETS_FOLDER: Final = "/run/secrets"


def build_secrets(
    requirements: Sequence[str], environment: Mapping[str, str] = os.environ, *, system: Path = Path("/etc")
) -> dict[str, bytes]:
    """Return the contents of the build's secret files (indexes, netrc, certificates) by secret name.

    `settings` is a shell script that exports variables. `uv.toml`, `netrc`, `pip.conf` and `certificates` are files,
    present if this machine has them.

    Args:
        requirements: What is installed. Variables named in its addresses, as `${NAME}`, are among the settings.
        environment: This process's environment variables.
        system: The folder with the settings of all users.

    Raises:
        ImageError: A variable that the requirements name is not set.
    """
    check_variables(requirements, environment)
    home = Path(environment.get("HOME") or "/nonexistent")
    configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
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
        ),
        "certificates": _first_readable_file(*(environment.get(name) for name in CERTIFICATES)),
    }
    secrets = {name: path.read_bytes() for name, path in files.items() if path is not None}
    variables = {name: value for name, value in environment.items() if _is_passed_to_build(name, value)}
    for line in requirements:
        variables |= {name: environment[name] for name in VARIABLE.findall(line)}
    file_variables = {"UV_CONFIG_FILE": "uv.toml", "NETRC": "netrc", "PIP_CONFIG_FILE": "pip.conf"}
    file_variables |= dict.fromkeys(CERTIFICATE_VARIABLES, "certificates")
    variables |= {name: f"{SECRETS_FOLDER}/{file}" for name, file in file_variables.items() if file in secrets}
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
    return {**secrets, "settings": settings.encode()}


def _is_passed_to_build(name: str, value: str) -> bool:
    """Whether an environment variable is passed to the build: proxies, and uv or pip settings that name no file."""
    if name.upper() in PROXIES:
        return True
    return bool(INDEXES.fullmatch(name) or PIP.fullmatch(name)) and not value.startswith(("/", "~", "."))


def _first_readable_file(*candidates: str | Path | None) -> Path | None:
    """Return the first path that exists and is readable, or None."""
    paths = (Path(candidate) for candidate in candidates if candidate)
    return next((path for path in paths if path.is_file() and os.access(path, os.R_OK)), None)
