"""The scan gate's decision: what stops an image, what passes, and what is neither."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ScanError, ScanUnavailableError
from controlled_rollout.image.scan import Finding, Policy, Report, Severity, decide
from controlled_rollout.image.scan.findings import check_age, table

RATED = [severity for severity in Severity if severity is not Severity.UNKNOWN]
NOW = datetime(2026, 3, 1, tzinfo=UTC)

NAMES = st.sampled_from(["CVE-2026-1", "CVE-2026-2", "GHSA-1", "GHSA-2", "PYSEC-1"])
FINDINGS = st.builds(
    Finding,
    id=NAMES,
    package=st.sampled_from(["Flask", "flask", "bash"]),
    version=st.sampled_from(["1.0", "2.0"]),
    severity=st.sampled_from(Severity),
    fixed_in=st.sampled_from([(), ("3.0",)]),
    aliases=st.frozensets(NAMES, max_size=2),
    source=st.just("grype"),
)
POLICIES = st.builds(
    Policy, max_severity=st.sampled_from(RATED), accepted=st.frozensets(NAMES, max_size=2), only_fixed=st.booleans()
)


def finding(name: str = "CVE-2026-1", severity: Severity = Severity.HIGH, **fields: Any) -> Finding:
    return replace(Finding(name, "flask", "1.0", severity, source="grype"), **fields)


def audited(name: str, *aliases: str) -> Report:
    return Report("pip-audit", (finding(name, Severity.UNKNOWN, aliases=frozenset(aliases), source="pip-audit"),))


@pytest.mark.parametrize("highest", RATED)
@pytest.mark.parametrize("severity", RATED)
def test_a_finding_stops_the_image_exactly_when_it_is_above_the_highest_severity(
    severity: Severity, highest: Severity
) -> None:
    decision = decide([Report("grype", (finding(severity=severity),))], Policy(max_severity=highest))

    assert decision.passes == (severity <= highest)


@pytest.mark.parametrize("highest", RATED)
def test_what_nobody_has_rated_is_above_every_severity(highest: Severity) -> None:
    assert not decide([Report("grype", (finding(severity=Severity.UNKNOWN),))], Policy(max_severity=highest)).passes


@pytest.mark.parametrize("word", ["", "severe", "unknown", "untriaged", "hig"])
def test_a_word_that_is_no_severity_is_never_a_low_one(word: str) -> None:
    assert Severity.parse(word) is Severity.UNKNOWN


def test_a_policy_that_would_let_everything_pass_is_refused() -> None:
    with pytest.raises(ScanError, match="would let every finding pass"):
        Policy(max_severity=Severity.UNKNOWN)


def test_no_report_is_no_pass() -> None:
    with pytest.raises(ScanError, match="no scanner has looked"):
        decide([], Policy())


def test_an_empty_report_passes() -> None:
    assert decide([Report("grype", ())], Policy()).passes


def test_pip_audits_finding_has_the_severity_of_the_scanner_that_knows_it_by_another_name() -> None:
    grype = Report("grype", (finding("GHSA-1", Severity.LOW, aliases=frozenset({"CVE-2026-1"}), package="Flask"),))

    decision = decide([grype, audited("PYSEC-1", "CVE-2026-1")], Policy())

    [one] = decision.passing
    assert (one.id, one.severity, one.source) == ("GHSA-1", Severity.LOW, "grype, pip-audit")
    assert decision.passes


def test_two_vulnerabilities_on_one_advisory_stay_two() -> None:
    advisory = frozenset({"ELSA-1"})
    both = (finding("CVE-2026-1", aliases=advisory), finding("CVE-2026-2", aliases=advisory))

    assert len(decide([Report("grype", both)], Policy()).stopping) == 2


def test_the_same_vulnerability_in_two_versions_of_a_package_stays_two() -> None:
    both = (finding(version="1.0"), finding(version="2.0"))

    assert len(decide([Report("grype", both)], Policy()).stopping) == 2


def test_an_accepted_vulnerability_passes_by_any_of_its_names_whatever_their_case() -> None:
    report = audited("PYSEC-1", "CVE-2026-1", "GHSA-1")

    for name in ("PYSEC-1", "cve-2026-1", "ghsa-1"):
        decision = decide([report], Policy(accepted=frozenset({name})))
        assert decision.passes and decision.accepted == 1
    assert not decide([report], Policy(accepted=frozenset({"CVE-2026-2"}))).passes


def test_an_advisory_on_two_vulnerabilities_is_accepted_only_when_both_are() -> None:
    report = Report("grype", (finding("ELSA-1", aliases=frozenset({"CVE-2026-1", "CVE-2026-2"})),))

    assert not decide([report], Policy(accepted=frozenset({"CVE-2026-1"}))).passes
    assert decide([report], Policy(accepted=frozenset({"CVE-2026-1", "CVE-2026-2"}))).passes
    assert decide([report], Policy(accepted=frozenset({"ELSA-1"}))).passes


def test_what_cannot_be_fixed_passes_only_if_the_policy_says_so() -> None:
    unfixed, fixed = finding("CVE-2026-1"), finding("CVE-2026-2", fixed_in=("2.0",))

    decision = decide([Report("grype", (unfixed, fixed))], Policy(only_fixed=True))

    assert (decision.passing, decision.stopping) == ((unfixed,), (fixed,))
    assert not decide([Report("grype", (unfixed,))], Policy()).passes


def test_what_could_not_be_looked_at_stops_the_image_until_it_is_accepted() -> None:
    report = Report("pip-audit", (), {"our-package": "the service does not know it"})

    decision = decide([report], Policy())

    assert not decision.passes
    assert decision.unseen == {"our-package": "pip-audit: the service does not know it"}
    assert decision.summary() == "no findings; not looked at: our-package"
    assert decide([report], Policy(accepted=frozenset({"Our-Package"}))).passes


@given(st.lists(FINDINGS, max_size=8), POLICIES)
def test_no_finding_is_lost_and_the_order_of_findings_decides_nothing(findings: list[Finding], policy: Policy) -> None:
    decision = decide([Report("grype", tuple(findings))], policy)
    turned = decide([Report("grype", tuple(reversed(findings)))], policy)

    told = {(one.id, one.package.lower(), one.version) for one in (*decision.stopping, *decision.passing)}
    assert told == {(one.id, one.package.lower(), one.version) for one in findings}
    assert [one.id for one in decision.stopping] == [one.id for one in turned.stopping]
    assert decision.passes == turned.passes


@given(st.lists(FINDINGS, max_size=8), FINDINGS, POLICIES)
def test_one_more_finding_of_a_scanner_never_makes_an_image_pass(
    findings: list[Finding], more: Finding, policy: Policy
) -> None:
    # A name that was accepted may come with it, and then that counts.
    policy = replace(policy, accepted=frozenset())
    before = decide([Report("grype", tuple(findings))], policy)
    after = decide([Report("grype", (*findings, more))], policy)

    if any(one.severity is Severity.UNKNOWN for one in findings):
        return  # A rating may come with it, and a rating counts more than none.
    assert before.passes or not after.passes


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (None, "does not say when its database was built"),
        (NOW - timedelta(days=5, seconds=1), r"5\.0 days ago; it may be 5 days old at most"),
        (NOW + timedelta(hours=2), "is yet to come: check the clocks"),
    ],
)
def test_a_database_of_another_time_is_refused(built: datetime | None, message: str) -> None:
    with pytest.raises(ScanUnavailableError, match=message):
        check_age("grype", built, NOW, timedelta(days=5))


def test_a_database_of_this_time_is_taken() -> None:
    for built in (NOW, NOW - timedelta(days=5), NOW + timedelta(minutes=10)):
        check_age("grype", built, NOW, timedelta(days=5))


def test_the_table_tells_the_worst_first_and_how_many_more_there_are() -> None:
    many = [finding(f"CVE-2026-{number}", Severity.LOW) for number in range(60)]
    decision = decide([Report("grype", (*many, finding("CVE-2026-99", Severity.CRITICAL)))], Policy())

    lines = table((*decision.stopping, *decision.passing))

    assert lines[0].split() == ["severity", "vulnerability", "package", "installed", "fixed", "in", "found", "by"]
    assert lines[1].split() == ["critical", "CVE-2026-99", "flask", "1.0", "-", "grype"]
    assert lines[-1] == "and 11 more"
