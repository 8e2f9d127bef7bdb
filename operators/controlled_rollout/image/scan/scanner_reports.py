"""The scanners' own reports, read: Trivy's and Grype's of an image, pip-audit's of an environment.

Sources: Trivy's `pkg/types/report.go` (schema 2) and `pkg/types/vulnerability.go`; Grype's `grype/presenter/models`
(database schema 6); pip-audit's JSON format. What is not needed is not read, and what is needed and missing is an
error: a report that is not understood says nothing.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from controlled_rollout.errors import ScanUnavailableError
from controlled_rollout.image.scan.findings import Finding, Report, Severity

__all__ = ["grype_report", "pip_audit_report", "trivy_database", "trivy_report"]

Document = TypeVar("Document", bound=BaseModel)

# Go writes an empty list as null, or not at all.
Listed = BeforeValidator(lambda value: [] if value is None else value)
TRIVY_SCHEMA: Final = 2
# What is not seen in an image without packages of a distribution; may be accepted under this name.
NO_DISTRIBUTION: Final = "distribution"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _TrivyVulnerability(_Part):
    id: Annotated[str, Field(alias="VulnerabilityID", min_length=1)]
    package: Annotated[str, Field(alias="PkgName", min_length=1)]
    version: Annotated[str, Field(alias="InstalledVersion")] = ""
    fixed: Annotated[str, Field(alias="FixedVersion")] = ""
    severity: Annotated[str, Field(alias="Severity")] = ""
    url: Annotated[str, Field(alias="PrimaryURL")] = ""


class _TrivyResult(_Part):
    category: Annotated[str, Field(alias="Class")] = ""
    vulnerabilities: Annotated[list[_TrivyVulnerability], Listed, Field(alias="Vulnerabilities")] = []


class _TrivySystem(_Part):
    family: Annotated[str, Field(alias="Family")] = ""
    name: Annotated[str, Field(alias="Name")] = ""
    end_of_life: Annotated[bool, Field(alias="EOSL")] = False


class _TrivyMetadata(_Part):
    system: Annotated[_TrivySystem | None, Field(alias="OS")] = None


class _TrivyReport(_Part):
    schema_version: Annotated[int, Field(alias="SchemaVersion")]
    artifact: Annotated[str, Field(alias="ArtifactName")]
    metadata: Annotated[_TrivyMetadata, Field(alias="Metadata")] = _TrivyMetadata()
    results: Annotated[list[_TrivyResult], Listed, Field(alias="Results")] = []


class _TrivyDatabase(_Part):
    updated_at: Annotated[AwareDatetime, Field(alias="UpdatedAt")]


class _TrivyVersion(_Part):
    database: Annotated[_TrivyDatabase | None, Field(alias="VulnerabilityDB")] = None


class _GrypeFix(_Part):
    versions: Annotated[list[str], Listed] = []


class _GrypeVulnerability(_Part):
    id: Annotated[str, Field(min_length=1)]
    severity: str = ""
    source: Annotated[str, Field(alias="dataSource")] = ""
    fix: _GrypeFix = _GrypeFix()


class _GrypePackage(_Part):
    name: Annotated[str, Field(min_length=1)]
    version: str = ""


class _GrypeMatch(_Part):
    vulnerability: _GrypeVulnerability
    related: Annotated[list[_GrypeVulnerability], Listed, Field(alias="relatedVulnerabilities")] = []
    package: Annotated[_GrypePackage, Field(alias="artifact")]


class _GrypeAlert(_Part):
    message: str = ""


class _GrypeAlerts(_Part):
    package: _GrypePackage
    alerts: Annotated[list[_GrypeAlert], Listed] = []


class _GrypeStatus(_Part):
    built: AwareDatetime | None = None
    valid: bool
    error: str = ""


class _GrypeDatabase(_Part):
    status: _GrypeStatus


class _GrypeDescriptor(_Part):
    database: Annotated[_GrypeDatabase, Field(alias="db")]


class _GrypeTarget(_Part):
    asked: Annotated[str, Field(alias="userInput")] = ""


class _GrypeSource(_Part):
    target: _GrypeTarget | str


class _GrypeDistribution(_Part):
    name: str = ""


class _GrypeReport(_Part):
    distribution: Annotated[_GrypeDistribution, Field(alias="distro")] = _GrypeDistribution()
    matches: list[_GrypeMatch]
    alerts: Annotated[list[_GrypeAlerts], Listed, Field(alias="alertsByPackage")] = []
    source: _GrypeSource
    descriptor: _GrypeDescriptor


class _AuditVulnerability(_Part):
    id: Annotated[str, Field(min_length=1)]
    fixed: Annotated[list[str], Field(alias="fix_versions")]
    aliases: list[str] = []


class _AuditDependency(_Part):
    name: Annotated[str, Field(min_length=1)]
    version: str | None = None
    vulnerabilities: Annotated[list[_AuditVulnerability] | None, Field(alias="vulns")] = None
    skipped: Annotated[str | None, Field(alias="skip_reason")] = None


class _AuditReport(_Part):
    dependencies: list[_AuditDependency]


def trivy_report(content: bytes, *, asked: str, built: datetime | None, distribution: bool) -> Report:
    """Return what Trivy's JSON report says.

    Args:
        content: The report.
        asked: What was to be scanned, as Trivy was told it.
        built: When its database was built (see `trivy_database`).
        distribution: Whether there must be a distribution with packages of its own, as in a container image.

    Raises:
        ScanUnavailableError: It is no such report, or one of something else.
    """
    report = _read(_TrivyReport, content, "Trivy")
    if report.schema_version != TRIVY_SCHEMA:
        raise ScanUnavailableError(
            f"Trivy's report has schema {report.schema_version}, {TRIVY_SCHEMA} is understood: use another Trivy"
        )
    _check_subject("Trivy", asked, report.artifact)
    findings = (_trivy_finding(found) for result in report.results for found in result.vulnerabilities)
    return Report("trivy", tuple(findings), _trivy_unseen(report) if distribution else {}, built)


def trivy_database(content: bytes) -> datetime | None:
    """Return when Trivy's database was built, as `trivy version --format json` says; None if it has none.

    Raises:
        ScanUnavailableError: It is no such answer.
    """
    database = _read(_TrivyVersion, content, "Trivy").database
    return database.updated_at.astimezone(UTC) if database else None


def grype_report(content: bytes, *, asked: str, distribution: bool) -> Report:
    """Return what Grype's JSON report says.

    Args:
        content: The report.
        asked: What was to be scanned, as Grype was told it, without the scheme.
        distribution: Whether there must be a distribution with packages of its own, as in a container image.

    Raises:
        ScanUnavailableError: It is no such report, or one of something else, or its database was not valid.
    """
    report = _read(_GrypeReport, content, "Grype")
    target = report.source.target
    _check_subject("Grype", asked, target if isinstance(target, str) else target.asked)
    status = report.descriptor.database.status
    if not status.valid:
        raise ScanUnavailableError(f"Grype's database is not valid: {status.error or 'it does not say why'}: update it")
    unseen = {alerts.package.name: alert.message for alerts in report.alerts for alert in alerts.alerts}
    if distribution and not report.distribution.name:
        unseen[NO_DISTRIBUTION] = "no distribution was recognised, so that its packages were not looked at"
    built = status.built.astimezone(UTC) if status.built else None
    return Report("grype", tuple(map(_grype_finding, report.matches)), unseen, built)


def pip_audit_report(content: bytes, *, asked: int) -> Report:
    """Return what pip-audit's JSON report says. It rates no finding.

    Args:
        content: The report.
        asked: How many packages it was to look at.

    Raises:
        ScanUnavailableError: It is no such report, or one of fewer packages.
    """
    report = _read(_AuditReport, content, "pip-audit")
    if len(report.dependencies) < asked:
        raise ScanUnavailableError(
            f"pip-audit was asked about {asked} packages and answers on {len(report.dependencies)}: see its lines above"
        )
    if report.dependencies and all(package.vulnerabilities is None for package in report.dependencies):
        # It would end with success: to it, packages that are not on PyPI are none of its business.
        raise ScanUnavailableError(
            f"pip-audit's service knows none of the {len(report.dependencies)} packages "
            f"({report.dependencies[0].skipped or 'it does not say why'}): what answers in PyPI's place has no data on "
            "vulnerabilities. Set osv_url in the workspace's settings to a service that has"
        )
    findings, unseen = [], {}
    for package in report.dependencies:
        if package.vulnerabilities is None or package.version is None:
            unseen[package.name] = package.skipped or "it does not say why"
            continue
        findings += [
            Finding(
                found.id,
                package.name,
                package.version,
                Severity.UNKNOWN,
                tuple(found.fixed),
                frozenset(found.aliases) - {found.id},
                "pip-audit",
            )
            for found in package.vulnerabilities
        ]
    return Report("pip-audit", tuple(findings), unseen)


def _trivy_unseen(report: _TrivyReport) -> dict[str, str]:
    system = report.metadata.system
    if system is None or system.family in ("", "none"):
        return {NO_DISTRIBUTION: "no distribution was recognised, so that its packages were not looked at"}
    name = f"{system.family} {system.name}".strip()
    if system.end_of_life:
        return {name: "its support has ended, and with it its advisories"}
    if not any(result.category == "os-pkgs" for result in report.results):
        return {name: "its packages were not looked at"}
    return {}


def _trivy_finding(found: _TrivyVulnerability) -> Finding:
    fixed = tuple(filter(None, (version.strip() for version in found.fixed.split(","))))
    severity = Severity.parse(found.severity)
    # A vendor's advisory is no other name of a vulnerability: it may be on several.
    return Finding(found.id, found.package, found.version, severity, fixed, source="trivy", url=found.url)


def _grype_finding(match: _GrypeMatch) -> Finding:
    found, package = match.vulnerability, match.package
    return Finding(
        found.id,
        package.name,
        package.version,
        Severity.parse(found.severity),
        tuple(found.fix.versions),
        frozenset(related.id for related in match.related) - {found.id},
        "grype",
        found.source,
    )


def _check_subject(source: str, asked: str, found: str) -> None:
    if asked != found:
        raise ScanUnavailableError(f"{source} was asked about {asked!r} and its report is about {found!r}: scan again")


def _read(document: type[Document], content: bytes, source: str) -> Document:
    try:
        return document.model_validate_json(content)
    except ValidationError as error:
        faults: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
        first = faults[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ScanUnavailableError(
            f"{source}'s report is not understood ({where}: {first['msg']}): it says nothing about the image; "
            f"check that this {source} writes the JSON format that docs/scanning.md names"
        ) from None
