"""Vulnerabilities as scanners report them, and several reports merged into one list. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import Any, Final, Self

from controlled_rollout.text_table import text_table

__all__ = ["ScanReport", "Severity", "Vulnerability", "merge_vulnerabilities", "vulnerability_table"]

MAX_TABLE_ROWS: Final = 50


class Severity(IntEnum):
    """How bad a vulnerability is, as scanners rate it. UNKNOWN means not rated, which may be anything."""

    NONE = 0
    NEGLIGIBLE = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5
    UNKNOWN = 6

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the severity with this name; UNKNOWN for any other text."""
        try:
            return cls[text.strip().upper()]
        except KeyError:
            return cls["UNKNOWN"]


@dataclass(frozen=True)
class Vulnerability:
    """One vulnerability of one installed package.

    Attributes:
        id: The vulnerability's name, such as `CVE-2026-1234`.
        package: The package that has it.
        version: The installed version.
        severity: How bad it is.
        fixed_in: The versions that do not have it; empty if there is none yet.
        aliases: Other names of the same vulnerability.
        source: The programs that reported it, separated by `, `.
    """

    id: str
    package: str
    version: str
    severity: Severity
    fixed_in: tuple[str, ...] = ()
    aliases: frozenset[str] = frozenset()
    source: str = ""

    def document(self) -> dict[str, Any]:
        """Return the vulnerability as JSON values."""
        return {
            "id": self.id,
            "severity": str(self.severity),
            "package": self.package,
            "version": self.version,
            "fixed_in": list(self.fixed_in),
            "aliases": sorted(self.aliases),
            "source": self.source,
        }

    @property
    def names(self) -> frozenset[str]:
        """The id and all aliases of the vulnerability, in upper case."""
        return frozenset(name.upper() for name in (self.id, *self.aliases))


@dataclass(frozen=True)
class ScanReport:
    """What one program reported about one image.

    Attributes:
        source: The program.
        vulnerabilities: Those that it found.
        not_scanned: What it could not scan, by name and with the reason: a distribution without advisories, a package
            that the service does not know. This is not a vulnerability, and it is not a pass either.
        database_built: When its database was built; None for a service that is asked during the scan.
    """

    source: str
    vulnerabilities: tuple[Vulnerability, ...]
    not_scanned: dict[str, str] = field(default_factory=dict)
    database_built: datetime | None = None


def merge_vulnerabilities(vulnerabilities: Iterable[Vulnerability]) -> list[Vulnerability]:
    """Merge reports of the same vulnerability of the same package; return one of each, worst severity first.

    If several programs report it, the worst of their severities counts; any rating counts more than none.
    """
    by_package: dict[tuple[str, str], list[Vulnerability]] = {}
    for vulnerability in vulnerabilities:
        merged = by_package.setdefault((_comparable_name(vulnerability.package), vulnerability.version), [])
        for other in [other for other in merged if _is_same_vulnerability(other, vulnerability)]:
            merged.remove(other)
            vulnerability = _merge_two(other, vulnerability)
        merged.append(vulnerability)
    return sorted(
        (vulnerability for merged in by_package.values() for vulnerability in merged),
        key=lambda item: (-_severity_rank(item), _comparable_name(item.package), item.version, item.id),
    )


def vulnerability_table(vulnerabilities: Sequence[Vulnerability]) -> list[str]:
    """Format the first 50 vulnerabilities as table lines with a heading. Return no line if there is none."""
    if not vulnerabilities:
        return []
    rows = [("severity", "vulnerability", "package", "installed", "fixed in", "found by")]
    for item in vulnerabilities[:MAX_TABLE_ROWS]:
        fixed_in = ", ".join(item.fixed_in) or "-"
        rows.append((str(item.severity), item.id, item.package, item.version, fixed_in, item.source))
    lines = text_table(rows).splitlines()
    more = len(vulnerabilities) - MAX_TABLE_ROWS
    return [*lines, f"and {more} more"] if more > 0 else lines


def _is_same_vulnerability(left: Vulnerability, right: Vulnerability) -> bool:
    """Whether two reports about one package describe the same vulnerability.

    Names are only compared between programs: one program reports each vulnerability under one id.
    """
    sources = set(left.source.split(", ")), set(right.source.split(", "))
    return left.id == right.id or (sources[0].isdisjoint(sources[1]) and bool(left.names & right.names))


def _merge_two(left: Vulnerability, right: Vulnerability) -> Vulnerability:
    """Merge two reports of the same vulnerability. Id and severity are those of the worse rating."""
    first, second = sorted((left, right), key=lambda item: (_severity_rank(item), item.source), reverse=True)
    return replace(
        first,
        fixed_in=first.fixed_in or second.fixed_in,
        aliases=frozenset((*first.aliases, *second.aliases, second.id)) - {first.id},
        source=", ".join(dict.fromkeys((*first.source.split(", "), *second.source.split(", ")))),
    )


def _severity_rank(vulnerability: Vulnerability) -> int:
    """Return the severity as a number for sorting; UNKNOWN is below all others."""
    return -1 if vulnerability.severity is Severity.UNKNOWN else int(vulnerability.severity)


def _comparable_name(package: str) -> str:
    """Return a package's name in lower case with `-` for `_` and `.`, for comparison."""
    return package.lower().replace("_", "-").replace(".", "-")
