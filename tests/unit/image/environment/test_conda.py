"""Conda's dependencies, translated to the Python package index's: which are, and which are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.conda import (
    python_version_from_conda,
    requirement_from_conda,
    translate_conda,
)
from controlled_rollout.image.environment.conda_names import OTHER_NAMES, SAME_NAMES


def test_conda_names_that_are_not_known_on_the_index_are_refused_all_at_once() -> None:
    with pytest.raises(
        ImageError, match=r"conda packages _libgcc_mutex, ffmpeg, nomkl are not known .* `pip:`"
    ) as refused:
        translate_conda(["numpy", "nomkl", "ffmpeg=4", "_libgcc_mutex=0.1", "ffmpeg"])

    assert "numpy" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "nomkl",
        "ffmpeg",
        "snappy",
        "openssl",
        "git",
        "graphviz",
        "xxhash",
        "msgpack",
        "flatbuffers",
        "faiss",
        "kubernetes",
        "ignite",
    ],
)
def test_a_conda_name_that_the_index_has_for_something_else_is_not_a_known_one(name: str) -> None:
    with pytest.raises(ImageError, match=f"conda packages {name} are not known .* `index_names: {{{name}: name-on-the"):
        requirement_from_conda(name)


def test_an_author_maps_a_name_or_leaves_it_out() -> None:
    names = {"acme-tools": "acme.tools", "nomkl": "", "numpy": "our-numpy", "pip": "pip"}

    python, requirements = translate_conda(["acme-tools=2", "nomkl", "numpy>=1", "pip=24", "scipy"], names)

    assert python is None
    assert requirements == ("acme.tools==2.*", "our-numpy>=1", "pip==24.*", "scipy")


def test_known_names_are_canonical_and_none_is_twice() -> None:
    assert all(canonicalize_name(name, validate=True) == name for name in [*SAME_NAMES, *OTHER_NAMES])
    assert not SAME_NAMES & {*OTHER_NAMES}


@pytest.mark.parametrize(("written", "advice"), [("a=1=py_0", "--from-history"), ("a[version=1]", "properties")])
def test_what_an_exported_conda_file_has_is_refused_with_what_to_do(written: str, advice: str) -> None:
    with pytest.raises(ImageError, match=re.escape(advice)):
        translate_conda([written])


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
        ("numpy=1.20*", "numpy==1.20.*"),
        ("numpy 1.20*", "numpy==1.20.*"),
        ("numpy 1.20.*", "numpy==1.20.*"),
        ("numpy!=1.20*", "numpy!=1.20.*"),
        ("numpy>=1.20.*,<2.*", "numpy<2,>=1.20"),
        ("numpy=*", "numpy"),
        ("numpy *", "numpy"),
        ("numpy=1.26=*", "numpy==1.26.*"),
        ("numpy 1.26 *", "numpy==1.26"),
        ("numpy * *", "numpy"),
        ("conda-forge::numpy=1.26", "numpy==1.26.*"),
        ("defaults::pytorch", "torch"),
        ("tensorflow-gpu=2.4", "tensorflow==2.4.*"),
        ("typing_extensions", "typing_extensions"),
        ("ruamel.yaml>=0.17", "ruamel.yaml>=0.17"),
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
        "acme::numpy",
        "https://repo.example/conda-forge::numpy",
        "./numpy-1.26-0.conda",
        "numpy[version='>1']",
        "numpy=1.2|1.3",
        "numpy=1.1.1w",
        "numpy=1.*3",
        "numpy~=1.2.*",
        "numpy>=*",
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
        ("python=3.11.*=*_cpython", "3.11"),
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


@given(st.text("numpy=<>!~|,.*[]: 12a_", max_size=15) | st.text(max_size=8))
def test_any_text_is_translated_to_a_valid_requirement_or_refused(text: str) -> None:
    try:
        translated = requirement_from_conda(text)
    except ImageError:
        return
    assert str(Requirement(translated)) == translated
