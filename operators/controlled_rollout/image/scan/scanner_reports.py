"""Parse the scanners' own reports: Trivy's and Grype's of an image, pip-audit's of an environment.

Sources: Trivy's `pkg/types/report.go` (schema 2) and `pkg/types/vulnerability.go`; Grype's `grype/presenter/models`
(database schema 6); pip-audit's JSON format. Only the needed fields are read. A needed field that is missing is an
error: a report that cannot be parsed is not a pass.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from controlled_rollout.errors import ScanUnavailableError
from controlled_rollout.image.scan.vulnerabilities import ScanReport, Severity, Vulnerability

__all__ = ["grype_report", "pip_audit_report", "trivy_database_built_at", "trivy_report"]

Document = TypeVar("Document", bound=BaseModel)

# Go writes an empty list as null, or not at all.
Listed = BeforeValidator(lambda value: [] if value is None else value)
TRIVY_SCHEMA: Final = 2
# The name of what is not scanned in an image without a distribution; it may be accepted.
NO_DISTRIBUTION: Final = "distribution"
NOT_RECOGNISED: Final = "no distribution was recognised: its packages were not scanned"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _TrivyVulnerability(_Part):
    id: Annotated[str, Field(alias="VulnerabilityID", min_length=1)]
    package: Annotated[str, Field(alias="PkgName", min_length=1)]
    version: Annotated[str, Field(alias="InstalledVersion")] = ""
    fixed: Annotated[str, Field(alias="FixedVersion")] = ""
    severity: Annotated[str, Field(alias="Severity")] = ""


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
    user_input: Annotated[str, Field(alias="userInput")] = ""


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


def trivy_report(content: bytes, *, target: str, built: datetime | None, distribution: bool) -> ScanReport:
    """Parse Trivy's JSON report.

    Args:
        content: The report.
        target: The image or folder that Trivy was called with.
        built: When its database was built (see `trivy_database_built_at`).
        distribution: Whether a distribution with packages is expected, as in a container image.

    Raises:
        ScanUnavailableError: It is not such a report, or a report on another target.
    """
    report = _parse_report(_TrivyReport, content, "Trivy")
    if report.schema_version != TRIVY_SCHEMA:
        raise ScanUnavailableError(
            f"Trivy's report has schema {report.schema_version}, {TRIVY_SCHEMA} is understood: use another Trivy"
        )
    _check_target("Trivy", target, report.artifact)
    vulnerabilities = tuple(
        _vulnerability_from_trivy(item) for result in report.results for item in result.vulnerabilities
    )
    return ScanReport("trivy", vulnerabilities, _not_scanned_by_trivy(report) if distribution else {}, built)


def trivy_database_built_at(content: bytes) -> datetime | None:
    """Return the build time of Trivy's database from the output of `trivy version --format json`, or None.

    Raises:
        ScanUnavailableError: The content is not that command's output.
    """
    database = _parse_report(_TrivyVersion, content, "Trivy").database
    return database.updated_at.astimezone(UTC) if database else None


def grype_report(content: bytes, *, target: str, distribution: bool) -> ScanReport:
    """Parse Grype's JSON report.

    Args:
        content: The report.
        target: The image or folder that Grype was called with, without the scheme.
        distribution: Whether a distribution with packages is expected, as in a container image.

    Raises:
        ScanUnavailableError: It is not such a report, or a report on another target, or its database was not valid.
    """
    report = _parse_report(_GrypeReport, content, "Grype")
    source_target = report.source.target
    _check_target("Grype", target, source_target if isinstance(source_target, str) else source_target.user_input)
    status = report.descriptor.database.status
    if not status.valid:
        raise ScanUnavailableError(f"Grype's database is not valid: {status.error or 'it does not say why'}: update it")
    not_scanned = {alerts.package.name: alert.message for alerts in report.alerts for alert in alerts.alerts}
    if distribution and not report.distribution.name:
        not_scanned[NO_DISTRIBUTION] = NOT_RECOGNISED
    built = status.built.astimezone(UTC) if status.built else None
    return ScanReport("grype", tuple(map(_vulnerability_from_grype, report.matches)), not_scanned, built)


def pip_audit_report(content: bytes, *, n_packages: int) -> ScanReport:
    """Parse pip-audit's JSON report, which rates no vulnerability.

    Args:
        content: The report.
        n_packages: How many packages pip-audit was asked about.

    Raises:
        ScanUnavailableError: It is not such a report, or a report on fewer packages.
    """
    report = _parse_report(_AuditReport, content, "pip-audit")
    if len(report.dependencies) < n_packages:
        raise ScanUnavailableError(
            f"pip-audit was asked about {n_packages} packages and reports on {len(report.dependencies)}: see its lines "
            "above"
        )
    if report.dependencies and all(package.vulnerabilities is None for package in report.dependencies):
        # pip-audit itself ends with success then: it skips packages that its service does not know.
        raise ScanUnavailableError(
            f"pip-audit's service knows none of the {len(report.dependencies)} packages "
            f"({report.dependencies[0].skipped or 'it does not say why'}): the index in PyPI's place has no data on "
            "vulnerabilities. Set osv_url in the workspace's settings to a service that has them"
        )
    vulnerabilities, not_scanned = [], {}
    for package in report.dependencies:
        if package.vulnerabilities is None or package.version is None:
            not_scanned[package.name] = package.skipped or "it does not say why"
            continue
        vulnerabilities += [
            Vulnerability(
                item.id,
                package.name,
                package.version,
                Severity.UNKNOWN,
                tuple(item.fixed),
                frozenset(item.aliases) - {item.id},
                "pip-audit",
            )
            for item in package.vulnerabilities
        ]
    return ScanReport("pip-audit", tuple(vulnerabilities), not_scanned)


def _not_scanned_by_trivy(report: _TrivyReport) -> dict[str, str]:
    """Return what Trivy did not scan, with the reason by name; empty if it scanned the distribution's packages."""
    system = report.metadata.system
    if system is None or system.family in ("", "none"):
        return {NO_DISTRIBUTION: NOT_RECOGNISED}
    name = f"{system.family} {system.name}".strip()
    if system.end_of_life:
        return {name: "it is no longer supported and gets no advisories"}
    if not any(result.category == "os-pkgs" for result in report.results):
        return {name: "its packages were not scanned"}
    return {}


