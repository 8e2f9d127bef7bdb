"""Environment files: the usual names, encodings and keys, and what is refused."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image import Environment
from controlled_rollout.image.environment.file import DEFAULT_FILES, find_environment_file, read_environment
from tests.unit.image.environment.conftest import Write

# Parts of the files that people write, in any order.
TEXTS = st.lists(
    st.sampled_from(
        "dependencies: requirements: pip: python numpy =3.1 a [ ] { } : &x *x # ' -r -c --index-url https:// file: "
        "${A} @ = \\ é | !! \0".split(" ")
    )
    | st.sampled_from(["\n", "  ", "- ", ": ", "\n- "]),
    max_size=12,
).map(lambda parts: "".join(parts).encode())


def test_a_conda_file_is_read_in_order_and_says_what_the_index_provides(write: Write) -> None:
    lines: list[str] = []
    path = write(
        "environment.yml",
        "name: digits\nchannels: [conda-forge]\ndependencies:\n  - python=3.10\n  - pip:\n    - zlib-ng\n"
        "    - azureml-defaults\n  - pip=24\n  - numpy=1.26\n  - scikit-learn>=1.4,<2\nprefix: /opt/conda\n",
    )

    environment = read_environment(path, progress=lines.append)

    assert environment.name == "digits"
    assert environment.python == "3.10"
    assert environment.requirements == ("numpy==1.26.*", "scikit-learn<2,>=1.4", "zlib-ng", "azureml-defaults")
    assert lines == [
        "environment: read from environment.yml: Python 3.10; 4 requirements; from the Python package index in place "
        "of conda's channels: numpy==1.26.*, scikit-learn<2,>=1.4"
    ]


def test_keys_of_this_project_are_read_and_versions_stay_strings(write: Write) -> None:
    path = write(
        "environment.yaml",
        "name: digits\nversion: 7\npython: 3.10\nbase_image: registry.example/base:1\n"
        "docker_steps: ['RUN apt-get update']\nrequirements: [b, a]\n",
    )

    environment = read_environment(path)

    assert (environment.version, environment.python) == ("7", "3.10")
    assert environment.base_image == "registry.example/base:1"
    assert environment.docker_steps == ("RUN apt-get update",)
    assert environment.requirements == ("b", "a")


def test_a_requirements_file_is_read_with_what_it_includes(write: Write) -> None:
    write("base.txt", "b >= 2  # why\n\n# nothing\n")
    path = write(
        "requirements.txt",
        "--extra-index-url https://index.example/simple\n-r base.txt\nA[x]==1.0 ; python_version > '3'\n"
        "c==1 \\\n    --hash=sha256:12 \\\n    --hash sha256:34\nd @ https://host.example/d.whl#sha256=1\n",
    )

    assert read_environment(path).requirements == (
        "--extra-index-url https://index.example/simple",
        "b>=2",
        'A[x]==1.0; python_version > "3"',
        "c==1 --hash=sha256:12 --hash=sha256:34",
        "d @ https://host.example/d.whl#sha256=1",
    )


def test_a_conda_file_may_include_a_requirements_file(write: Write) -> None:
    write("requirements.txt", "a\n")
    path = write("conda.yml", "dependencies:\n- pip:\n  - -r requirements.txt\n  - b\n")

    assert read_environment(path).requirements == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "dependancies: []\nvariables: {}",
            "keys 'dependancies', 'variables' are not known: known are name, version, python",
        ),
        ("dependencies: [a]\nrequirements: [b]", "both dependencies and requirements"),
        ("dependencies: [python=3.11]\npython: '3.12'", "asks for Python both"),
        ("dependencies: [acme::numpy]", "the channel 'acme' may have another package under that name"),
        ("dependencies: [numpy=1.26=py311_0]", "it names a build"),
        ("dependencies: [{npm: [a]}]", "only text and one list under `pip:`"),
        ("dependencies: [[a]]", "only text and one list under `pip:`"),
        ("dependencies: {a: b}", "dependencies must be a list"),
        ("dependencies: [{pip: a}]", "pip must be a list"),
        ("dependencies: [{pip: [[a]]}]", "pip must hold text only"),
        ("name: [a]", "name must be text"),
        ("python: three", "Python version 'three' is not understood"),
        ("requirements: [a=1]", "'a=1' is not understood"),
        ("- a\n- b", "does not hold keys"),
        ("", "does not hold keys"),
        ("name: a\nname: b", "key 'name' is there twice"),
        ("dependencies:\n- pip: [a]\n  pip: [b]", "key 'pip' is there twice"),
        ("dependencies: [python=3.11, python=3.12]", "name Python more than once"),
        ("? [a]\n: b", "is not YAML"),
        pytest.param("a: " + "[" * 1000, "is not YAML", id="nested too deep"),
        ("dependencies: &a [*a]", "is not YAML"),
        ("variables: {A: b}", "variables are the version's: give them as its environment_variables"),
        ("image: a\nconda_file: conda.yml", "a base image is written as `base_image`"),
        ("index_names: [a]", "index_names must map"),
        ("index_names: {a: [b]}", "index_names must map"),
        ("index_names: {a: b==1}", "'b==1', which is not the name of a package"),
        ("a: [", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "keys 'a' are not known"),
    ],
)
def test_invalid_environment_file_is_refused_by_name(write: Write, text: str, message: str) -> None:
    path = write("environment.yml", text)

    with pytest.raises(ImageError, match=message) as refused:
        read_environment(path)

    assert str(path) in str(refused.value)


def test_a_missing_file_and_an_unknown_kind_of_file_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        read_environment(tmp_path / "environment.yml")
    with pytest.raises(ImageError, match=r"suffix '\.toml'"):
        read_environment(write("pyproject.toml", ""))


def test_the_default_file_is_the_first_that_is_there(write: Write, tmp_path: Path) -> None:
    write("myenv.yml", "")
    with pytest.raises(ImageError, match=r"no environment\.yml, .*requirements\.txt \(there are myenv\.yml\): add one"):
        find_environment_file(tmp_path)
    names = []
    for name in reversed(DEFAULT_FILES):
        write(name, "")
        names.append(find_environment_file(tmp_path).name)

    assert names == [*reversed(DEFAULT_FILES)]


def test_the_case_of_a_suffix_does_not_count(write: Write) -> None:
    assert read_environment(write("Requirements.TXT", "a")).requirements == ("a",)
    assert read_environment(write("Environment.YML", "requirements: [a]")).requirements == ("a",)


def test_of_mlflows_files_the_conda_file_is_read_and_the_others_are_named(write: Write, tmp_path: Path) -> None:
    write("conda.yaml", "dependencies:\n- python=3.11.4\n- pip<=24\n- pip: [mlflow==2.9.2]\nname: mlflow-env\n")
    write("python_env.yaml", "python: 3.12.1\nbuild_dependencies: [pip==24.0]\ndependencies: [-r requirements.txt]\n")
    write("requirements.txt", "mlflow==2.9.2\n")
    lines: list[str] = []

    environment = read_environment(find_environment_file(tmp_path), progress=lines.append)

    assert (environment.python, environment.requirements) == ("3.11.4", ("mlflow==2.9.2",))
    assert lines == [
        "environment: read from conda.yaml: Python 3.11.4; 1 requirement; not the environment: python_env.yaml, "
        "requirements.txt"
    ]


def test_mlflows_python_environment_is_read_with_its_requirements(write: Write) -> None:
    write("requirements.txt", "mlflow==2.9.2\n")
    path = write(
        "python_env.yaml",
        "python: 3.10.13\nbuild_dependencies: [pip==24.0, setuptools==65.5.0]\ndependencies: [-r requirements.txt]\n",
    )

    environment = read_environment(path)

    assert environment.python == "3.10.13"
    assert environment.requirements == ("setuptools==65.5.0", "mlflow==2.9.2")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"])
@pytest.mark.parametrize(
    ("name", "text"),
    [("environment.yml", "dependencies:\n- numpy=2.1  # für é\n"), ("requirements.txt", "numpy==2.1.*  # für é\n")],
)
def test_a_file_is_read_in_the_encoding_that_it_was_saved_in(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    declared = "# -*- coding: latin-1 -*-\n" if encoding == "latin-1" else ""
    (tmp_path / name).write_bytes((declared + text).encode(encoding))

    assert read_environment(tmp_path / name).requirements == ("numpy==2.1.*",)


@pytest.mark.parametrize("comment", ["# encoding: see below", "# coding: hex", "# coding: undefined"])
def test_a_comment_that_names_no_encoding_of_texts_declares_none(tmp_path: Path, comment: str) -> None:
    (tmp_path / "requirements.txt").write_text(f"{comment}\na  # é\n", encoding="utf-8")

    assert read_environment(tmp_path / "requirements.txt").requirements == ("a",)


@pytest.mark.parametrize("name", ["environment.yml", "requirements.txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: b\nc: é\n".encode("latin-1"), r"line 2 is not utf-8: save it as UTF-8, or name its encoding"),
        ("a: b".encode("utf-16-le"), r"UTF-16 without a byte order mark.*save it as UTF-8"),
        (b"# coding: klingon\n\xff", r"line 2 is not utf-8: save it as UTF-8"),
        (b"\xff\xfea", r"line 1 is not utf-16"),
        (b"#" * 2_000_001, r"more than 2 MB"),
    ],
    ids=["latin-1", "utf-16 without a mark", "no such encoding", "half a character", "too long"],
)
def test_a_file_that_cannot_be_decoded_is_refused_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ImageError, match=message) as refused:
        read_environment(tmp_path / name)

    assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize(
    ("python", "taken"),
    [
        ("3.10", "3.10"),
        ("3.11.*", "3.11"),
        (" 3.14.0rc1 ", "3.14.0rc1"),
        ("3", "<3.15,==3.*,>=3.10"),
        (">=3.6,<3.12", "<3.12,<3.15,>=3.10,>=3.6"),
        (">=3.11", "<3.15,>=3.10,>=3.11"),
        (">=3.11,<3.14", "<3.14,<3.15,>=3.10,>=3.11"),
        ("==3.11.*", "<3.15,==3.11.*,>=3.10"),
    ],
)
def test_a_python_of_the_runtime_is_taken_and_a_range_is_narrowed_to_those(python: str, taken: str) -> None:
    assert Environment(python=python).python == taken


@pytest.mark.parametrize(
    "python",
    ["3.8", "3.9.18", "3.6.2", "2.7", "<3.10", "<3.10,>=3.6", "~=3.8.1", "2", ">=4", "3.15", "3.99.1", ">3.14.999"],
)
def test_a_python_without_the_runtime_is_refused_saying_which_one_to_write(write: Write, python: str) -> None:
    separator = "" if python[0] in "<>~" else "="
    for path in (
        write("environment.yml", f"dependencies: ['python{separator}{python}']"),
        write("conda.yml", f"python: '{python}'"),
    ):
        with pytest.raises(ImageError, match=r"runs on Python 3\.10 to 3\.14\. Write 3\.\d+, which this process runs"):
            read_environment(path)


@pytest.mark.parametrize("python", ["three", "", " ", "3.x", "===3.11", "3.11 || 3.12", "٣.١٢", "v3.11"])
def test_what_is_no_version_of_python_is_refused(python: str) -> None:
    with pytest.raises(ImageError, match=r"is not understood: write 3\.11"):
        Environment(python=python)


@given(st.sampled_from(["environment.yml", "requirements.txt", "python_env.yaml"]), st.binary(max_size=40) | TEXTS)
def test_whatever_bytes_a_file_has_it_is_read_or_refused(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            read_environment(path)
        except ImageError as error:
            assert str(path) in str(error)
