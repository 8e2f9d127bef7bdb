"""Vulnerabilities as scanners report them, and several reports merged into one list. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import IntEnum
from typing import Final, Self

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
        """Return the severity of that name; UNKNOWN if no severity has it."""
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

    @property
    def names(self) -> frozenset[str]:
        """Every name of the vulnerability, in upper case."""
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
    """Return each vulnerability of each package once, the worst first.

    If several programs report it, the worst of their severities counts; any rating counts more than none.
    """
    by_package: dict[tuple[str, str], list[Vulnerability]] = {}
    for vulnerability in vulnerabilities:
        merged = by_package.setdefault((_canonical(vulnerability.package), vulnerability.version), [])
        for other in [other for other in merged if _is_same(other, vulnerability)]:
            merged.remove(other)
            vulnerability = _merged(other, vulnerability)
        merged.append(vulnerability)
    return sorted(
        (vulnerability for merged in by_package.values() for vulnerability in merged),
        key=lambda item: (-_rating(item), _canonical(item.package), item.version, item.id),
    )


def vulnerability_table(vulnerabilities: Sequence[Vulnerability]) -> list[str]:
    """Return the first 50 vulnerabilities as lines of text, after a line of headings; no line if there is none."""
    if not vulnerabilities:
        return []
    rows = [("severity", "vulnerability", "package", "installed", "fixed in", "found by")]
    for item in vulnerabilities[:MAX_TABLE_ROWS]:
        fixed_in = ", ".join(item.fixed_in) or "-"
        rows.append((str(item.severity), item.id, item.package, item.version, fixed_in, item.source))
    lines = text_table(rows).splitlines()
    more = len(vulnerabilities) - MAX_TABLE_ROWS
    return [*lines, f"and {more} more"] if more > 0 else lines


def _is_same(left: Vulnerability, right: Vulnerability) -> bool:
    """Whether two reports of one package mean the same vulnerability.

    Names are only compared between programs: one program reports each vulnerability under one id.
    """
    sources = set(left.source.split(", ")), set(right.source.split(", "))
    return left.id == right.id or (sources[0].isdisjoint(sources[1]) and bool(left.names & right.names))


def _merged(left: Vulnerability, right: Vulnerability) -> Vulnerability:
    """Return two reports of the same vulnerability as one, with name and severity of the one that is rated worse."""
    first, second = sorted((left, right), key=lambda item: (_rating(item), item.source), reverse=True)
    return replace(
        first,
        fixed_in=first.fixed_in or second.fixed_in,
        aliases=frozenset((*first.aliases, *second.aliases, second.id)) - {first.id},
        source=", ".join(dict.fromkeys((*first.source.split(", "), *second.source.split(", ")))),
    )


def _rating(vulnerability: Vulnerability) -> int:
    return -1 if vulnerability.severity is Severity.UNKNOWN else int(vulnerability.severity)


def _canonical(package: str) -> str:
    return package.lower().replace("_", "-").replace(".", "-")
