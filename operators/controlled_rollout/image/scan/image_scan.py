"""The scan gate: everything that was asked looks at an image, and the image passes or does not."""

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
from controlled_rollout.image.oci.registry_client import Credentials, Registry, Repository
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.scan.bill_of_materials import attach_bill_of_materials
from controlled_rollout.image.scan.findings import TOLD_FINDINGS, Decision, Policy, check_age, decide, table
from controlled_rollout.image.scan.installed_packages import ENVIRONMENT, Contents, contents_of, contents_of_folder
from controlled_rollout.image.scan.scanners import Bench, Subject, audit, scanner
from controlled_rollout.workspace import Workspace

__all__ = ["ScanSettings", "scan"]

WORKSHOP: Final = "scans"
LOCAL: Final = "local/"


@dataclass(frozen=True)
class ScanSettings:
    """How an image is looked at.

    Attributes:
        scanner: `trivy` or `grype`; None for the workspace's.
        policy: What may pass.
        attach_bill: Whether an image in a registry gets its bill of materials attached, whatever is found: it needs a
            user who may push there.
        timeout: How long each program may take.
    """

    scanner: str | None = None
    policy: Policy = field(default_factory=Policy)
    attach_bill: bool = True
    timeout: timedelta = timedelta(minutes=10)


async def scan(
    workspace: Workspace,
    reference: str | ImageReference,
    settings: ScanSettings | None = None,
    *,
    credentials: Mapping[str, Credentials] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Decision:
    """Look at an image before it is rolled out: with a scanner, and with pip-audit at its Python environment.

    Args:
        workspace: Says which scanner, which vulnerability service, and where the image is.
        reference: The image by its digest; `local/…` for one of the workspace's cache.
        settings: How to look, and what may pass.
        credentials: A user for each registry that asks for one, by host.
        progress: Called with a line for each step, for each line of the programs, and for each finding.

    Returns:
        The decision, which passes.

    Raises:
        ScanUnavailableError: A scanner, its database or a service is missing, too old or away: nobody has looked.
        ScanError: Something that was found stops the image; the message lists it.
        ImageError: The image is not there or cannot be read.
    """
    settings = settings or ScanSettings()
    image = ImageReference.parse(reference) if isinstance(reference, str) else reference
    program = scanner(settings.scanner or workspace.scanner)
    program.find()
    cache = Cache(workspace.cache_folder)
    if image.name.startswith(LOCAL):
        environment = load_local_image(image, workspace.cache_folder).python.parent.parent.resolve()
        subject: Subject = environment
        contents, root = contents_of_folder(environment), PurePosixPath(environment)
    else:
        subject, root = image, ENVIRONMENT
        contents = await _contents(image, cache, credentials or {}, settings, progress)
    requirements = contents.environment(root)
    if not requirements:
        raise ScanUnavailableError(f"image {image} has no Python package in {root}: it was not built by this program")
    waiting = "scan: this machine is at another scan, waiting"
    async with cache.workshop(WORKSHOP, waiting=lambda: progress(waiting)) as (folder, lock):
        bench = Bench(_fresh(folder), folder / "pip-audit", lock, settings.timeout, credentials or {}, progress)
        try:
            reports = [
                await program.scan(subject, bench),
                await audit(requirements, bench, osv_url=workspace.osv_url),
            ]
        finally:
            shutil.rmtree(bench.folder, ignore_errors=True)
    check_age(program.name, reports[0].database_built, datetime.now(UTC), settings.policy.max_database_age)
    return _judged(image, decide(reports, settings.policy), settings.policy, progress)


async def _contents(
    image: ImageReference,
    cache: Cache,
    credentials: Mapping[str, Credentials],
    settings: ScanSettings,
    progress: Callable[[str], None],
) -> Contents:
    """Return what is installed in an image of a registry, which gets its bill of materials attached meanwhile."""
    repository = Repository.parse(image.name)
    async with Registry(credentials) as client:
        manifest = await client.manifest(repository, f"sha256:{image.sha256}")
        if manifest is None:
            raise ScanError(f"image {image} is not in its registry: build it there first")
        contents = await contents_of(client, repository, manifest, cache, progress=progress)
        if settings.attach_bill:
            bill = await attach_bill_of_materials(client, repository, manifest, contents)
            progress(f"contents: {len(contents.packages)} packages, bill of materials attached as {bill[:19]}")
        return contents


def _judged(image: ImageReference, decision: Decision, policy: Policy, progress: Callable[[str], None]) -> Decision:
    """Return a decision that passes.

    Raises:
        ScanError: It does not.
    """
    for line in table((*decision.stopping, *decision.passing)):
        progress(f"scan: {line}")
    for name, why in sorted(decision.unseen.items()):
        progress(f"scan: not looked at: {name} ({why})")
    progress(f"scan: {image}: {decision.summary()}")
    if decision.passes:
        return decision
    lines = [f"image {image} must not be rolled out ({decision.summary()})"]
    if decision.stopping:
        lines.append(f"Findings above {policy.max_severity}:")
        lines += table(decision.stopping)
    lines += [f"Not looked at: {name} ({why})" for name, why in sorted(decision.unseen.items())[:TOLD_FINDINGS]]
    lines.append("Fix them by newer versions, or accept what was judged by its name")
    raise ScanError("\n".join(lines))


def _fresh(folder: Path) -> Path:
    """Return a new empty folder; what a killed scan left is removed, since nobody else is at work here."""
    for leftover in folder.glob("run-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix="run-", dir=folder))
