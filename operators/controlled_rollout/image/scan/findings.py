"""What scanners find, as values, and the decision on it: no scanner, no file and no network is needed here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Final, Self

from controlled_rollout.errors import ScanError, ScanUnavailableError
from controlled_rollout.text_table import text_table

__all__ = ["Decision", "Finding", "Policy", "Report", "Severity", "check_age", "decide", "table"]

TOLD_FINDINGS: Final = 50
TOLD_NAMES: Final = 5
# A database's clock and this machine's may differ by a little.
CLOCK_TOLERANCE: Final = timedelta(hours=1)


class Severity(IntEnum):
    """How bad a finding is, as scanners rate it. UNKNOWN is no rating: it may be anything."""

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
        """Return the severity of that name; what is no name of one is UNKNOWN, never less."""
        try:
            return cls[text.strip().upper()]
        except KeyError:
            return cls["UNKNOWN"]


@dataclass(frozen=True)
class Finding:
    """One vulnerability of one package.

    Attributes:
        id: The vulnerability's name, such as `CVE-2026-1234`.
        package: The package that has it.
        version: Which version of it is installed.
        severity: How bad it is.
        fixed_in: The versions that do not have it; empty if there is none yet.
        aliases: Other names of the same vulnerability.
        source: Which program found it.
        url: Where to read more.
    """

    id: str
    package: str
    version: str
    severity: Severity
    fixed_in: tuple[str, ...] = ()
    aliases: frozenset[str] = frozenset()
    source: str = ""
    url: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Every name of the vulnerability, in upper case."""
        return frozenset(name.upper() for name in (self.id, *self.aliases))


@dataclass(frozen=True)
class Report:
    """What one program said of one image.

    Attributes:
        source: The program.
        findings: What it found.
        unseen: What it could not look at, by name and with the reason: a distribution without advisories, a package
            that the service does not know. It is no finding, and it is no pass either.
        database_built: When its database was built; None for a service that is asked while it runs.
    """

    source: str
    findings: tuple[Finding, ...]
    unseen: dict[str, str] = field(default_factory=dict)
    database_built: datetime | None = None


@dataclass(frozen=True)
class Policy:
    """What may be rolled out.

    Attributes:
        max_severity: The worst severity that may pass: findings above it stop the image. A finding that nobody has
            rated counts as above it, whatever it is.
        accepted: Names of vulnerabilities, or of what cannot be looked at, that were judged and may pass.
        only_fixed: Whether findings without a fixed version may pass, because nothing can be done about them yet.
        max_database_age: How old a scanner's database may be.
    """

    max_severity: Severity = Severity.MEDIUM
    accepted: frozenset[str] = frozenset()
    only_fixed: bool = False
    max_database_age: timedelta = timedelta(days=5)

    def __post_init__(self) -> None:
        if self.max_severity is Severity.UNKNOWN:
            raise ScanError(
                "max_severity 'unknown' would let every finding pass: choose one of "
                f"{', '.join(str(severity) for severity in Severity if severity is not Severity.UNKNOWN)}"
            )


@dataclass(frozen=True)
class Decision:
    """Whether an image may be rolled out, and on what grounds.

    Attributes:
        stopping: The findings that stop it, worst first.
        passing: The findings that do not.
        unseen: What could not be looked at and was not accepted: it stops the image.
        accepted: How many findings pass only because their names were accepted.
    """

    stopping: tuple[Finding, ...]
    passing: tuple[Finding, ...]
    unseen: dict[str, str]
    accepted: int = 0

    @property
    def passes(self) -> bool:
        """Whether nothing stops the image."""
        return not self.stopping and not self.unseen

    def summary(self) -> str:
        """Return the decision in a line."""
        counts = Counter(finding.severity for finding in (*self.stopping, *self.passing))
        rated = ", ".join(f"{counts[severity]} {severity}" for severity in sorted(counts, reverse=True))
        found = f"findings: {rated}; stopping: {len(self.stopping)}" if rated else "no findings"
        accepted = f"; accepted: {self.accepted}" if self.accepted else ""
        unseen = f"; not looked at: {_listed(self.unseen)}" if self.unseen else ""
        return found + accepted + unseen


