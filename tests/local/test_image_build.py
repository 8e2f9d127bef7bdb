"""Builds of local images with uv: virtual environments, killed processes, full disks."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image import Environment, ImageReference, ModelSource, build_local_image, load_local_image
from controlled_rollout.image.inputs.files import read_source_folder
from controlled_rollout.image.scoring_runtime import runtime_folder

SCRIPT = "def init(): ...\ndef run(data): return data\n"
DEADLINE_S = 120


@dataclass(frozen=True)
class Project:
    """A source folder, the cache with its image, and the progress lines of the build."""

    source: Path
    cache: Path
    reference: ImageReference
    lines: list[str]


def write_source(folder: Path, *, requirements: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(SCRIPT)
    (folder / "requirements.txt").write_text(requirements)
    return folder


def entries(cache: Path, kind: str) -> list[str]:
    folder = cache / kind
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The smallest image that a version can have: the scoring runtime's own requirements."""
    folder = tmp_path_factory.mktemp("built")
    source = write_source(folder / "source")
    lines: list[str] = []
    reference = asyncio.run(build_local_image(source, name="digits", cache=folder / "cache", progress=lines.append))
    return Project(source, folder / "cache", reference, lines)


def test_environment_contains_the_runtime_and_works_after_being_moved(built: Project) -> None:
    image = load_local_image(str(built.reference), built.cache)

    interpreter = subprocess.run(
        [image.python, "-c", "import controlled_rollout_scoring, httptools, sys; print(sys.prefix)"],
        env={"PYTHONPATH": str(runtime_folder())},
        capture_output=True,
        text=True,
        check=True,
    )
    script = subprocess.run([image.python.parent / "flask", "--version"], capture_output=True, text=True, check=True)

    assert interpreter.stdout.strip() == str(built.cache / "environments" / image.environment_hash)
    assert "Flask" in script.stdout


def test_image_contains_the_source_and_describes_its_inputs(built: Project) -> None:
    image = load_local_image(built.reference, built.cache)

    document = json.loads((image.app_root.parent / "image.json").read_text())

    assert image.reference.name == "local/digits"
    assert (image.app_root / image.entry_script).read_text() == SCRIPT
    assert list(image.model_dir.iterdir()) == []
    assert document["source_digest"] == read_source_folder(built.source).digest
    assert document["environment_hash"] == image.environment_hash


CHANGES_ITSELF = """
import os, subprocess, sys, httptools

def attempts():
    model = os.path.join(os.environ["AZUREML_MODEL_DIR"], "model.txt")
    yield lambda: open(model, "w")
    yield lambda: open(os.path.join(os.path.dirname(model), "new.txt"), "w")
    yield lambda: os.remove(model)
    yield lambda: open(__file__, "a")
    yield lambda: open(httptools.__file__, "a")
    yield lambda: open(os.path.join(os.path.dirname(httptools.__file__), "new.py"), "w")
    yield lambda: subprocess.run([sys.executable, "-c", f"open({model!r}, 'w')"], check=True, capture_output=True)

def init():
    refused = 0
    for attempt in attempts():
        try:
            attempt()
        except (OSError, subprocess.CalledProcessError):
            refused += 1
    print("refused:", refused, open("/proc/self/cmdline").read()[:1], flush=True)
    os._exit(7)

def run(data): ...
"""


