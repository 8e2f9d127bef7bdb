"""Training of the digits model, on the Airflow worker.

The data are scikit-learn's bundled digits: 8 × 8 pixels of 0 to 16, ten classes. A fixed, stratified third is held out
and never trained on: load generators and tests replay it.
"""

import json
import os
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

SPLIT_SEED = 20260105
# 30 trees predict one row in about 1.5 ms: long enough to be measured, short enough for a laptop.
TREES = 30


def training_part(part: Literal["first", "all"] = "all") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the images to train on: the `first` half of them, or `all`; shapes (n, 64) and (n,)."""
    images, _, digits, _ = _split()
    count = {"first": len(images) // 2, "all": len(images)}[part]
    return images[:count], digits[:count]


def held_out() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return images and digits of the held-out third; shapes (599, 64) and (599,)."""
    _, images, _, digits = _split()
    return images, digits


def train(out_dir: str | Path, *, part: Literal["first", "all"] = "all", seed: int = 0) -> dict[str, Any]:
    """Train a model and write `model.joblib` and `metrics.json` into `out_dir`, each atomically.

    Args:
        out_dir: A folder; created if it does not exist.
        part: Which part of the training images to use.
        seed: The random seed of the forest; the same seed gives the same file.

    Returns:
        The metrics: how many images were trained on, and the accuracy on the held-out third.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    images, digits = training_part(part)
    model = RandomForestClassifier(n_estimators=TREES, random_state=seed).fit(images, digits)
    test_images, test_digits = held_out()
    metrics = {
        "part": part,
        "trained_on": len(images),
        "held_out": len(test_images),
        "accuracy": round(float(model.score(test_images, test_digits)), 4),
        "seed": seed,
    }
    unfinished = folder / ".model.joblib"
    joblib.dump(model, unfinished)
    os.replace(unfinished, folder / "model.joblib")
    unfinished = folder / ".metrics.json"
    unfinished.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / "metrics.json")
    return metrics


def _split() -> tuple[Any, Any, Any, Any]:
    images, digits = load_digits(return_X_y=True)
    train_images, test_images, train_digits, test_digits = train_test_split(
        images, digits, test_size=1 / 3, stratify=digits, random_state=SPLIT_SEED
    )
    return train_images, test_images, train_digits, test_digits
