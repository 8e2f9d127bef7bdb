"""Models for the tests of a cluster, good ones and bad ones, as projects and as images in a registry.

| model     | what callers see                                                                         |
|-----------|------------------------------------------------------------------------------------------|
| `steady`  | `{"version": "steady", "data": …}` after 5 ms                                             |
| `steady2` | the same, as another version                                                             |
| `failing` | 30 % of the answers are 500                                                              |
| `slow`    | every answer takes 60 ms                                                                 |
| `late`    | the version is ready 3 s after its start, at the earliest                                |
| `crash`   | the version never becomes ready: `init()` raises                                         |
| `hangs`   | the version never becomes ready: `init()` takes 10 minutes                               |
| `dies`    | a replica's process exits, without a word, at its 51st request, each time it is started  |
| `skewed`  | the label of every answer is `a`; of `steady` each of `a`, `b` and `c` is a third        |

`python -m tests.cluster.scoring_images --registry 127.0.0.1:PORT` builds them all and prints their references.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controlled_rollout.image import build_container_image
from controlled_rollout.image.scoring_runtime import build_files, runtime_folder, runtime_requirements
from tests.registry.real_registry import serving

from .lab.cache import cache_folder, digest_of, find_or_make, locked
from .lab.images import base_image

__all__ = ["MODELS", "build", "build_all", "project"]

FOLDER = Path(__file__).with_name("models")
HARMLESS = {"delay_ms": 0, "failing_share": 0.0, "init_error": "", "init_s": 0, "dies_after": 0, "label": ""}
MODELS = ("steady", "steady2", "failing", "slow", "late", "crash", "dies", "hangs", "skewed")


def project(model: str, into: Path, **changes: Any) -> Path:
    """Write the project folder of a model to `into`, and return it.

    Args:
        model: One of `MODELS`.
        into: A folder that is made.
        **changes: Behaviour other than the model's own: `version`, `delay_ms`, `failing_share`, `init_error`,
            `init_s` (how long `init()` takes), `dies_after` (requests of one process), `label` (of all answers).
    """
    behaviour = {"version": model, **HARMLESS, **json.loads((FOLDER / f"{model}.json").read_text())}
    if unknown := set(changes) - set(behaviour):
        raise ValueError(f"{', '.join(sorted(unknown))} is not known: known are {', '.join(behaviour)}")
    into.mkdir(parents=True)
    for name in ("score.py", "environment.yml"):
        shutil.copy(FOLDER / name, into)
    (into / "behaviour.json").write_text(json.dumps({**behaviour, **changes}, sort_keys=True))
    return into


def build(
    registry: str,
    model: str,
    *,
    shared: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
    **changes: Any,
) -> str:
    """Build a model's image in a registry on this machine, or find it, and return its reference `name@sha256:…`.

    Args:
        registry: Its host and port.
        model: One of `MODELS`.
        shared: Where the environment's image may be already, as `host:port/prefix`.
        progress: Called with a line for each step.
        **changes: As for `project`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = project(model, Path(temporary) / model, **changes)
        reference = asyncio.run(
            build_container_image(
                folder,
                name=str(changes.get("version", model)),
                registry=f"{registry}/models",
                shared_registry=shared,
                cache=cache_folder() / "images",
                base_image=base_image(registry),
                progress=progress,
            )
        )
    return str(reference)


def build_all(
    registry: str, models: Sequence[str] = MODELS, *, progress: Callable[[str], None] = lambda line: None
) -> dict[str, str]:
    """Build the images of models in a registry on this machine, or find them.

    Args:
        registry: Its host and port.
        models: Which.
        progress: Called with a line for each step.

    Returns:
        The reference `name@sha256:…` of each.
    """
    with _kept_environment(progress) as shared:
        return {model: build(registry, model, shared=shared, progress=progress) for model in models}


@contextmanager
def _kept_environment(progress: Callable[[str], None]) -> Iterator[str | None]:
    """Serve the models' environment as it was built once on this machine: a lab begins with an empty registry.

    Where it turns out to be another environment than is asked for, that one is built in the lab's registry as well.
    """
    if shutil.which("docker-registry") is None:
        yield None
        return

    def make(folder: Path) -> None:
        with serving(folder) as registry:
            build(registry.address, "steady", progress=progress)

    files = [FOLDER / "environment.yml", *sorted(runtime_folder().rglob("*.py")), *build_files().values()]
    contents = [file.read_text() for file in (*files, runtime_requirements())]
    folder = find_or_make("registries", "environment", digest_of(*contents), make)
    with locked("registries"), serving(folder, read_only=True) as kept:
        yield f"{kept.address}/models"


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.cluster.scoring_images", description=__doc__.splitlines()[0])
    parser.add_argument("--registry", required=True, metavar="HOST:PORT")
    options = parser.parse_args()
    references = build_all(options.registry, progress=lambda line: print(line, file=sys.stderr))  # noqa: T201
    print(json.dumps(references, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
