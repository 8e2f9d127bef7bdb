"""The decision on a scanned image: which vulnerabilities block it, which pass."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ScanError, ScanUnavailableError
from controlled_rollout.image.scan import ScanPolicy, ScanReport, Severity, Vulnerability, decide_on_scan
from controlled_rollout.image.scan.decision import check_database_age
from controlled_rollout.image.scan.vulnerabilities import vulnerability_table

RATED = [severity for severity in Severity if severity is not Severity.UNKNOWN]
NOW = datetime(2026, 3, 1, tzinfo=UTC)

NAMES = st.sampled_from(["CVE-2026-1", "CVE-2026-2", "GHSA-1", "GHSA-2", "PYSEC-1"])
VULNERABILITIES = st.builds(
    Vulnerability,
    id=NAMES,
    package=st.sampled_from(["Flask", "flask", "bash"]),
    version=st.sampled_from(["1.0", "2.0"]),
    severity=st.sampled_from(Severity),
    fixed_in=st.sampled_from([(), ("3.0",)]),
    aliases=st.frozensets(NAMES, max_size=2),
    source=st.just("grype"),
)
POLICIES = st.builds(
    ScanPolicy, max_severity=st.sampled_from(RATED), accepted=st.frozensets(NAMES, max_size=2), only_fixed=st.booleans()
)


def vulnerability(name: str = "CVE-2026-1", severity: Severity = Severity.HIGH, **fields: Any) -> Vulnerability:
    return replace(Vulnerability(name, "flask", "1.0", severity, source="grype"), **fields)


def audited(name: str, *aliases: str) -> ScanReport:
    return ScanReport(
        "pip-audit", (vulnerability(name, Severity.UNKNOWN, aliases=frozenset(aliases), source="pip-audit"),)
    )


@pytest.mark.parametrize("highest", RATED)
@pytest.mark.parametrize("severity", RATED)
def test_a_vulnerability_blocks_the_image_exactly_when_it_is_above_the_highest_severity(
    severity: Severity, highest: Severity
) -> None:
    decision = decide_on_scan(
        [ScanReport("grype", (vulnerability(severity=severity),))], ScanPolicy(max_severity=highest)
    )

    assert decision.passes == (severity <= highest)


@pytest.mark.parametrize("highest", RATED)
def test_a_vulnerability_without_a_rating_is_above_every_severity(highest: Severity) -> None:
    assert not decide_on_scan(
        [ScanReport("grype", (vulnerability(severity=Severity.UNKNOWN),))], ScanPolicy(max_severity=highest)
    ).passes


@pytest.mark.parametrize("word", ["", "severe", "unknown", "untriaged", "hig"])
def test_unknown_severity_word_is_unknown(word: str) -> None:
    assert Severity.parse(word) is Severity.UNKNOWN


def test_a_policy_that_would_let_everything_pass_is_refused() -> None:
    with pytest.raises(ScanError, match="would let every vulnerability pass"):
        ScanPolicy(max_severity=Severity.UNKNOWN)


def test_missing_report_is_not_a_pass() -> None:
    with pytest.raises(ScanError, match="no scanner has reported"):
        decide_on_scan([], ScanPolicy())


def test_an_empty_report_passes() -> None:
    assert decide_on_scan([ScanReport("grype", ())], ScanPolicy()).passes


def test_a_vulnerability_of_pip_audit_gets_the_severity_of_the_scanner_that_has_it_under_another_name() -> None:
    grype = ScanReport(
        "grype", (vulnerability("GHSA-1", Severity.LOW, aliases=frozenset({"CVE-2026-1"}), package="Flask"),)
    )

    decision = decide_on_scan([grype, audited("PYSEC-1", "CVE-2026-1")], ScanPolicy())

    [merged] = decision.passing
    assert (merged.id, merged.severity, merged.source) == ("GHSA-1", Severity.LOW, "grype, pip-audit")
    assert decision.passes


def test_two_vulnerabilities_on_one_advisory_stay_two() -> None:
    advisory = frozenset({"ELSA-1"})
    both = (vulnerability("CVE-2026-1", aliases=advisory), vulnerability("CVE-2026-2", aliases=advisory))

    assert len(decide_on_scan([ScanReport("grype", both)], ScanPolicy()).blocking) == 2


def test_the_same_vulnerability_in_two_versions_of_a_package_stays_two() -> None:
    both = (vulnerability(version="1.0"), vulnerability(version="2.0"))

    assert len(decide_on_scan([ScanReport("grype", both)], ScanPolicy()).blocking) == 2


def test_accepted_vulnerability_passes_by_any_of_its_names_in_any_case() -> None:
    report = audited("PYSEC-1", "CVE-2026-1", "GHSA-1")

    for name in ("PYSEC-1", "cve-2026-1", "ghsa-1"):
        decision = decide_on_scan([report], ScanPolicy(accepted=frozenset({name})))
        assert decision.passes and decision.n_accepted == 1
    assert not decide_on_scan([report], ScanPolicy(accepted=frozenset({"CVE-2026-2"}))).passes


def test_an_advisory_on_two_vulnerabilities_is_accepted_only_when_both_are() -> None:
    report = ScanReport("grype", (vulnerability("ELSA-1", aliases=frozenset({"CVE-2026-1", "CVE-2026-2"})),))

    assert not decide_on_scan([report], ScanPolicy(accepted=frozenset({"CVE-2026-1"}))).passes
    assert decide_on_scan([report], ScanPolicy(accepted=frozenset({"CVE-2026-1", "CVE-2026-2"}))).passes
    assert decide_on_scan([report], ScanPolicy(accepted=frozenset({"ELSA-1"}))).passes


def test_a_vulnerability_without_a_fix_passes_only_if_the_policy_says_so() -> None:
    unfixed, fixed = vulnerability("CVE-2026-1"), vulnerability("CVE-2026-2", fixed_in=("2.0",))

    decision = decide_on_scan([ScanReport("grype", (unfixed, fixed))], ScanPolicy(only_fixed=True))

    assert (decision.passing, decision.blocking) == ((unfixed,), (fixed,))
    assert not decide_on_scan([ScanReport("grype", (unfixed,))], ScanPolicy()).passes


def test_unscanned_package_blocks_the_image_until_it_is_accepted() -> None:
    report = ScanReport("pip-audit", (), {"our-package": "the service does not know it"})

    decision = decide_on_scan([report], ScanPolicy())

    assert not decision.passes
    assert decision.not_scanned == {"our-package": "pip-audit: the service does not know it"}
    assert decision.summary() == "no vulnerabilities; not scanned: our-package"
    assert decide_on_scan([report], ScanPolicy(accepted=frozenset({"Our-Package"}))).passes


@given(st.lists(VULNERABILITIES, max_size=8), POLICIES)
def test_no_vulnerability_is_lost_and_their_order_does_not_matter(
    vulnerabilities: list[Vulnerability], policy: ScanPolicy
) -> None:
    decision = decide_on_scan([ScanReport("grype", tuple(vulnerabilities))], policy)
    reverse = decide_on_scan([ScanReport("grype", tuple(reversed(vulnerabilities)))], policy)

    decided = {(item.id, item.package.lower(), item.version) for item in (*decision.blocking, *decision.passing)}
    assert decided == {(item.id, item.package.lower(), item.version) for item in vulnerabilities}
    assert [item.id for item in decision.blocking] == [item.id for item in reverse.blocking]
    assert decision.passes == reverse.passes


@given(st.lists(VULNERABILITIES, max_size=8), VULNERABILITIES, POLICIES)
def test_one_more_vulnerability_never_makes_an_image_pass(
    vulnerabilities: list[Vulnerability], more: Vulnerability, policy: ScanPolicy
) -> None:
    # The new one may bring an accepted name for an old one.
    policy = replace(policy, accepted=frozenset())
    before = decide_on_scan([ScanReport("grype", tuple(vulnerabilities))], policy)
    after = decide_on_scan([ScanReport("grype", (*vulnerabilities, more))], policy)

    if any(item.severity is Severity.UNKNOWN for item in vulnerabilities):
        return  # The new one may bring a rating for an old one, and any rating counts more than none.
    assert before.passes or not after.passes


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (None, "does not say when its database was built"),
        (NOW - timedelta(days=5, seconds=1), r"5\.0 days ago; it may be 5 days old at most"),
        (NOW + timedelta(hours=2), "is in the future: check the clocks"),
    ],
)
def test_a_database_that_is_too_old_or_from_the_future_is_refused(built: datetime | None, message: str) -> None:
    with pytest.raises(ScanUnavailableError, match=message):
        check_database_age("grype", built, NOW, timedelta(days=5))


def test_a_recent_database_is_accepted() -> None:
    for built in (NOW, NOW - timedelta(days=5), NOW + timedelta(minutes=10)):
        check_database_age("grype", built, NOW, timedelta(days=5))


def test_the_table_has_the_worst_first_and_says_how_many_more_there_are() -> None:
    many = [vulnerability(f"CVE-2026-{number}", Severity.LOW) for number in range(60)]
    decision = decide_on_scan(
        [ScanReport("grype", (*many, vulnerability("CVE-2026-99", Severity.CRITICAL)))], ScanPolicy()
    )

    lines = vulnerability_table((*decision.blocking, *decision.passing))

    assert lines[0].split() == ["severity", "vulnerability", "package", "installed", "fixed", "in", "found", "by"]
    assert lines[1].split() == ["critical", "CVE-2026-99", "flask", "1.0", "-", "grype"]
    assert lines[-1] == "and 11 more"
