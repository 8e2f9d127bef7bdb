"""The bill of materials of an image: CycloneDX 1.6, the same bytes for the same image."""

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.manifest import Manifest
from controlled_rollout.image.oci.referrers import attach
from controlled_rollout.image.oci.registry_client import Registry, Repository
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.scan.installed_packages import Contents, Installed

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from packageurl import PackageURL

__all__ = ["CYCLONEDX", "attach_bill_of_materials", "bill_of_materials"]

CYCLONEDX: Final = "application/vnd.cyclonedx+json"
# The names that a bill of an image has for all time are made in this space.
SPACE: Final = uuid.UUID("6f9d7a54-8f0e-5d0b-9d0e-2f7f3c1b8a55")
# When it is written down says nothing about the image, and would make it another one each time.
ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)


def bill_of_materials(image: ImageReference, contents: Contents) -> bytes:
    """Return the bill of materials of an image as CycloneDX JSON.

    Components are sorted, its serial number is made of the image's digest, and its time is always the same.

    Args:
        image: Which.
        contents: What is installed in it.

    Raises:
        ImageError: The library that writes CycloneDX is not installed.
    """
    try:
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError:
        raise ImageError(
            "cyclonedx-python-lib is needed to write an image's bill of materials and is not installed: "
            "pip install 'airflow-provider-controlled-rollout[scan]'"
        ) from None
    subject = Component(
        name=image.name, version=f"sha256:{image.sha256}", type=ComponentType.CONTAINER, bom_ref=str(image)
    )
    components = [_component(package, contents) for package in contents.packages]
    if contents.distribution:
        components.append(
            Component(
                name=contents.distribution,
                version=contents.distribution_version or None,
                type=ComponentType.OPERATING_SYSTEM,
                bom_ref=f"os:{contents.distribution}",
            )
        )
    unread = [Property(name="controlled-rollout:not-read", value=path) for path in contents.unread]
    bill = Bom(
        components=components,
        serial_number=uuid.uuid5(SPACE, image.sha256),
        metadata=BomMetaData(component=subject, timestamp=ALWAYS, properties=unread),
    )
    bill.register_dependency(subject, components)
    return JsonV1Dot6(bill).output_as_string(indent=1).encode()


async def attach_bill_of_materials(
    client: Registry, repository: Repository, manifest: Manifest, contents: Contents
) -> str:
    """Attach an image's bill of materials to it in its registry, unless it is there; return its digest `sha256:…`.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: The registry refuses, or the library that writes CycloneDX is not installed.
    """
    image = ImageReference(str(repository), manifest.digest.removeprefix("sha256:"))
    bill = bill_of_materials(image, contents)
    return await attach(client, repository, manifest, CYCLONEDX, bill, "bom.cdx.json")


def _component(package: Installed, contents: Contents) -> "Component":
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=_package_url(package, contents),
        # Two of the same name and version may lie at different places.
        bom_ref=f"{package.kind}:{package.place}:{package.name}@{package.version}:{package.architecture}",
        properties=[Property(name="controlled-rollout:place", value=package.place)],
    )


def _package_url(package: Installed, contents: Contents) -> "PackageURL":
    from packageurl import PackageURL

    if package.kind == "pypi":
        return PackageURL("pypi", None, package.name, package.version)
    distribution = "-".join(filter(None, (contents.distribution, contents.distribution_version)))
    qualifiers = {"arch": package.architecture, "distro": distribution, "upstream": package.source}
    # What has no os-release is Debian's or Alpine's by the kind of its packages.
    namespace = contents.distribution or {"deb": "debian", "apk": "alpine"}[package.kind]
    return PackageURL(
        package.kind,
        namespace,
        package.name,
        package.version,
        {key: value for key, value in qualifiers.items() if value},
    )
