"""Which of a machine's credentials a build needs: those of the indexes that it uses, and of no other host. Pure."""

import json
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

__all__ = ["hosts_in_addresses", "named_indexes", "netrc_entries", "uv_configuration"]

ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>,\]]+")
# As in UV_INDEX="name=https://…"; a netrc file's entries begin where one of the three words stands alone.
NAMED_ADDRESS: Final = re.compile(r"(?:^|[\s\"'])([A-Za-z0-9._-]+)=(?=[a-z]+://)")
NETRC_ENTRY: Final = re.compile(r"(?:^|(?<=\s))(?=(?:machine|default|macdef)(?:\s|$))")
NETRC_MACHINE: Final = re.compile(r"machine\s+\"?([^\s\"]+)")


def hosts_in_addresses(texts: Iterable[str]) -> set[str]:
    """Return the hosts of all addresses in some texts, with their ports and without, in lower case."""
    hosts = set()
    for text in texts:
        for address in ADDRESS.findall(text):
            try:
                parts = urlsplit(address)
                host, port = parts.hostname, parts.port
            except ValueError:
                continue
            if host:
                hosts |= {host, f"{host}:{port}"} if port else {host}
    return hosts


def named_indexes(texts: Iterable[str], names: Iterable[str] = ()) -> set[str]:
    """Return the names of indexes, as uv writes them in `UV_INDEX_<NAME>_PASSWORD`.

    Args:
        texts: With addresses such as `name=https://…`.
        names: More names.
    """
    found = {name for text in texts for name in NAMED_ADDRESS.findall(text)}
    return {re.sub(r"[^A-Za-z0-9]", "_", name).upper() for name in found.union(names)}


def netrc_entries(text: str, hosts: Collection[str]) -> str:
    """Return the entries that a netrc file has for some hosts. The entry for all other hosts is never among them."""
    entries = [(entry, machine[1]) for entry in NETRC_ENTRY.split(text) if (machine := NETRC_MACHINE.match(entry))]
    kept = [entry.strip() for entry, host in entries if host.lower() in hosts]
    return "".join(f"{entry}\n" for entry in kept)


def uv_configuration(text: str) -> tuple[str, set[str]]:
    """Return a uv.toml file without the indexes that a build does not use, and the names of the others.

    An index that is `explicit` is used only for packages that a project assigns to it, and a build has no project.

    Raises:
        ValueError: It is not TOML.
    """
    document = tomllib.loads(text)
    indexes = document.get("index", [])
    if not isinstance(indexes, list) or not all(isinstance(index, dict) for index in indexes):
        return text, set()
    used = [index for index in indexes if not index.get("explicit")]
    names = {str(index["name"]) for index in used if "name" in index}
    if len(used) == len(indexes):
        return text, names
    lines = (f"{_toml_text(key)} = {_toml_text(value)}\n" for key, value in (document | {"index": used}).items())
    return "".join(lines), names


def _toml_text(value: Any) -> str:
    """Return a value of a TOML document in TOML's notation, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_text(key)} = {_toml_text(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_text, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's, but for a character that JSON leaves as it is; dates are not.
    return (
        json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        if isinstance(value, str | int | float)
        else str(value)
    )
