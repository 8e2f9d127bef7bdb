"""The decision whether a scanned image may be rolled out. No I/O."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from controlled_rollout.errors import ScanError, ScanUnavailableError
from controlled_rollout.image.scan.vulnerabilities import ScanReport, Severity, Vulnerability, merge_vulnerabilities

__all__ = ["ScanDecision", "ScanPolicy", "check_database_age", "decide_on_scan"]

MAX_LISTED_NAMES: Final = 5
# The clock of the machine that built a database may differ from this machine's.
CLOCK_TOLERANCE: Final = timedelta(hours=1)


@dataclass(frozen=True)
class ScanPolicy:
    """What an image may have and still be rolled out.

    Attributes:
        max_severity: The worst severity that may pass. A vulnerability without a rating counts as worse than any.
        accepted: Names of vulnerabilities, or of what cannot be scanned, that were reviewed and may pass.
        only_fixed: Whether vulnerabilities that no version fixes yet may pass.
        max_database_age: The greatest age of a scanner's database.
    """

    max_severity: Severity = Severity.MEDIUM
    accepted: frozenset[str] = frozenset()
    only_fixed: bool = False
    max_database_age: timedelta = timedelta(days=5)

    def __post_init__(self) -> None:
        if self.max_severity is Severity.UNKNOWN:
            raise ScanError(
                "max_severity 'unknown' would let every vulnerability pass: choose one of "
                f"{', '.join(str(severity) for severity in Severity if severity is not Severity.UNKNOWN)}"
            )


@dataclass(frozen=True)
class ScanDecision:
    """Whether an image may be rolled out, and why.

    Attributes:
        blocking: The vulnerabilities that block it, the worst first.
        passing: The other vulnerabilities.
        not_scanned: What could not be scanned and was not accepted, with the reason: it blocks the image too.
        n_accepted: How many vulnerabilities pass only because their names were accepted.
    """

    blocking: tuple[Vulnerability, ...]
    passing: tuple[Vulnerability, ...]
    not_scanned: dict[str, str]
    n_accepted: int = 0

    @property
    def passes(self) -> bool:
        """Whether no vulnerability blocks the image and no part of it is unscanned."""
        return not self.blocking and not self.not_scanned

    def document(self) -> dict[str, Any]:
        """Return the decision as JSON values."""
        return {
            "passes": self.passes,
            "blocking": [item.document() for item in self.blocking],
            "passing": [item.document() for item in self.passing],
            "accepted": self.n_accepted,
            "not_scanned": dict(self.not_scanned),
        }

    def summary(self) -> str:
        """Return the decision as one line of text."""
        counts = Counter(vulnerability.severity for vulnerability in (*self.blocking, *self.passing))
        by_severity = ", ".join(f"{counts[severity]} {severity}" for severity in sorted(counts, reverse=True))
        parts = [f"vulnerabilities: {by_severity}; blocking: {len(self.blocking)}" if counts else "no vulnerabilities"]
        parts += [f"accepted: {self.n_accepted}"] if self.n_accepted else []
        parts += [f"not scanned: {_list_names(self.not_scanned)}"] if self.not_scanned else []
        return "; ".join(parts)


def decide_on_scan(reports: Sequence[ScanReport], policy: ScanPolicy) -> ScanDecision:
    """Decide from all scan reports and the policy whether an image may be rolled out.

    Args:
        reports: One of each program.
        policy: What may pass.

    Raises:
        ScanError: There is no report: a missing scan is a failure.
    """
    if not reports:
        raise ScanError("no scanner has reported on the image: a missing scan is a failure")
    accepted = frozenset(name.upper() for name in policy.accepted)
    blocking, passing, n_accepted = [], [], 0
    for item in merge_vulnerabilities(item for report in reports for item in report.vulnerabilities):
        if item.severity <= policy.max_severity or (policy.only_fixed and not item.fixed_in):
            passing.append(item)
        elif _is_accepted(item, accepted):
            passing.append(item)
            n_accepted += 1
        else:
            blocking.append(item)
    not_scanned = {
        name: f"{report.source}: {why}"
        for report in reports
        for name, why in report.not_scanned.items()
        if name.upper() not in accepted
    }
    return ScanDecision(tuple(blocking), tuple(passing), not_scanned, n_accepted)


def check_database_age(source: str, built: datetime | None, now: datetime, max_age: timedelta) -> None:
    """Raise `ScanUnavailableError` if a scanner's database is older than `max_age` or has no known age.

    Args:
        source: The scanner.
        built: When its database was built, with a time zone.
        now: The present time, with a time zone.
        max_age: The greatest age.

    Raises:
        ScanUnavailableError: The database is too old, is from the future, or its time is not known.
    """
    if built is None:
        raise ScanUnavailableError(f"{source} does not say when its database was built: it may have none; update it")
    age = now - built
    if age > max_age:
        raise ScanUnavailableError(
            f"{source}'s database was built at {built:%Y-%m-%d %H:%M} UTC, {age.total_seconds() / 86400:.1f} days ago; "
            f"it may be {max_age.total_seconds() / 86400:g} days old at most: update it, or find out why the update "
            "fails"
        )
    if age < -CLOCK_TOLERANCE:
        raise ScanUnavailableError(
            f"{source}'s database was built at {built:%Y-%m-%d %H:%M} UTC, which is in the future: check the clocks"
        )


def _is_accepted(vulnerability: Vulnerability, accepted: frozenset[str]) -> bool:
    """Whether the policy accepts a vulnerability by name. For an advisory on several CVEs, it must accept all."""
    cves = {name for name in vulnerability.names if name.startswith("CVE-")}
    if vulnerability.id.upper() in accepted:
        return True
    return cves <= accepted if len(cves) > 1 else bool(vulnerability.names & accepted)


def _list_names(not_scanned: dict[str, str]) -> str:
    """Return the names of what was not scanned as text, the first few by name and the rest as a number."""
    names = sorted(not_scanned)
    more = f" and {len(names) - MAX_LISTED_NAMES} more" if len(names) > MAX_LISTED_NAMES else ""
    return ", ".join(names[:MAX_LISTED_NAMES]) + more
