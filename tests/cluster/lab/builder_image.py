"""An image with buildah in it, of Debian's packages: what pods that build images run."""

import platform
from pathlib import Path

from .cache import digest_of, find, find_or_make
from .commands import run
from .errors import LabError
from .images import EXCLUDED, PATH, SUITE, Image, Layer, bootstrap_options, push, seal

__all__ = ["BUILDER", "builder_image", "builder_is_made", "make_builder"]

BUILDER = "lab/buildah:1"
PACKAGES = ("buildah", "ca-certificates", "uidmap", "libcap2-bin")
# As in quay.io/buildah/stable: an ordinary user with subordinate ids, and newuidmap and newgidmap with just the file
# capabilities they need. As Debian installs them, they are setuid root.
USER = """
echo build:x:1000:1000::/home/build:/bin/sh >>"$1/etc/passwd"
echo build:x:1000: >>"$1/etc/group"
install -d -o 1000 -g 1000 "$1/home/build"
printf 'build:1:999\\nbuild:1001:64535\\n' | tee "$1/etc/subuid" >"$1/etc/subgid"
chmod u-s "$1/usr/bin/newuidmap" "$1/usr/bin/newgidmap"
chroot "$1" setcap cap_setuid+ep /usr/bin/newuidmap
chroot "$1" setcap cap_setgid+ep /usr/bin/newgidmap
"""


def builder_image(registry: str) -> str:
    """Push the image and return its reference by digest.

    Args:
        registry: Host and port of a registry that takes plain HTTP.

    Raises:
        LabError: The image has not been made by `make lab`, or the registry refuses it.
    """
    folder = find("layers", "buildah", _digest())
    if folder is None:
        raise LabError("the image with buildah was asked for, and it has not been made: run `make lab` first")
    config = {"Env": [PATH], "Cmd": ["buildah"], "User": "1000:1000"}
    return push(Image(BUILDER, (Layer.read(folder),), config), registry)


def builder_is_made() -> bool:
    """Whether the image's layer is in the cache."""
    return find("layers", "buildah", _digest()) is not None


def make_builder() -> None:
    """Make the image's layer, unless it is in the cache.

    Raises:
        LabError: mmdebstrap failed; the message has its last lines.
    """
    find_or_make("layers", "buildah", _digest(), _bootstrap)


def _digest() -> str:
    return digest_of(SUITE, *PACKAGES, USER, *EXCLUDED, platform.machine())


def _bootstrap(folder: Path) -> None:
    run(["mmdebstrap", *bootstrap_options(PACKAGES), f"--customize-hook={USER}", SUITE, folder / "layer.tar"])
    seal(folder)