def decide(reports: Sequence[Report], policy: Policy) -> Decision:
    """Decide on what all programs together say of one image.

    The same vulnerability of the same package counts once, with the severity of whoever rates it: pip-audit does not.

    Args:
        reports: One of each program that was asked.
        policy: What may be rolled out.

    Raises:
        ScanError: There is no report: what nobody has looked at has not passed.
    """
    if not reports:
        raise ScanError("no scanner has looked at the image: it has neither passed nor failed")
    accepted = frozenset(name.upper() for name in policy.accepted)
    findings = merged(finding for report in reports for finding in report.findings)
    stopping, passing, excused = [], [], 0
    for finding in findings:
        if finding.severity <= policy.max_severity or (policy.only_fixed and not finding.fixed_in):
            passing.append(finding)
        elif _is_accepted(finding, accepted):
            passing.append(finding)
            excused += 1
        else:
            stopping.append(finding)
    unseen = {
        name: f"{report.source}: {why}"
        for report in reports
        for name, why in report.unseen.items()
        if name.upper() not in accepted
    }
    return Decision(tuple(stopping), tuple(passing), unseen, excused)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Return each vulnerability of each package once, worst first.

    Of several severities the worst counts, but any rating counts more than none.
    """
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        package = groups.setdefault((_canonical(finding.package), finding.version), [])
        same = [other for other in package if _is_same(other, finding)]
        for other in same:
            package.remove(other)
            finding = _joined(other, finding)
        package.append(finding)
    return sorted(
        (finding for package in groups.values() for finding in package),
        key=lambda finding: (-_rated(finding), _canonical(finding.package), finding.version, finding.id),
    )


def check_age(source: str, built: datetime | None, now: datetime, limit: timedelta) -> None:
    """Refuse a database that is too old to say anything about today.

    Args:
        source: The scanner.
        built: When its database was built, with a time zone.
        now: The present time, with a time zone.
        limit: How old it may be.

    Raises:
        ScanUnavailableError: It is not known when the database was built, or that is too long ago, or yet to come.
    """
    if built is None:
        raise ScanUnavailableError(f"{source} does not say when its database was built: it may have none; update it")
    age = now - built
    if age > limit:
        raise ScanUnavailableError(
            f"{source}'s database was built at {built:%Y-%m-%d %H:%M} UTC, {age.total_seconds() / 86400:.1f} days ago; "
            f"it may be {limit.total_seconds() / 86400:g} days old at most: update it, or see why the update fails"
        )
    if age < -CLOCK_TOLERANCE:
        raise ScanUnavailableError(
            f"{source}'s database was built at {built:%Y-%m-%d %H:%M} UTC, which is yet to come: check the clocks"
        )


def table(findings: Sequence[Finding]) -> list[str]:
    """Return findings as lines of text, one for each, the first so many of them."""
    if not findings:
        return []
    rows = [("severity", "vulnerability", "package", "installed", "fixed in", "found by")]
    for finding in findings[:TOLD_FINDINGS]:
        fixed = ", ".join(finding.fixed_in) or "-"
        rows.append((str(finding.severity), finding.id, finding.package, finding.version, fixed, finding.source))
    lines = text_table(rows).splitlines()
    more = len(findings) - TOLD_FINDINGS
    return [*lines, f"and {more} more"] if more > 0 else lines


def _is_same(one: Finding, other: Finding) -> bool:
    """Whether two findings of one package are the same vulnerability: one program names each of its own in one way."""
    sources = set(one.source.split(", ")), set(other.source.split(", "))
    return one.id == other.id or (sources[0].isdisjoint(sources[1]) and bool(one.names & other.names))


def _is_accepted(finding: Finding, accepted: frozenset[str]) -> bool:
    """Whether somebody has judged the finding: an advisory on several vulnerabilities only if all were."""
    several = {name for name in finding.names if name.startswith("CVE-")}
    if finding.id.upper() in accepted:
        return True
    return several <= accepted if len(several) > 1 else bool(finding.names & accepted)


def _joined(one: Finding, other: Finding) -> Finding:
    """Return two findings of the same vulnerability as one, under the name and rating of the one that is rated."""
    first, second = sorted((one, other), key=lambda finding: (_rated(finding), finding.source), reverse=True)
    return replace(
        first,
        fixed_in=first.fixed_in or second.fixed_in,
        aliases=frozenset((*first.aliases, *second.aliases, second.id)) - {first.id},
        source=", ".join(dict.fromkeys((*first.source.split(", "), *second.source.split(", ")))),
        url=first.url or second.url,
    )


def _rated(finding: Finding) -> int:
    return -1 if finding.severity is Severity.UNKNOWN else int(finding.severity)


def _canonical(package: str) -> str:
    return package.lower().replace("_", "-").replace(".", "-")


def _listed(unseen: dict[str, str]) -> str:
    names = sorted(unseen)
    more = f" and {len(names) - TOLD_NAMES} more" if len(names) > TOLD_NAMES else ""
    return ", ".join(names[:TOLD_NAMES]) + more
