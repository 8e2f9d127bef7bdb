"""The models of an image: up to 1,000, laid out as `<name>/<version>/<files>`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.cache import check_free_space
from controlled_rollout.image.cancellable_thread import CancelCheck, never_cancelled
from controlled_rollout.image.inputs.files import FileSet, copy_files, read_model_files
from controlled_rollout.image.reference import ModelSource

__all__ = ["LINK", "LINK_TARGET", "MAX_MODELS", "check_models", "copy_models", "has_link", "model_dir", "read_models"]

MAX_MODELS: Final = 1000
# Where azureml-core's `Model.get_model_path` looks for `<name>/<version>`, in the project folder: a link to the models.
LINK: Final = "azureml-models"
LINK_TARGET: Final = "../models"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


def check_models(models: Sequence[ModelSource]) -> None:
    """Raise `ImageError` if there are too many models, or a name or version is invalid or used twice.

    Raises:
        ImageError: More than 1,000, a name or version that could not be a folder's name, or the same one twice.
    """
    if len(models) > MAX_MODELS:
        raise ImageError(f"{len(models):,} models were given, a deployment has at most {MAX_MODELS:,}")
    names = set()
    for model in models:
        for field, text in (("name", model.name), ("version", model.version)):
            if not isinstance(text, str) or not NAME.fullmatch(text):
                raise ImageError(
                    f"model {field} {text!r} is not valid: use letters, digits, '.', '_' and '-', "
                    "beginning with a letter or a digit"
                )
        if (model.name, model.version) in names:
            raise ImageError(f"model {model.name!r} version {model.version!r} was given twice")
        names.add((model.name, model.version))


def read_models(
    models: Sequence[ModelSource], *, check_cancelled: CancelCheck = never_cancelled
) -> list[tuple[ModelSource, FileSet]]:
    """Return the models with their files, sorted by name and version.

    Args:
        models: Each with a path of this machine.
        check_cancelled: Called between two pieces of a file.

    Raises:
        ImageError: A model's path does not exist or cannot be read.
    """
    with_files = []
    for model in sorted(models, key=lambda model: (model.name, model.version)):
        path = Path(model.path).expanduser().absolute()
        if not path.exists():
            raise ImageError(f"model {model.name!r}: there is no file or folder {path}")
        try:
            with_files.append((model, read_model_files(path, check_cancelled=check_cancelled)))
        except ImageError as error:
            raise ImageError(f"model {model.name!r}: {error}") from error
    return with_files


def copy_models(
    models: Sequence[tuple[ModelSource, FileSet]], folder: Path, *, check_cancelled: CancelCheck = never_cancelled
) -> None:
    """Copy the models to `<name>/<version>/` in `folder`, which is made even if there are none.

    Raises:
        ImageError: There is no room for them, or one changed since it was read.
    """
    check_free_space(sum(files.size for _, files in models), folder, "the models")
    folder.mkdir()
    for model, files in models:
        copy_files(files, folder / model.name / model.version, check_cancelled=check_cancelled)


def model_dir(folder: Path, models: Sequence[tuple[str, str]]) -> Path:
    """Return the value of AZUREML_MODEL_DIR: the folder of the only model, or else the folder of all models.

    Args:
        folder: Where the models were copied.
        models: Name and version of each.
    """
    if len(models) == 1:
        [(name, version)] = models
        return folder / name / version
    return folder


def has_link(source: FileSet, models: Sequence[tuple[ModelSource, FileSet]]) -> bool:
    """Return whether the project folder of an image gets a link to the models: if it has no file or folder there."""
    return bool(models) and all(file.path.partition("/")[0] != LINK for file in source.files)