async def test_an_image_in_the_cache_cannot_be_changed_by_what_runs_it(built: Project, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (source / "score.py").write_text(CHANGES_ITSELF)
    (tmp_path / "model.txt").write_text("kept")
    models = [ModelSource("digits", tmp_path / "model.txt")]
    reference = await build_local_image(source, name="changing", cache=built.cache, models=models)
    image = load_local_image(reference, built.cache)

    done = subprocess.run(
        [image.python, "-m", "controlled_rollout_scoring", "--bind", "127.0.0.1:0"],
        cwd=image.app_root,
        env={
            "PYTHONPATH": str(runtime_folder()),
            "AML_APP_ROOT": str(image.app_root),
            "AZUREML_ENTRY_SCRIPT": image.entry_script,
            "AZUREML_MODEL_DIR": str(image.model_dir),
        },
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )

    assert "refused: 7" in done.stdout + done.stderr
    assert [path.name for path in image.model_dir.iterdir()] == ["model.txt"]
    assert (image.model_dir / "model.txt").read_text() == "kept"


async def test_a_hit_builds_nothing_and_takes_less_than_half_a_second(built: Project) -> None:
    before = {path: path.lstat().st_mtime_ns for path in built.cache.glob("*/*")}
    lines: list[str] = []
    times = []

    for _ in range(3):
        began = time.perf_counter()
        assert (
            await build_local_image(built.source, name="digits", cache=built.cache, progress=lines.append)
            == built.reference
        )
        times.append(time.perf_counter() - began)

    assert min(times) < 0.5
    assert [line for line in lines if "build" in line] == []
    assert "models: none, so AZUREML_MODEL_DIR is an empty folder" in lines
    assert {path: path.lstat().st_mtime_ns for path in built.cache.glob("*/*")} == before


async def test_changed_model_builds_an_image_but_no_environment(built: Project, tmp_path: Path) -> None:
    model = tmp_path / "model.pkl"
    references = []
    lines: list[str] = []
    for content in (b"1", b"2"):
        model.write_bytes(content)
        models = [ModelSource("digits", model, version="3")]
        references.append(
            await build_local_image(
                built.source, name="digits", cache=built.cache, models=models, progress=lines.append
            )
        )

    images = [load_local_image(reference, built.cache) for reference in references]

    assert len({built.reference, *references}) == 3
    assert {image.environment_hash for image in images} == {
        load_local_image(built.reference, built.cache).environment_hash
    }
    assert [line for line in lines if "building" in line or "models: none" in line] == []
    assert [(image.model_dir / "model.pkl").read_bytes() for image in images] == [b"1", b"2"]
    assert images[0].model_dir.parts[-2:] == ("digits", "3")
    assert (images[1].app_root / "azureml-models" / "digits" / "3" / "model.pkl").read_bytes() == b"2"


async def test_the_image_changes_with_source_entry_script_and_model_version(built: Project, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (source / "other.py").write_text(SCRIPT)
    (tmp_path / "model.pkl").touch()

    def models(version: str) -> list[ModelSource]:
        return [ModelSource("digits", tmp_path / "model.pkl", version=version)]

    references = [
        await build_local_image(source, name="digits", cache=built.cache),
        await build_local_image(source, name="digits", cache=built.cache, entry_script="other.py"),
        await build_local_image(source, name="digits", cache=built.cache, models=models("1")),
        await build_local_image(source, name="digits", cache=built.cache, models=models("2")),
    ]
    (source / "score.py").write_text(SCRIPT + "\n")
    references.append(await build_local_image(source, name="digits", cache=built.cache))

    assert len({reference.sha256 for reference in references}) == 5
    assert len({load_local_image(reference, built.cache).environment_hash for reference in references}) == 1


def link_environment(built: Project, cache: Path) -> Path:
    """Return a cache that contains only a link to an environment that was built."""
    environment = load_local_image(built.reference, built.cache).python.parents[1]
    (cache / "environments").mkdir(parents=True)
    (cache / "environments" / environment.name).symlink_to(environment)
    return cache


async def test_image_without_its_environment_is_an_error(built: Project, tmp_path: Path) -> None:
    cache = link_environment(built, tmp_path / "cache")
    reference = await build_local_image(built.source, name="digits", cache=cache)
    image = load_local_image(reference, cache)
    (cache / "environments" / image.environment_hash).unlink()

    with pytest.raises(ImageError, match=r"but not its environment .*: build the image again"):
        load_local_image(reference, cache)


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            "six==0.0.0.1\n",
            r"environment \(six==0\.0\.0\.1\) cannot be installed:\nerror: .*no version of six==0\.0\.0\.1",
        ),
        ("six\n-c constraints.txt\n", r"cannot be installed:\nerror: .*no version of six==0\.0\.0\.2"),
        ("httptools<0.1\n", r"unsatisfiable.*the scoring runtime, which needs .*httptools=="),
    ],
    ids=["no such version", "constraint", "conflict with the runtime"],
)
async def test_unsolvable_environment_is_an_error_with_its_cause_and_leaves_nothing(
    tmp_path: Path, requirements: str, message: str
) -> None:
    source, cache = write_source(tmp_path / "source", requirements=requirements), tmp_path / "cache"
    (source / "constraints.txt").write_text("six==0.0.0.2\n")

    with pytest.raises(ImageError, match=rf"(?s){message}"):
        await build_local_image(source, name="digits", cache=cache)

    assert entries(cache, "environments") == []
    assert entries(cache, "images") == []


async def test_a_missing_python_version_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    source = write_source(tmp_path / "source")

    missing = Environment(python="3.14.99")
    with pytest.raises(ImageError, match=r"(?s)no Python 3\.14\.99 for the environment: .*Install that version"):
        await build_local_image(source, name="digits", cache=tmp_path / "cache", environment=missing)

    assert entries(tmp_path / "cache", "environments") == []


async def test_syntax_of_a_newer_python_is_not_refused_by_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    source = write_source(tmp_path / "source")
    (source / "score.py").write_text("a syntax that only the future knows")

    missing = Environment(python="3.14.99")
    with pytest.raises(ImageError, match=r"no Python 3\.14\.99"):
        await build_local_image(source, name="digits", cache=tmp_path / "cache", environment=missing)
    with pytest.raises(ImageError, match="does not compile"):
        await build_local_image(source, name="digits", cache=tmp_path / "cache", environment=Environment())


