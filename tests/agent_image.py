"""The image of the agent for the lab: its packages as its Dockerfile installs them, and the code as it is now."""

import json
import tarfile
import tempfile
from pathlib import Path

from tests.cluster.lab.cache import digest_of, find_or_make
from tests.cluster.lab.images import Image, Layer, base_image, on_base, push, seal
from tests.collector_image import build_image, call, own_buildah
from tests.registry.real_registry import serving

__all__ = ["agent_image"]

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "docker" / "agent"
CODE = REPOSITORY / "operators" / "controlled_rollout"
NAME = "localhost/agent"


def agent_image(registry: str) -> str:
    """Push the image to a registry on this machine, and return its reference `name@sha256:…`; build it first if needed.

    Args:
        registry: Its host and port; it takes plain HTTP.
    """
    built = digest_of(*((FOLDER / name).read_text() for name in ("Dockerfile", "lock.txt")))
    environment = find_or_make("layers", "agent-environment", built, _make_environment)
    config = json.loads((environment / "config.json").read_text())
    sources = [path for path in sorted(CODE.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    code = digest_of(*(f"{path.relative_to(CODE)}\0{path.read_text()}" for path in sources))
    layers = (
        *on_base("lab/agent:1", Layer.read(environment), config).layers,
        Layer.read(find_or_make("layers", "agent-code", code, lambda folder: _make_code(folder, sources))),
    )
    return push(Image("lab/agent:1", layers, config), registry)


def _make_environment(made: Path) -> None:
    """Build the image by its Dockerfile; keep its packages, and its configuration."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        serving(Path(temporary) / "registry") as registry,
        own_buildah(Path(temporary)) as buildah,
    ):
        base = base_image(registry.address)
        dockerfile = FOLDER / "Dockerfile"
        config = build_image(buildah, Path(temporary), base, dockerfile=dockerfile, context=REPOSITORY, name=NAME)
        container = call(*buildah, "from", "--pull-never", NAME).strip()
        root = call(*buildah, "mount", container).strip()
        # The image as a whole is what is built: its own code runs, with its packages, and needs nothing else.
        call(*buildah, "run", "--isolation", "chroot", container, "--", *config["Entrypoint"], "--help")
        owner = ("--numeric-owner", "--owner=0", "--group=0")
        call("tar", "--create", *owner, "--file", str(made / "layer.tar"), "--directory", root, "opt/environment")
        call(*buildah, "umount", container)
    (made / "config.json").write_text(json.dumps(config))
    seal(made)


def _make_code(made: Path, sources: list[Path]) -> None:
    """Keep the code as it is now."""
    with tarfile.open(made / "layer.tar", "w") as tar:
        for path in sources:
            entry = tar.gettarinfo(path, f"opt/agent/controlled_rollout/{path.relative_to(CODE)}")
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o644
            with path.open("rb") as content:
                tar.addfile(entry, content)
    seal(made)
