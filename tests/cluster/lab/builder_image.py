"""An image with buildah in it, of Debian's packages: what pods that build images run."""

import platform
import sys
from pathlib import Path

from .cache import digest_of, made_once
from .commands import run
from .images import PATH, SUITE, UNREAD, Image, Layer, _seal, push

__all__ = ["BUILDER", "builder_image"]

BUILDER = "lab/buildah:1"
PACKAGES = ("buildah", "ca-certificates", "uidmap", "libcap2-bin")
# As in quay.io/buildah/stable: an ordinary user with sub-ids, and the two programs that hand them out with no more
# rights than that takes. As Debian has them, they would have to be root of the node.
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
        LabError: The image cannot be made, or the registry refuses it.
    """
    return push(Image(BUILDER, (_layer(),), {"Env": [PATH], "Cmd": ["buildah"], "User": "1000:1000"}), registry)


def _layer() -> Layer:
    key = digest_of(SUITE, *PACKAGES, USER, *UNREAD, platform.machine())
    return Layer.made(made_once("layers", "buildah", key, _bootstrap))


def _bootstrap(to: Path) -> None:
    sys.stderr.write(f"making a Debian {SUITE} with buildah\n")
    without = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in UNREAD]
    packages = f"--include={','.join(PACKAGES)}"
    options = ["--variant=minbase", packages, "--aptopt=Acquire::Languages none", f"--customize-hook={USER}", *without]
    run(["mmdebstrap", *options, SUITE, to / "layer.tar"])
    _seal(to)
