"""What this machine's user has set for installing packages: given to a build as secrets, kept in no image."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

__all__ = ["build_secrets"]

PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
INDEXES: Final = re.compile(
    r"UV_(?:DEFAULT_INDEX|INDEX|INDEX_URL|EXTRA_INDEX_URL|INDEX_\w+_(?:USERNAME|PASSWORD)|NO_INDEX|INDEX_STRATEGY"
    r"|INSECURE_HOST|HTTP_TIMEOUT|HTTP_RETRIES|PRERELEASE|EXCLUDE_NEWER|RESOLUTION|CONCURRENT_\w+)"
)
# pip's own, for docker steps that call it; a setting that names a file of this machine would lead nowhere.
PIP: Final = re.compile(r"PIP_\w+")
VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
CERTIFICATES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
CERTIFICATE_READERS: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT")

SECRETS_FOLDER: Final = "/run/secrets"


def build_secrets(
    requirements: Sequence[str], environment: Mapping[str, str] = os.environ, *, system: Path = Path("/etc")
) -> dict[str, bytes]:
    """Return the secrets of a build, by name.

    `settings` is for a shell; `uv.toml`, `netrc`, `pip.conf` and `certificates` are files that are there only if this
    machine has them.

    Args:
        requirements: What is installed; variables that its addresses name are among the settings.
        environment: This process's environment variables.
        system: Where settings for all users are.
    """
    home = Path(environment.get("HOME") or "/nonexistent")
    configuration = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
    files = {
        "uv.toml": _first(
            environment.get("UV_CONFIG_FILE"), configuration / "uv" / "uv.toml", system / "uv" / "uv.toml"
        ),
        "netrc": _first(environment.get("NETRC"), home / ".netrc"),
        "pip.conf": _first(
            environment.get("PIP_CONFIG_FILE"),
            configuration / "pip" / "pip.conf",
            home / ".pip" / "pip.conf",
            system / "pip.conf",
        ),
        "certificates": _first(*(environment.get(name) for name in CERTIFICATES)),
    }
    secrets = {name: path.read_bytes() for name, path in files.items() if path is not None}
    variables = {name: value for name, value in environment.items() if _is_passed_on(name, value)}
    for line in requirements:
        variables |= {name: environment[name] for name in VARIABLE.findall(line) if name in environment}
    places = {"UV_CONFIG_FILE": "uv.toml", "NETRC": "netrc", "PIP_CONFIG_FILE": "pip.conf"}
    places |= dict.fromkeys(CERTIFICATE_READERS, "certificates")
    variables |= {name: f"{SECRETS_FOLDER}/{file}" for name, file in places.items() if file in secrets}
    settings = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
    return {**secrets, "settings": settings.encode()}


def _is_passed_on(name: str, value: str) -> bool:
    if name.upper() in PROXIES:
        return True
    return bool(INDEXES.fullmatch(name) or PIP.fullmatch(name)) and not value.startswith(("/", "~", "."))


def _first(*candidates: str | Path | None) -> Path | None:
    """Return the first that can be read."""
    paths = (Path(candidate) for candidate in candidates if candidate)
    return next((path for path in paths if path.is_file() and os.access(path, os.R_OK)), None)
