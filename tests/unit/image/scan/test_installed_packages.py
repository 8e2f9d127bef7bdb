"""Packages read from layers, and from several layers on top of each other."""

import gzip
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image import ImageReference
from controlled_rollout.image.cancellable_thread import never_cancelled
from controlled_rollout.image.scan import installed_packages, layer_archive
from controlled_rollout.image.scan.installed_packages import (
    InstalledPackages,
    merge_layers,
    read_layer,
)

SITE = "opt/environment/lib/python3.11/site-packages"
IMAGE = ImageReference("registry.example/models/digits", "a" * 64)
DPKG = """Package: bash
Status: install ok installed
Architecture: amd64
Source: bash (5.2.15-2)
Version: 5.2.15-2+b13
Description: GNU Bourne Again SHell
 Package: not-a-package

Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl
Version: 3.0.11-1

Package: removed
Status: deinstall ok config-files
Version: 1.0
"""
APK = "C:Q1\nP:musl\nV:1.2.4-r2\nA:x86_64\no:musl\n\nP:libcrypto3\nV:3.1.4-r0\nA:x86_64\no:openssl\nF:lib\n"
DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n# a comment\n'


def layer(files: dict[str, str], *, compressed: bool = False) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz" if compressed else "w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    stream.seek(0)
    return stream


def python_package(name: str, version: str, site: str = SITE) -> dict[str, str]:
    headers = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: x\n\nName: in-the-text\n"
    return {f"{site}/{name}-{version}.dist-info/METADATA": headers}


def contents(*layers: dict[str, str]) -> InstalledPackages:
    return merge_layers(read_layer(layer(files), 10_000, check_cancelled=never_cancelled) for files in layers)


def kinds_names_versions(installed: InstalledPackages) -> list[tuple[str, str, str]]:
    return [(package.kind, package.name, package.version) for package in installed.packages]


@pytest.mark.parametrize("prefix", ["", "./", "/"])
@pytest.mark.parametrize("compressed", [False, True])
def test_packages_of_debian_and_of_python_are_read(prefix: str, compressed: bool) -> None:
    files = {"var/lib/dpkg/status": DPKG, "usr/lib/os-release": DEBIAN, **python_package("Flask.Login", "0.6.3")}
    stream = layer({prefix + path: text for path, text in files.items()}, compressed=compressed)

    installed = merge_layers([read_layer(stream, 10_000, check_cancelled=never_cancelled)])

    assert kinds_names_versions(installed) == [
        ("deb", "bash", "5.2.15-2+b13"),
        ("deb", "libssl3", "3.0.11-1"),
        ("pypi", "flask-login", "0.6.3"),
    ]
    assert (installed.distribution, installed.distribution_version) == ("debian", "12")
    assert installed.packages[1].source == "openssl"


def test_packages_of_alpine_are_read() -> None:
    installed = contents({"lib/apk/db/installed": APK})

    assert kinds_names_versions(installed) == [("apk", "libcrypto3", "3.1.4-r0"), ("apk", "musl", "1.2.4-r2")]


def test_packages_of_an_image_without_a_package_manager_are_read() -> None:
    assert kinds_names_versions(contents({"var/lib/dpkg/status.d/bash": DPKG.partition("\n\n")[0]})) == [
        ("deb", "bash", "5.2.15-2+b13")
    ]


def test_a_list_in_an_unknown_format_is_named() -> None:
    assert contents({"var/lib/rpm/rpmdb.sqlite": "x"}).unread == ("var/lib/rpm/rpmdb.sqlite",)


def test_a_layer_replaces_and_deletes_packages_of_lower_layers() -> None:
    base = {"var/lib/dpkg/status": DPKG, **python_package("flask", "2.0"), **python_package("gone", "1.0")}
    upgrade = {
        f"{SITE}/.wh.flask-2.0.dist-info": "",
        f"{SITE}/.wh.gone-1.0.dist-info": "",
        **python_package("flask", "3.0"),
    }

    installed = contents(base, upgrade, {"var/lib/dpkg/status": DPKG.partition("\n\n")[0]})

    assert kinds_names_versions(installed) == [("deb", "bash", "5.2.15-2+b13"), ("pypi", "flask", "3.0")]


def test_a_folder_that_is_emptied_keeps_only_what_its_own_layer_has() -> None:
    emptied = {"opt/environment/.wh..wh..opq": "", **python_package("new", "1.0")}

    assert kinds_names_versions(contents(python_package("old", "1.0"), emptied)) == [("pypi", "new", "1.0")]


def test_requirements_are_the_python_packages_below_a_folder() -> None:
    beside = python_package("pip", "23.0", "usr/lib/python3/dist-packages")

    assert contents({**python_package("flask", "3.0"), **beside}).requirements() == ["flask==3.0"]


