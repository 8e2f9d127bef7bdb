"""The layer with source and models: the same bytes for the same files, in a standard tar archive."""

import hashlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image import ModelSource
from controlled_rollout.image.inputs.files import FileSet, SourceFile, read_source_folder
from controlled_rollout.image.inputs.models import read_models
from controlled_rollout.image.oci.layer import model_layer
from tests.archives import read_file


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def archive(source: FileSet, models: list[ModelSource] | None = None) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(model_layer(source, read_models(models or [])).chunks())))


def test_source_and_models_are_where_the_runtime_looks(tmp_path: Path) -> None:
    source = read_source_folder(write(tmp_path / "source", {"score.py": b"s", "inner/data.txt": b"d"}))
    write(tmp_path, {"model.pkl": b"m", "trained/weights": b"w"})
    models = [ModelSource("b", tmp_path / "trained", "2"), ModelSource("a", tmp_path / "model.pkl")]

    with archive(source, models) as tar:
        names = tar.getnames()
        content = {entry.name: read_file(tar, entry) for entry in tar if entry.isfile()}

    assert content == {
        "opt/app/inner/data.txt": b"d",
        "opt/app/score.py": b"s",
        "opt/models/a/1/model.pkl": b"m",
        "opt/models/b/2/trained/weights": b"w",
    }
    assert names.index("opt/app/inner") < names.index("opt/app/inner/data.txt")
    assert len(names) == len(set(names))


def test_the_project_has_a_link_to_the_models_unless_it_has_something_of_that_name(tmp_path: Path) -> None:
    models = [ModelSource("digits", write(tmp_path / "model", {"model.pkl": b"m"}) / "model.pkl", "7")]
    plain = read_source_folder(write(tmp_path / "plain", {"score.py": b"s"}))
    own = read_source_folder(write(tmp_path / "own", {"azureml-models/mine.pkl": b"own"}))

    with archive(plain, models) as tar:
        tar.extractall(tmp_path / "image", filter="data")
    with archive(own, models) as tar:
        links = [entry.name for entry in tar if entry.issym()]

    # Where azureml-core's Model.get_model_path looks, in the project folder.
    assert (tmp_path / "image/opt/app/azureml-models/digits/7/model.pkl").read_bytes() == b"m"
    assert links == []


def test_without_models_their_folder_is_there(tmp_path: Path) -> None:
    with archive(read_source_folder(write(tmp_path, {"score.py": b""}))) as tar:
        assert tar.getmember("opt/models").isdir()


def test_owner_times_and_permissions_are_always_the_same(tmp_path: Path) -> None:
    write(tmp_path, {"score.py": b"", "run.sh": b""})
    (tmp_path / "run.sh").chmod(0o777)
    (tmp_path / "score.py").chmod(0o600)

    with archive(read_source_folder(tmp_path)) as tar:
        entries = {entry.name: entry for entry in tar}

    assert {(entry.uid, entry.gid, entry.uname, entry.gname, entry.mtime) for entry in entries.values()} == {
        (0, 0, "", "", 0)
    }
    assert oct(entries["opt/app/score.py"].mode) == oct(0o444)
    assert oct(entries["opt/app/run.sh"].mode) == oct(0o555)
    assert oct(entries["opt/app"].mode) == oct(0o755)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=9
)


@given(st.dictionaries(NAMES.filter(lambda name: name not in (".", "..")), st.binary(max_size=2000), min_size=1))
def test_archive_preserves_any_names_and_contents(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    packaged = []
    for number, (name, content) in enumerate(sorted(files.items())):
        (folder / str(number)).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        packaged.append(SourceFile(f"inner/{name * 20}", folder / str(number), len(content), False, digest))

    with archive(FileSet(tuple(packaged), "")) as tar:
        contents = {entry.name: read_file(tar, entry) for entry in tar if entry.isfile()}

    assert contents == {f"opt/app/inner/{name * 20}": data for name, data in files.items()}


def test_the_digest_is_that_of_the_archive_and_the_same_for_a_copy(tmp_path: Path) -> None:
    files = {"score.py": b"x" * 3_000_000, "a": b"", "b/c": b"1"}
    one = read_source_folder(write(tmp_path / "one", files))
    two = read_source_folder(write(tmp_path / "two", dict(reversed(files.items()))))
    os.utime(tmp_path / "two" / "a", (1, 1))

    digest, size = model_layer(one, []).digest()
    content = b"".join(model_layer(two, []).chunks())

    assert digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert size == len(content)


@pytest.mark.parametrize("content", [b"other", b"longer than it was", b""])
def test_a_file_that_changed_since_it_was_read_is_an_error(tmp_path: Path, content: bytes) -> None:
    layer = model_layer(read_source_folder(write(tmp_path, {"score.py": b"first"})), [])
    (tmp_path / "score.py").write_bytes(content)

    with pytest.raises(ImageError, match=r"score\.py changed during the build"):
        layer.digest()


def test_a_file_that_was_removed_since_it_was_read_is_an_error(tmp_path: Path) -> None:
    layer = model_layer(read_source_folder(write(tmp_path, {"score.py": b"first"})), [])
    (tmp_path / "score.py").unlink()

    with pytest.raises(ImageError, match=r"score\.py cannot be read: No such file"):
        layer.digest()
