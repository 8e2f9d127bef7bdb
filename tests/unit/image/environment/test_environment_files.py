from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.version import Version

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.conda import python_version_from_conda, requirement_from_conda
from controlled_rollout.image.environment.file import find_environment_file, read_environment
from controlled_rollout.image.environment.requirements import check_requirement

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write_file


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
    assert len(lines) == 2
    assert "'numpy=1.26' is installed from the index as 'numpy==1.26.*'" in lines[0]


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
    ("line", "message"),
    [
        ("-e .", "editable install.*put the code into the source folder"),
        ("./wheels/a.whl", "local path's content is not covered"),
        ("a @ file:///a.whl", "local path"),
        ("https://host.example/a.whl", "Write an address as `name @ https"),
        ("-c other.txt", "known are --index-url"),
        ("--pre", "known are --index-url"),
        ("--find-links ./wheels", "needs an address"),
        ("--find-links=file:///wheels", "needs an address"),
        ("-r missing.txt", r"missing\.txt cannot be read"),
        ("-r requirements.txt", "includes itself"),
        ("a=1", "is not understood"),
        ("a b", "is not understood"),
    ],
)
def test_a_requirement_that_cannot_be_kept_is_refused_naming_the_file(write: Write, line: str, message: str) -> None:
    path = write("requirements.txt", f"{line}\n")

    with pytest.raises(ImageError, match=message) as refused:
        read_environment(path)

    assert str(path.parent) in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://user:s3cret@index.example/simple",
        "--extra-index-url=https://s3cret@index.example/simple",
        "a @ git+https://s3cret@host.example/a.git",
        "a @ https://${USER}:s3cret@host.example/a.whl",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(write: Write, line: str) -> None:
    path = write("requirements.txt", f"{line}\n")

    with pytest.raises(ImageError, match="holds a password or token") as refused:
        read_environment(path)

    assert "s3cret" not in str(refused.value)


def test_a_password_may_come_from_a_variable(write: Write) -> None:
    line = "--index-url https://${USER}:${TOKEN}@index.example/simple"

    assert read_environment(write("requirements.txt", line)).requirements == (line,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dependancies: []\nvariables: {}", "keys 'dependancies', 'variables' are not known: known are name, channels"),
        ("dependencies: [a]\nrequirements: [b]", "both dependencies and requirements"),
        ("dependencies: [python=3.11]\npython: '3.12'", "asks for Python both"),
        ("dependencies: [conda-forge::numpy]", "it names a channel"),
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
    with pytest.raises(ImageError, match=r"no environment\.yml, environment\.yaml, conda\.yml or requirements\.txt"):
        find_environment_file(tmp_path)
    names = []
    for name in ("requirements.txt", "conda.yml", "environment.yaml", "environment.yml"):
        write(name, "")
        names.append(find_environment_file(tmp_path).name)

    assert names == ["requirements.txt", "conda.yml", "environment.yaml", "environment.yml"]


@pytest.mark.parametrize(
    ("conda", "index"),
    [
        ("numpy", "numpy"),
        ("NumPy", "numpy"),
        ("numpy=1.26", "numpy==1.26.*"),
        ("numpy=1.26.*", "numpy==1.26.*"),
        ("numpy==1.26.4", "numpy==1.26.4"),
        ("numpy 1.26.4", "numpy==1.26.4"),
        ("numpy >= 1.2, < 2", "numpy<2,>=1.2"),
        ("numpy~=1.2", "numpy~=1.2"),
        ("numpy=2.0rc1", "numpy==2.0rc1"),
        ("pytorch=2.1", "torch==2.1.*"),
    ],
)
def test_conda_versions_are_translated_to_requirements(conda: str, index: str) -> None:
    assert requirement_from_conda(conda) == index


@pytest.mark.parametrize(
    "conda",
    [
        "numpy=1.26=py311_0",
        "numpy 1.26 py311_0",
        "numpy==1.26=py311_0",
        "conda-forge::numpy",
        "numpy[version='>1']",
        "numpy=1.2|1.3",
        "openssl=1.1.1w",
        "numpy=1.2*",
        "_libgcc_mutex=0.1",
        ">3",
        "",
    ],
)
def test_conda_version_without_equivalent_requirement_is_refused(conda: str) -> None:
    with pytest.raises(ImageError, match="cannot be translated to the Python package index"):
        requirement_from_conda(conda)


@pytest.mark.parametrize(
    ("conda", "python"),
    [
        ("python", None),
        ("python=3.11", "3.11"),
        ("python 3.8", "3.8"),
        ("python=3.11.*", "3.11"),
        ("python==3.11.4", "3.11.4"),
        ("python>=3.9,<3.12", "<3.12,>=3.9"),
    ],
)
def test_python_is_read_from_its_conda_dependency(conda: str, python: str | None) -> None:
    assert python_version_from_conda(conda) == python


RELEASES = st.lists(st.integers(0, 99), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))


@given(RELEASES, RELEASES)
def test_fuzzy_conda_version_allows_exactly_the_releases_with_its_prefix(version: str, release: str) -> None:
    requirement = Requirement(requirement_from_conda(f"numpy={version}"))

    padded = [*Version(release).release, 0, 0, 0]
    begins_so = padded[: len(version.split("."))] == [int(part) for part in version.split(".")]
    assert requirement.specifier.contains(release) == begins_so


@given(st.text("numpy=<>!~|,.*[]: 12a_", max_size=15))
def test_any_text_is_translated_to_a_valid_requirement_or_refused(text: str) -> None:
    try:
        translated = requirement_from_conda(text)
    except ImageError:
        return
    assert str(Requirement(translated)) == translated


SPECIFIERS = st.lists(st.tuples(st.sampled_from(["==", ">=", "<", "!=", "~="]), st.just("1."), RELEASES), max_size=3)
EXTRAS = st.sampled_from(["", "[b]", "[c,b]"])
MARKERS = st.sampled_from(["", ' ; python_version>"3.8"', " ; sys_platform == 'linux'"])


@given(SPECIFIERS, EXTRAS, MARKERS, st.sampled_from(["", " --hash=sha256:ab", " --hash sha256:ab  --hash=sha256:cd"]))
def test_a_requirement_in_canonical_form_means_the_same_and_stays_as_it_is(
    specifiers: list[tuple[str, str, str]], extras: str, marker: str, hashes: str
) -> None:
    written = "a" + extras + " " + " , ".join("".join(parts) for parts in specifiers) + marker

    canonical = check_requirement(written + hashes)

    assert check_requirement(canonical) == canonical
    assert Requirement(canonical.partition(" --hash")[0]) == Requirement(written)
    assert canonical.count("--hash=sha256:") == hashes.count("--hash")