def test_metadata_without_name_or_version_is_no_package() -> None:
    odd = {f"{SITE}/x.dist-info/METADATA": "Name: x\n", f"{SITE}/METADATA": "Name: y\nVersion: 1\n", "METADATA": "z"}

    assert contents(odd).packages == ()


def read(content: bytes) -> InstalledPackages:
    return merge_layers([read_layer(io.BytesIO(content), len(content), check_cancelled=never_cancelled)])


def zeros(size: int, *, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a compressed archive with one entry of so many zeros: a thousandth of its size."""
    entry = tarfile.TarInfo("opt/zeros")
    entry.size, entry.type = size, kind
    return gzip.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(size) + bytes(1024), compresslevel=1)


def test_a_layer_that_unpacks_to_more_than_its_size_allows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(zeros(20_000_000)).packages == ()
    monkeypatch.setattr(layer_archive, "ALWAYS_ALLOWED_BYTES", 1_000_000)

    with pytest.raises(ImageError, match=r"it unpacks to more than .* bytes, which is too much for its size"):
        read(zeros(20_000_000))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_the_headers_of_an_entry_are_never_unpacked_into_memory_whole(kind: bytes) -> None:
    with pytest.raises(ImageError, match="the headers of an entry have more than 4,194,304 bytes"):
        read(zeros(50_000_000, kind=kind))


def sparse(pax: dict[str, str], content: bytes = b"") -> bytes:
    entry = tarfile.TarInfo("opt/sparse")
    entry.size, entry.pax_headers = len(content), pax
    return entry.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512 + 1024)


@pytest.mark.parametrize(
    "content",
    [
        sparse({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9" * 18}, b"0\n".ljust(512)),
        sparse({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 18}),
        sparse({"size": "-512"}),
        sparse({"size": "9" * 18}),
        sparse({"path": "a/" * 3000}),
        sparse({"GNU.sparse.map": "x"}),
        b"\x28\xb5\x2f\xfd" + bytes(2000),
        gzip.compress(b"x" * 2000)[:20],
    ],
    ids=["sparse 1.0", "sparse 0.1", "size below 0", "huge size", "long path", "no sparse map", "zstd", "cut"],
)
def test_an_archive_that_no_program_makes_of_an_image_is_refused(content: bytes) -> None:
    with pytest.raises(ImageError):
        read(content)


def test_a_layer_that_deletes_more_than_an_image_can_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_packages, "MAX_NOTED_PATHS", 2)

    with pytest.raises(ImageError, match="it deletes more than 2 files"):
        contents({f"{SITE}/.wh.{name}": "" for name in "abc"})


@pytest.mark.parametrize("name", [f"opt/x/../{SITE.removeprefix('opt/')}", f"../{SITE}", f"//./{SITE}"])
def test_a_package_cannot_be_hidden_by_how_its_path_is_written(name: str) -> None:
    assert contents(python_package("flask", "3.0", name)).requirements() == ["flask==3.0"]


def test_a_deleted_file_without_a_name_hides_nothing() -> None:
    assert kinds_names_versions(contents(python_package("flask", "3.0"), {".wh.": "", "opt/.wh.": ""})) == [
        ("pypi", "flask", "3.0")
    ]


@given(st.binary(max_size=2000))
def test_bytes_that_are_no_archive_are_refused_or_have_no_packages(content: bytes) -> None:
    try:
        installed = read(content)
    except ImageError:
        return
    assert installed.packages == ()


@given(st.text(max_size=300), st.sampled_from(["var/lib/dpkg/status", "lib/apk/db/installed", "etc/os-release"]))
def test_any_text_of_a_list_can_be_parsed(text: str, path: str) -> None:
    text = text.encode("utf-8", "replace").decode()

    assert all(package.name and package.version for package in contents({path: text}).packages)


FLASK = st.sampled_from(["flask", "numpy", "attrs"])


@given(st.lists(st.lists(st.tuples(FLASK, st.booleans()), max_size=4), max_size=5))
def test_layers_give_what_unpacking_them_one_after_the_other_gives(layers: list[list[tuple[str, bool]]]) -> None:
    unpacked: set[str] = set()
    described = []
    for entries in layers:
        files: dict[str, str] = {}
        added = {name for name, is_there in entries if is_there}
        for name in {name for name, is_there in entries if not is_there} - added:
            files[f"{SITE}/.wh.{name}-1.0.dist-info"] = ""
            unpacked.discard(name)
        for name in added:
            files |= python_package(name, "1.0")
        unpacked |= added
        described.append(files)

    assert {package.name for package in contents(*described).packages} == unpacked