async def test_without_uv_a_hit_works_and_a_build_is_an_error(
    built: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)

    assert await build_local_image(built.source, name="digits", cache=built.cache) == built.reference
    with pytest.raises(ImageError, match=r"uv is needed .* pip install 'airflow-provider-controlled-rollout\[local\]'"):
        await build_local_image(built.source, name="digits", cache=tmp_path / "cache")

    assert entries(tmp_path / "cache", "environments") == []


async def test_a_cancelled_build_ends_its_processes_and_leaves_nothing(built: Project, tmp_path: Path) -> None:
    resolved = asyncio.Event()
    task = asyncio.create_task(
        build_local_image(
            built.source,
            name="digits",
            cache=tmp_path / "cache",
            progress=lambda line: resolved.set() if "Resolved" in line else None,
        )
    )
    await asyncio.wait_for(resolved.wait(), DEADLINE_S)

    [uv] = [child for child in psutil.Process().children() if child.name() == "uv"]
    assert any(file.path.endswith(".lock") and "locks" in file.path for file in uv.open_files()), (
        "uv holds the lock too"
    )

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert not uv.is_running()
    assert [child.cmdline() for child in psutil.Process().children(recursive=True) if "uv" in child.name()] == []
    assert entries(tmp_path / "cache", "environments") == []


def test_a_killed_build_leaves_nothing_and_of_two_at_once_one_builds(built: Project, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    script = (
        "import asyncio\nfrom controlled_rollout.image import build_local_image\n"
        f"source, cache = {str(built.source)!r}, {str(cache)!r}\n"
        "print(asyncio.run(build_local_image(source, name='digits', cache=cache, progress=print)))\n"
    )

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, text=True)

    with start() as killed:
        assert killed.stdout is not None
        assert any("Resolved" in line for line in killed.stdout)
        killed.send_signal(signal.SIGKILL)
    assert entries(cache, "environments")[0].endswith(".building")

    builders = [start(), start()]
    outputs = [builder.communicate(timeout=DEADLINE_S)[0] for builder in builders]

    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("building with Python" in text for text in outputs) == 1
    assert [text.splitlines()[-1] for text in outputs] == [str(built.reference)] * 2
    assert [name for name in entries(cache, "environments") if name.startswith(".")] == []
    subprocess.run([load_local_image(built.reference, cache).python, "-c", "import httptools"], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_while_installing_is_an_error_and_nothing_is_kept(small_disk: Path, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")

    message = rf"disk is full: .*more than the 1[\d.]+ MB that are free in the cache folder {small_disk}/cache"
    with pytest.raises(ImageError, match=message):
        await build_local_image(source, name="digits", cache=small_disk / "cache")

    assert entries(small_disk / "cache", "environments") == []


async def test_models_larger_than_the_free_space_are_refused_before_they_are_copied(
    built: Project, small_disk: Path, tmp_path: Path
) -> None:
    cache, model = link_environment(built, small_disk / "cache"), tmp_path / "model.pkl"
    first = await build_local_image(built.source, name="digits", cache=cache)
    model.touch()
    os.truncate(model, 20_000_000)

    with pytest.raises(ImageError, match=r"the models: 20\.0 MB are needed, and there is room for 1[\d.]+ MB in"):
        await build_local_image(built.source, name="digits", cache=cache, models=[ModelSource("digits", model)])

    assert entries(cache, "images") == [first.sha256]
    assert load_local_image(first, cache).app_root.is_dir()


async def test_a_read_only_cache_serves_hits_and_refuses_builds(
    built: Project, small_disk: Path, tmp_path: Path
) -> None:
    cache = link_environment(built, small_disk / "cache")
    first = await build_local_image(built.source, name="digits", cache=cache)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    changed = write_source(tmp_path / "changed")
    (changed / "more.py").touch()

    assert await build_local_image(built.source, name="digits", cache=cache) == first
    with pytest.raises(ImageError, match=rf"cache folder {cache} cannot be written: .*Read-only"):
        await build_local_image(changed, name="digits", cache=cache)


def test_a_hundred_thousand_files_are_refused_quickly(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    for part in range(10):
        folder = source / "data" / str(part)
        folder.mkdir(parents=True)
        (folder / "0").touch()
        for number in range(1, 10_000):
            os.link(folder / "0", folder / str(number))
    began = time.process_time()  # a machine with other work to do is no slower by this clock

    with pytest.raises(ImageError, match=r"has 100,002 files .* The biggest are data/ \(100,000 files"):
        read_source_folder(source)

    assert time.process_time() - began < 5
