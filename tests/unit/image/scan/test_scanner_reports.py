"""Parsing of the scanners' reports: a missing or incomplete report is never a pass."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ScanUnavailableError
from controlled_rollout.image.scan import ScanPolicy, ScanReport, Severity, decide_on_scan
from controlled_rollout.image.scan.scanner_reports import (
    grype_report,
    pip_audit_report,
    trivy_database_built_at,
    trivy_report,
)

IMAGE = "registry.example/models/digits@sha256:" + "a" * 64
BUILT = datetime(2026, 3, 1, tzinfo=UTC)

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)

# As each program's own types say it is written: what is empty is left out by Trivy and null in Go's lists.
TRIVY_SEVERITIES = st.sampled_from(["UNKNOWN", "LOW", "MEDIUM", "HIGH", "CRITICAL"])
TRIVY_FINDINGS = st.fixed_dictionaries(
    {"VulnerabilityID": WORDS, "PkgName": WORDS, "Severity": TRIVY_SEVERITIES},
    optional={
        "InstalledVersion": WORDS,
        "FixedVersion": st.sampled_from(["", "1.2", "1.2, 2.0.1"]),
    },
)
TRIVY_RESULTS = st.fixed_dictionaries(
    {"Target": WORDS, "Class": st.sampled_from(["os-pkgs", "lang-pkgs"])},
    optional={"Vulnerabilities": st.none() | st.lists(TRIVY_FINDINGS, max_size=3)},
)
GRYPE_SEVERITIES = st.sampled_from(["Unknown", "Negligible", "Low", "Medium", "High", "Critical"])
GRYPE_FINDINGS = st.fixed_dictionaries(
    {
        "vulnerability": st.fixed_dictionaries(
            {
                "id": WORDS,
                "severity": GRYPE_SEVERITIES,
                "fix": st.fixed_dictionaries({"versions": st.lists(WORDS), "state": WORDS}),
            }
        ),
        "relatedVulnerabilities": st.none() | st.lists(st.fixed_dictionaries({"id": WORDS}), max_size=2),
        "artifact": st.fixed_dictionaries({"name": WORDS, "version": WORDS}),
    }
)
AUDITED = st.fixed_dictionaries(
    {
        "name": WORDS,
        "version": WORDS,
        "vulns": st.lists(
            st.fixed_dictionaries({"id": WORDS, "fix_versions": st.lists(WORDS), "aliases": st.lists(WORDS)}),
            max_size=2,
        ),
    }
)


def trivy(results: object = None, *, system: object = None, **fields: object) -> bytes:
    system = {"Family": "debian", "Name": "12.5"} if system is None else system
    results = [{"Target": "debian", "Class": "os-pkgs"}] if results is None else results
    document = {"SchemaVersion": 2, "ArtifactName": IMAGE, "Metadata": {"OS": system}, "Results": results, **fields}
    return json.dumps(document).encode()


def grype(matches: object = (), **fields: object) -> bytes:
    document = {
        "matches": matches,
        "source": {"type": "image", "target": {"userInput": IMAGE, "repoDigests": [IMAGE]}},
        "distro": {"name": "debian", "version": "12", "idLike": []},
        "descriptor": {"name": "grype", "db": {"status": {"valid": True, "built": "2026-03-01T00:00:00Z"}}},
        **fields,
    }
    return json.dumps(document).encode()


def read_trivy(content: bytes) -> ScanReport:
    return trivy_report(content, target=IMAGE, built=BUILT, distribution=True)


def read_grype(content: bytes) -> ScanReport:
    return grype_report(content, target=IMAGE, distribution=True)


@given(st.lists(TRIVY_RESULTS, max_size=4))
def test_every_vulnerability_of_trivy_is_read(results: list[dict[str, Any]]) -> None:
    report = trivy_report(trivy(results), target=IMAGE, built=BUILT, distribution=False)

    written = [item for result in results for item in result.get("Vulnerabilities") or []]
    assert [(item.id, item.package, str(item.severity)) for item in report.vulnerabilities] == [
        (item["VulnerabilityID"], item["PkgName"], item["Severity"].lower()) for item in written
    ]


@given(st.lists(GRYPE_FINDINGS, max_size=4))
def test_every_vulnerability_of_grype_is_read(matches: list[dict[str, Any]]) -> None:
    report = read_grype(grype(matches))

    assert [(item.id, item.package, str(item.severity)) for item in report.vulnerabilities] == [
        (match["vulnerability"]["id"], match["artifact"]["name"], match["vulnerability"]["severity"].lower())
        for match in matches
    ]
    assert report.database_built == BUILT


@given(st.lists(AUDITED, max_size=4))
def test_every_vulnerability_of_pip_audit_is_read(dependencies: list[dict[str, Any]]) -> None:
    report = pip_audit_report(
        json.dumps({"dependencies": dependencies, "fixes": []}).encode(), n_packages=len(dependencies)
    )

    assert [item.id for item in report.vulnerabilities] == [
        item["id"] for dependency in dependencies for item in dependency["vulns"]
    ]
    assert {item.severity for item in report.vulnerabilities} <= {Severity.UNKNOWN}


@given(JSON)
def test_other_documents_are_refused_as_reports(document: object) -> None:
    content = json.dumps(document).encode()

    for read in (read_trivy, read_grype, lambda content: pip_audit_report(content, n_packages=1)):
        with pytest.raises(ScanUnavailableError, match="cannot be parsed"):
            read(content)


@given(st.binary(max_size=64))
def test_empty_and_arbitrary_bytes_are_refused_as_reports(content: bytes) -> None:
    for read in (read_trivy, read_grype, lambda content: pip_audit_report(content, n_packages=1)):
        with pytest.raises(ScanUnavailableError):
            read(content)


@given(st.sampled_from([trivy(), grype()]), st.data())
def test_truncated_report_is_refused(whole: bytes, data: st.DataObject) -> None:
    half = whole[: data.draw(st.integers(0, len(whole) - 1))]

    for read in (read_trivy, read_grype):
        with pytest.raises(ScanUnavailableError):
            read(half)


def test_a_vulnerability_of_trivy_has_every_version_that_fixes_it() -> None:
    item = {"VulnerabilityID": "CVE-2026-1", "PkgName": "bash", "InstalledVersion": "5", "FixedVersion": "5.1, 6.0"}

    [vulnerability] = read_trivy(trivy([{"Class": "os-pkgs", "Vulnerabilities": [item]}])).vulnerabilities

    assert vulnerability.fixed_in == ("5.1", "6.0")
    assert vulnerability.severity is Severity.UNKNOWN, "a missing rating is not harmless"


def test_a_vulnerability_of_grype_has_its_other_names() -> None:
    match = {
        "vulnerability": {"id": "GHSA-1", "severity": "High", "fix": {"versions": ["2.0"], "state": "fixed"}},
        "relatedVulnerabilities": [{"id": "CVE-2026-1"}, {"id": "GHSA-1"}],
        "artifact": {"name": "flask", "version": "1.0"},
    }

    [vulnerability] = read_grype(grype([match])).vulnerabilities

    assert (vulnerability.aliases, vulnerability.fixed_in) == (frozenset({"CVE-2026-1"}), ("2.0",))


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ({"Family": "debian", "Name": "9.13", "EOSL": True}, "debian 9.13"),
        ({"Family": "none"}, "distribution"),
        ({}, "distribution"),
    ],
)
def test_distribution_without_advisories_is_unscanned(system: object, name: str) -> None:
    report = read_trivy(trivy(system=system))

    assert list(report.not_scanned) == [name]
    assert not decide_on_scan([report], ScanPolicy()).passes


def test_distribution_packages_that_trivy_left_out_are_unscanned() -> None:
    assert list(read_trivy(trivy([{"Class": "lang-pkgs"}])).not_scanned) == ["debian 12.5"]


def test_grype_alerts_and_unknown_distributions_are_unscanned() -> None:
    alerts = [{"package": {"name": "bash"}, "alerts": [{"type": "distro-eol", "message": "from end-of-life distro"}]}]

    assert read_grype(grype(alertsByPackage=alerts)).not_scanned == {"bash": "from end-of-life distro"}
    assert list(read_grype(grype(distro={"name": "", "version": ""})).not_scanned) == ["distribution"]


def test_a_report_of_another_image_is_refused() -> None:
    with pytest.raises(ScanUnavailableError, match="its report is on 'other'"):
        read_trivy(trivy(ArtifactName="other"))
    with pytest.raises(ScanUnavailableError, match="its report is on 'other'"):
        read_grype(grype(source={"type": "image", "target": {"userInput": "other"}}))


def test_a_report_of_another_schema_is_refused() -> None:
    with pytest.raises(ScanUnavailableError, match="has schema 3, 2 is understood"):
        read_trivy(trivy(SchemaVersion=3))


def test_a_database_that_grype_calls_not_valid_is_refused() -> None:
    status = {"valid": False, "error": "checksum mismatch"}

    with pytest.raises(ScanUnavailableError, match="not valid: checksum mismatch"):
        read_grype(grype(descriptor={"db": {"status": status}}))


def test_trivy_without_a_database_is_an_error() -> None:
    assert trivy_database_built_at(b'{"Version": "0.70.0"}') is None
    with_one = {"Version": "0.70.0", "VulnerabilityDB": {"Version": 2, "UpdatedAt": "2026-03-01T00:00:00Z"}}
    assert trivy_database_built_at(json.dumps(with_one).encode()) == BUILT


def test_packages_that_pip_audit_skipped_or_lost_are_unscanned() -> None:
    known, skipped = {"name": "flask", "version": "3.0", "vulns": []}, {"name": "ours", "skip_reason": "not found"}

    report = pip_audit_report(json.dumps({"dependencies": [known, skipped]}).encode(), n_packages=2)

    assert report.not_scanned == {"ours": "not found"}
    with pytest.raises(ScanUnavailableError, match="asked about 3 packages and reports on 2"):
        pip_audit_report(json.dumps({"dependencies": [known, skipped]}).encode(), n_packages=3)


def test_vulnerability_service_without_any_package_is_an_error() -> None:
    """As pip-audit reports an index that serves packages and no vulnerabilities, with success."""
    skipped = [{"name": name, "skip_reason": "not found on PyPI"} for name in ("flask", "numpy")]

    with pytest.raises(ScanUnavailableError, match=r"knows none of the 2 packages \(not found on PyPI\)"):
        pip_audit_report(json.dumps({"dependencies": skipped}).encode(), n_packages=2)
