"""The bill of materials of an image: CycloneDX 1.6, the same bytes for the same image."""

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.manifest import Manifest
from controlled_rollout.image.oci.referrers import attach_document
from controlled_rollout.image.oci.registry_client import RegistryClient, Repository
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.scan.installed_packages import InstalledPackage, InstalledPackages

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

__all__ = ["CYCLONEDX", "attach_bill_of_materials", "bill_of_materials"]

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
# The namespace of the bills' serial numbers (UUID version 5).
NAMESPACE: Final = uuid.UUID("6f9d7a54-8f0e-5d0b-9d0e-2f7f3c1b8a55")
# A real time would give the same image another bill each time.
TIMESTAMP: Final = datetime(1970, 1, 1, tzinfo=UTC)


def bill_of_materials(image: ImageReference, installed: InstalledPackages) -> bytes:
    """Return the CycloneDX bill of materials (JSON) of an image with these installed packages.

    Components are sorted, the serial number is derived from the image's digest, and the time is constant.

    Args:
        image: The image.
        installed: The packages in it.

    Raises:
        ImageError: The library that writes CycloneDX is not installed.
    """
    try:
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise ImageError(
            "cyclonedx-python-lib is needed to write an image's bill of materials and is not installed: "
            "pip install 'airflow-provider-controlled-rollout[scan]'"
        ) from error
    subject = Component(
        name=image.name, version=f"sha256:{image.sha256}", type=ComponentType.CONTAINER, bom_ref=str(image)
    )
    components = [_component(package, installed) for package in installed.packages]
    if installed.distribution:
        components.append(
            Component(
                name=installed.distribution,
                version=installed.distribution_version or None,
                type=ComponentType.OPERATING_SYSTEM,
                bom_ref=f"os:{installed.distribution}",
            )
        )
    unread = [Property(name="controlled-rollout:not-read", value=path) for path in installed.unread]
    bill = Bom(
        components=components,
        serial_number=uuid.uuid5(NAMESPACE, image.sha256),
        metadata=BomMetaData(component=subject, timestamp=TIMESTAMP, properties=unread),
    )
    bill.register_dependency(subject, components)
    return JsonV1Dot6(bill).output_as_string(indent=1).encode()


async def attach_bill_of_materials(
    client: RegistryClient, repository: Repository, manifest: Manifest, installed: InstalledPackages
) -> str:
    """Attach the bill of materials to an image in its registry, unless it is there; return its digest `sha256:…`.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: The registry refuses, or the library that writes CycloneDX is not installed.
    """
    image = ImageReference(str(repository), manifest.digest.removeprefix("sha256:"))
    bill = bill_of_materials(image, installed)
    return await attach_document(client, repository, manifest, CYCLONEDX, bill, "bom.cdx.json")


def _component(package: InstalledPackage, installed: InstalledPackages) -> "Component":
    """Convert an installed package to a CycloneDX component."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=_package_url(package, installed),
        # A package may be installed at two locations.
        bom_ref=f"{package.kind}:{package.location}:{package.name}@{package.version}:{package.architecture}",
        properties=[Property(name="controlled-rollout:place", value=package.location)],
    )


def _package_url(package: InstalledPackage, installed: InstalledPackages) -> "PackageURL":
    """Return the package URL (purl) of an installed package, such as `pkg:pypi/numpy@2.1.0`."""
    from packageurl import PackageURL

    if package.kind == "pypi":
        return PackageURL("pypi", None, package.name, package.version)
    distribution = "-".join(filter(None, (installed.distribution, installed.distribution_version)))
    qualifiers = {"arch": package.architecture, "distro": distribution, "upstream": package.source}
    # Without an os-release file, the kind of its packages tells Debian from Alpine.
    namespace = installed.distribution or {"deb": "debian", "apk": "alpine"}[package.kind]
    return PackageURL(
        package.kind,
        namespace,
        package.name,
        package.version,
        {key: value for key, value in qualifiers.items() if value},
    )
