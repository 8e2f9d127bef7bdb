"""The bill of materials of an image: CycloneDX, the same bytes for the same image."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from controlled_rollout.image import ImageReference
from controlled_rollout.image.scan.bill_of_materials import bill_of_materials
from controlled_rollout.image.scan.installed_packages import (
    InstalledPackage,
    InstalledPackages,
)

SITE = "opt/environment/lib/python3.11/site-packages"
IMAGE = ImageReference("registry.example/models/digits", "a" * 64)
PACKAGES = (
    InstalledPackage("deb", "libssl3", "3.0.11-1", "amd64", "openssl", "/var/lib/dpkg/status"),
    InstalledPackage("pypi", "flask", "3.0", location=f"/{SITE}"),
    InstalledPackage("pypi", "flask", "3.0", location="/usr/lib/python3/dist-packages"),
)


def test_a_bill_of_materials_names_every_package_by_its_url() -> None:
    written = bill_of_materials(IMAGE, InstalledPackages(PACKAGES, "debian", "12", ("var/lib/rpm/Packages",)))
    bill = json.loads(written)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(written.decode()) is None
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["name"] == IMAGE.name
    assert bill["metadata"]["component"]["version"] == f"sha256:{IMAGE.sha256}"
    assert sorted(component.get("purl", "") for component in bill["components"]) == [
        "",
        "pkg:deb/debian/libssl3@3.0.11-1?arch=amd64&distro=debian-12&upstream=openssl",
        "pkg:pypi/flask@3.0",
        "pkg:pypi/flask@3.0",
    ]
    assert bill["metadata"]["properties"] == [{"name": "controlled-rollout:not-read", "value": "var/lib/rpm/Packages"}]


def test_a_bill_of_materials_is_the_same_whenever_it_is_written() -> None:
    first = bill_of_materials(IMAGE, InstalledPackages(PACKAGES, "debian", "12"))

    assert bill_of_materials(IMAGE, InstalledPackages(PACKAGES[::-1], "debian", "12")) == first
    assert bill_of_materials(ImageReference(IMAGE.name, "b" * 64), InstalledPackages(PACKAGES, "debian", "12")) != first


def test_bill_of_materials_without_packages_is_valid() -> None:
    assert json.loads(bill_of_materials(IMAGE, InstalledPackages(())))["metadata"]["component"]["type"] == "container"
