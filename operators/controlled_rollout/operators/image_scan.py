"""The task that scans an image for known vulnerabilities before it is rolled out."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from controlled_rollout.arguments import choice, duration, flag, text
from controlled_rollout.defaults import MAX_DATABASE_AGE, SCAN_TIMEOUT
from controlled_rollout.errors import ArgumentError
from controlled_rollout.hooks.registry_users import with_azure_sign_in
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials
    from controlled_rollout.image.scan import ScanSettings

__all__ = ["ScanImageOperator", "scan_settings"]

SUMMARY_KEY = "scan"
SETTINGS = ("max_severity", "accept", "only_fixed", "max_database_age", "scanner", "timeout", "attach_bill")


class ScanImageOperator(EngineCalls, BaseOperator):
    """Scans an image before it is rolled out, and fails if a vulnerability above a chosen severity is found.

    The workspace's scanner (Trivy or Grype, installed on the worker) scans the whole image by its digest, pip-audit its
    Python environment. A scanner or a database that is missing or too old, a service that does not answer, and packages
    that could not be scanned fail the task too: a missing scan is a failure. The task signs in to the registry as for a
    build.

    Returns the image's reference: hand `task.output` to the rollout, and only a scanned image gets there.

    Args:
        image: The image by its digest, such as `BuildImageOperator(…).output`.
        max_severity: The worst severity that may pass: `none`, `negligible`, `low`, `medium`, `high` or `critical`.
            Findings above it, and findings without a rating, fail the task.
        accept: Names of vulnerabilities (`CVE-…`, `GHSA-…`) that were judged and may pass; also of packages and
            distributions that cannot be scanned. A list, or text with commas.
        only_fixed: Whether findings without a fixed version may pass.
        max_database_age: How old the scanner's database may be: a timedelta, seconds, or text such as `5 d`.
        scanner: `trivy` or `grype`; by default the workspace's.
        timeout: How long each program may take.
        attach_bill: Whether an image in a registry gets its bill of materials (CycloneDX) attached, whatever is found.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every operator takes.
    """

    template_fields = ("conn_id", "image", *SETTINGS)
    ui_color = "#e3dcf5"

    def __init__(
        self,
        *,
        image: Any,
        max_severity: str = "medium",
        accept: Sequence[str] | str = (),
        only_fixed: bool | str = False,
        max_database_age: timedelta | float | str = MAX_DATABASE_AGE,
        scanner: str | None = None,
        timeout: timedelta | float | str = SCAN_TIMEOUT,
        attach_bill: bool | str = True,
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.image = image
        self.max_severity = max_severity
        self.accept = accept
        self.only_fixed = only_fixed
        self.max_database_age = max_database_age
        self.scanner = scanner
        self.timeout = timeout
        self.attach_bill = attach_bill
        self.conn_id = conn_id

    def execute(self, context: "Context") -> str:
        """Scan the image, and return its reference; raise if a finding is above the allowed severity."""
        return self.run_with_registry_users(context, lambda workspace, users: self._scan(context, workspace, users))

    async def _scan(self, context: "Context", workspace: Workspace, users: "dict[str, Credentials]") -> str:
        """Scan the image, push the summary to XCom, and return the image's reference."""
        from controlled_rollout.image.scan import scan_image

        image = text("image", self.image)
        credentials = await with_azure_sign_in(workspace, users) if workspace.registry else None
        decision = await scan_image(
            workspace, image, scan_settings(self.arguments()), credentials=credentials, progress=self.log_progress
        )
        context["ti"].xcom_push(key=SUMMARY_KEY, value=decision.summary())
        return image

    def arguments(self) -> dict[str, Any]:
        """Return the operator's scan arguments by name, as `scan_settings` reads them."""
        return {name: getattr(self, name) for name in SETTINGS}


def scan_settings(arguments: Mapping[str, Any]) -> "ScanSettings":
    """Return the checked settings of a scan from `ScanImageOperator`'s arguments, given by name.

    Raises:
        ArgumentError: One of them cannot be used.
    """
    from controlled_rollout.image.scan import ScanPolicy, ScanSettings, Severity

    severities = [str(severity) for severity in Severity if severity is not Severity.UNKNOWN]
    scanner = arguments["scanner"] or None
    if scanner is not None:
        choice("scanner", scanner, "trivy", "grype")
    return ScanSettings(
        scanner=scanner,
        policy=ScanPolicy(
            max_severity=Severity.parse(choice("max_severity", str(arguments["max_severity"]).lower(), *severities)),
            accepted=frozenset(names_of("accept", arguments["accept"])),
            only_fixed=flag("only_fixed", arguments["only_fixed"]),
            max_database_age=duration("max_database_age", arguments["max_database_age"]),
        ),
        timeout=duration("timeout", arguments["timeout"]),
        attach_bill=flag("attach_bill", arguments["attach_bill"]),
    )


def names_of(argument: str, value: Sequence[str] | str | None) -> list[str]:
    """Return a list of names that is given as a list, or as text separated by commas.

    Raises:
        ArgumentError: They are neither.
    """
    names = value.split(",") if isinstance(value, str) else list(value or ())
    if not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{argument} = {value!r} is not a list of names, nor text with commas")
    return [name.strip() for name in names if name.strip()]
