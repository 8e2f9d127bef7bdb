"""The models of an image: up to 1,000, laid out as `<name>/<version>/<files>`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import check_room
from controlled_rollout.image.cancellable_thread import Stop, never
from controlled_rollout.image.inputs.files import Package, copy_package, package_model
from controlled_rollout.image.reference import ModelSource

__all__ = ["MAX_MODELS", "check_models", "copy_models", "model_dir", "package_models"]

MAX_MODELS: Final = 1000
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def check_models(models: Sequence[ModelSource]) -> None:
    """Check how many there are and what they are called.

    Raises:
        ImageError: More than 1,000, a name or version that could not be a folder's name, or the same one twice.
    """
    if len(models) > MAX_MODELS:
        raise ImageError(f"{len(models):,} models were given, a deployment has at most {MAX_MODELS:,}")
    seen = set()
    for model in models:
        for what, text in (("name", model.name), ("version", model.version)):
            if not isinstance(text, str) or not NAME.fullmatch(text):
                raise ImageError(
                    f"model {what} {text!r} is not valid: use letters, digits, '.', '_' and '-', "
                    "beginning with a letter or a digit"
                )
        if (model.name, model.version) in seen:
            raise ImageError(f"model {model.name!r} version {model.version!r} was given twice")
        seen.add((model.name, model.version))


def package_models(models: Sequence[ModelSource], *, stop: Stop = never) -> list[tuple[ModelSource, Package]]:
    """Return the models with their files, sorted by name and version.

    Raises:
        ImageError: A model's path does not exist or cannot be read.
    """
    packaged = []
    for model in sorted(models, key=lambda model: (model.name, model.version)):
        path = Path(model.path).expanduser().absolute()
        if not path.exists():
            raise ImageError(f"model {model.name!r}: there is no file or folder {path}")
        try:
            packaged.append((model, package_model(path, stop=stop)))
        except ImageError as error:
            raise ImageError(f"model {model.name!r}: {error}") from None
    return packaged


def copy_models(packaged: Sequence[tuple[ModelSource, Package]], folder: Path, *, stop: Stop = never) -> None:
    """Copy the models to `<name>/<version>/` in `folder`, which is made even if there are none.

    Raises:
        ImageError: There is no room for them, or one changed since it was packaged.
    """
    check_room(sum(files.size for _, files in packaged), folder, "the models")
    folder.mkdir()
    for model, files in packaged:
        copy_package(files, folder / model.name / model.version, stop=stop)


def model_dir(folder: Path, models: Sequence[tuple[str, str]]) -> Path:
    """Return what AZUREML_MODEL_DIR is set to: the only model's own folder, else the folder of all.

    Args:
        folder: Where the models were copied.
        models: Name and version of each.
    """
    if len(models) == 1:
        [(name, version)] = models
        return folder / name / version
    return folder
