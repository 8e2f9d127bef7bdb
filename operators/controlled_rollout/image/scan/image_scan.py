"""Scan an image with every program, and decide_on_scan whether it may be rolled out."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Final

from controlled_rollout.errors import ScanError, ScanUnavailableError
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.local_image import load_local_image
from controlled_rollout.image.oci.registry_client import Credentials, RegistryClient, Repository
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.scan.bill_of_materials import attach_bill_of_materials
from controlled_rollout.image.scan.decision import ScanDecision, ScanPolicy, check_database_age, decide_on_scan
from controlled_rollout.image.scan.installed_packages import (
    ENVIRONMENT,
    InstalledPackages,
    packages_of_environment,
    packages_of_image,
)
from controlled_rollout.image.scan.scanners import ScanRun, Subject, run_pip_audit, scanner_named
from controlled_rollout.image.scan.vulnerabilities import MAX_TABLE_ROWS, vulnerability_table
from controlled_rollout.workspace import Workspace

__all__ = ["ScanSettings", "scan_image"]

CACHE_FOLDER: Final = "scans"
LOCAL: Final = "local/"


@dataclass(frozen=True)
class ScanSettings:
    """How an image is scanned.

    Attributes:
        scanner: `trivy` or `grype`; None for the workspace's.
        policy: What may pass.
        attach_bill: Whether an image in a registry gets its bill of materials attached, whatever is found. This needs
            credentials that allow a push.
        timeout: The longest time that each program may take.
    """

    scanner: str | None = None
    policy: ScanPolicy = field(default_factory=ScanPolicy)
    attach_bill: bool = True
    timeout: timedelta = timedelta(minutes=10)


# Long because most of it describes the arguments.
async def scan_image(
    workspace: Workspace,
    reference: str | ImageReference,
    settings: ScanSettings | None = None,
    *,
    credentials: Mapping[str, Credentials] | None = None,
    progress: Callable[[str], None] = lambda line: None,
    on_decision: Callable[[ScanDecision], None] = lambda decision: None,
) -> ScanDecision:
    """Scan an image with a scanner, and its Python packages with pip-audit; return whether it may be rolled out.

    Args:
        workspace: Names the scanner, the vulnerability service and the cache.
        reference: The image by its digest; `local/…` for one of the workspace's cache.
        settings: How to scan, and what may pass.
        credentials: A user for each registry that needs one, by host.
        progress: Called with a line for each step, for each line of the programs, and for each vulnerability.
        on_decision: Called with the decision, also with one that does not pass.

    Returns:
        The decision, which passes.

    Raises:
        ScanUnavailableError: A scanner, its database or a service is missing, too old or does not answer.
        ScanError: A vulnerability, or something that could not be scanned, blocks the image; the message lists it.
        ImageError: The image does not exist or cannot be read.
    """
    settings = settings or ScanSettings()
    image = ImageReference.parse(reference) if isinstance(reference, str) else reference
    scanner = scanner_named(settings.scanner or workspace.scanner)
    scanner.find()
    cache = Cache.at(workspace.cache_folder)
    if image.name.startswith(LOCAL):
        environment = load_local_image(image, workspace.cache_folder).python.parent.parent.resolve()
        subject: Subject = environment
        installed, root = packages_of_environment(environment), PurePosixPath(environment)
    else:
        subject, root = image, ENVIRONMENT
        installed = await _packages_in_registry(image, cache, credentials or {}, settings, progress)
    requirements = installed.requirements(root)
    if not requirements:
        raise ScanUnavailableError(f"image {image} has no Python package in {root}: it was not built by this program")
    waiting = "scan: another scan runs on this machine, waiting"
    async with cache.exclusive_folder(CACHE_FOLDER, on_wait=lambda: progress(waiting)) as (folder, lock):
        run = ScanRun(
            _new_scan_folder(folder), folder / "pip-audit", lock, settings.timeout, credentials or {}, progress
        )
        try:
            reports = [
                await scanner.scan(subject, run),
                await run_pip_audit(requirements, run, osv_url=workspace.osv_url),
            ]
        finally:
            shutil.rmtree(run.folder, ignore_errors=True)
    check_database_age(scanner.name, reports[0].database_built, datetime.now(UTC), settings.policy.max_database_age)
    decision = decide_on_scan(reports, settings.policy)
    _report_decision(image, decision, progress)
    on_decision(decision)
    if not decision.passes:
        raise _blocked_error(image, decision, settings.policy)
    return decision


async def _packages_in_registry(
    image: ImageReference,
    cache: Cache,
    credentials: Mapping[str, Credentials],
    settings: ScanSettings,
    progress: Callable[[str], None],
) -> InstalledPackages:
    """Return the packages of an image in a registry; attach its bill of materials if the settings say so."""
    repository = Repository.parse(image.name)
    async with RegistryClient(credentials) as client:
        manifest = await client.manifest(repository, f"sha256:{image.sha256}")
        if manifest is None:
            raise ScanError(f"image {image} is not in its registry: build it there first")
        installed = await packages_of_image(client, repository, manifest, cache, progress=progress)
        if settings.attach_bill:
            digest = await attach_bill_of_materials(client, repository, manifest, installed)
            progress(f"contents: {len(installed.packages)} packages, bill of materials attached as {digest[:19]}")
        return installed


def _report_decision(image: ImageReference, decision: ScanDecision, progress: Callable[[str], None]) -> None:
    """Report the vulnerabilities, what was not scanned, and the decision as progress lines."""
    for line in vulnerability_table((*decision.blocking, *decision.passing)):
        progress(f"scan: {line}")
    for name, why in sorted(decision.not_scanned.items()):
        progress(f"scan: not scanned: {name} ({why})")
    progress(f"scan: {image}: {decision.summary()}")


def _blocked_error(image: ImageReference, decision: ScanDecision, policy: ScanPolicy) -> ScanError:
    """Return the `ScanError` that lists the vulnerabilities and unscanned parts that block an image."""
    lines = [f"image {image} must not be rolled out ({decision.summary()})"]
    if decision.blocking:
        lines.append(f"Vulnerabilities above {policy.max_severity}:")
        lines += vulnerability_table(decision.blocking)
    lines += [f"Not scanned: {name} ({why})" for name, why in sorted(decision.not_scanned.items())[:MAX_TABLE_ROWS]]
    lines.append("Install newer versions, or accept by name what was reviewed")
    return ScanError("\n".join(lines))


def _new_scan_folder(folder: Path) -> Path:
    """Create an empty scan folder and delete those of killed scans. The caller must hold the cache's lock."""
    for leftover in folder.glob("run-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="run-", dir=folder))