def _vulnerability_from_trivy(item: _TrivyVulnerability) -> Vulnerability:
    """Convert one vulnerability of Trivy's report."""
    fixed = tuple(filter(None, (version.strip() for version in item.fixed.split(","))))
    severity = Severity.parse(item.severity)
    # The vendor's advisory is not taken as an alias: it may be about several vulnerabilities.
    return Vulnerability(item.id, item.package, item.version, severity, fixed, source="trivy")


def _vulnerability_from_grype(match: _GrypeMatch) -> Vulnerability:
    """Convert one match of Grype's report to a vulnerability."""
    item, package = match.vulnerability, match.package
    return Vulnerability(
        item.id,
        package.name,
        package.version,
        Severity.parse(item.severity),
        tuple(item.fix.versions),
        frozenset(related.id for related in match.related) - {item.id},
        "grype",
    )


def _check_target(source: str, expected: str, actual: str) -> None:
    """Raise `ScanUnavailableError` if a report is about another image or folder than the scanned one."""
    if expected != actual:
        raise ScanUnavailableError(f"{source} was called for {expected!r}, its report is on {actual!r}: scan again")


def _parse_report(document: type[Document], content: bytes, source: str) -> Document:
    """Parse and validate a scanner's JSON report; raise `ScanUnavailableError` if its format is not as expected."""
    try:
        return document.model_validate_json(content)
    except ValidationError as error:
        faults: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
        where = ".".join(map(str, faults[0]["loc"])) or "it"
        raise ScanUnavailableError(
            f"{source}'s report cannot be parsed ({where}: {faults[0]['msg']}): the image was not scanned; "
            f"check that this {source} writes the JSON format that docs/scanning.md names"
        ) from error
