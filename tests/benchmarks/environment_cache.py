"""Time to build an image with a new environment, a cached one, and with another model."""

import asyncio
import tempfile
import time
from pathlib import Path

from controlled_rollout import image
from tests.benchmarks.local_workspace import SCRIPT, silent

REQUIREMENTS = "scikit-learn\nnumpy\njoblib\n"


def seconds_to_build(source: Path, cache: Path, model: Path) -> float:
    began = time.perf_counter()
    models = [image.ModelSource("digits", model)]
    asyncio.run(image.build_local_image(source, name="bench", cache=cache, models=models, progress=silent))
    return time.perf_counter() - began


def measure(*, rounds: int = 5) -> dict[str, float]:
    """Seconds for each kind of build; uv's own package cache is as the machine has it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        source = Path(folder) / "source"
        source.mkdir()
        (source / "score.py").write_text(SCRIPT)
        (source / "requirements.txt").write_text(REQUIREMENTS)
        cache, model = Path(folder) / "cache", Path(folder) / "model.bin"
        model.write_bytes(b"first" * 1000)
        first = seconds_to_build(source, cache, model)
        hits = [seconds_to_build(source, cache, model) for _ in range(rounds)]
        model_changes = []
        for number in range(rounds):
            model.write_bytes(f"model {number}".encode() * 1000)
            model_changes.append(seconds_to_build(source, cache, model))
    return {
        "environment and image built": first,
        "nothing changed (median)": sorted(hits)[rounds // 2],
        "another model on a known environment (median)": sorted(model_changes)[rounds // 2],
    }
