"""What has to be installed, compiled and made once before a lab can come up on a machine."""

import sys
import time
from collections.abc import Callable

from . import packages
from .builder_image import builder_is_made, make_builder
from .images import debian_is_made, make_debian
from .programs import CLUSTER, compile_component, is_compiled

__all__ = ["compile_program", "install", "make_base_image", "prepare", "step", "why_not_prepared"]

# Minutes on two processors, for the person who waits.
MINUTES = {"kubernetes": 5, "helm": 1, "coredns": 1, "collector": 1, "envoy-gateway": 3, "grype": 4}


def why_not_prepared() -> str | None:
    """Return why a lab cannot come up on this machine now; None where it can."""
    if why_not := packages.why_not_here(packages.CLUSTER):
        return why_not
    missing = [*packages.missing(packages.CLUSTER), *(name for name in CLUSTER if not is_compiled(name))]
    if not debian_is_made():
        missing.append("the Debian image")
    if not builder_is_made():
        missing.append("the image with buildah")
    return f"{', '.join(missing)} missing: run `make lab`" if missing else None


def prepare() -> None:
    """Install, compile and make everything that a lab needs. Prints a line for each step that has something to do.

    Raises:
        LabError: A step failed; the message has its last lines.
    """
    install(packages.CLUSTER)
    for name in CLUSTER:
        compile_program(name)
    make_base_image()
    step("making an image with buildah", builder_is_made(), make_builder)


def install(table: dict[str, str]) -> None:
    """Install the missing Debian packages of a table."""
    names = packages.missing(table)
    step(f"installing the Debian packages {', '.join(names)}", not names, lambda: packages.install(names))


def make_base_image() -> None:
    """Make the layer of the base image, unless it is in the cache."""
    step("making a Debian image", debian_is_made(), make_debian)


def compile_program(name: str) -> None:
    """Compile a component, unless it is in the cache."""
    minutes = f" (about {MINUTES[name]} min on two processors)" if name in MINUTES else ""
    step(f"compiling {name}{minutes}", is_compiled(name), lambda: compile_component(name))


def step(what: str, is_done: bool, do: Callable[[], object]) -> None:
    """Do one step, and print when it begins and how long it took; nothing where it is done already."""
    if is_done:
        return
    began = time.monotonic()
    sys.stderr.write(f"lab: {what}\n")
    do()
    sys.stderr.write(f"lab: done in {time.monotonic() - began:.0f} s\n")
