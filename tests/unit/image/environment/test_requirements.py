"""Lines of requirements files: which are taken, in which form, and which are refused with what advice."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from controlled_rollout.errors import ImageError
from controlled_rollout.image import Environment
from controlled_rollout.image.environment.file import read_environment
from controlled_rollout.image.environment.hash import environment_hash
from controlled_rollout.image.environment.requirements import check_requirement, check_variables_are_set
from tests.unit.image.environment.conftest import Write


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-e .", "-e is not taken.*put the code into the source folder"),
        ("--editable=.", "--editable is not taken.*put the code into the source folder"),
        ("./wheels/a.whl", "local path's content is not covered"),
        ("a @ file:///a.whl", "local path"),
        # Beside the file for pip, it would be the name of a package on the index for uv.
        ("a-1.0-py3-none-any.whl", "is the name of an archive"),
        ("a.tar.gz", "is the name of an archive"),
        ("https://host.example/a.whl", "Write an address as `name @ https"),
        ("--pre", "pre-releases of everything. Name the one that is meant, such as `name==2.0rc1`"),
        ("--index-url https://a.example --pre", "Name the one that is meant"),
        ("--trusted-host index.example", "Leave it out; if the index has a certificate of your own.*SSL_CERT_FILE"),
        ("--require-hashes", "Leave it out: a hash that is written beside a requirement is always checked"),
        ("--prefer-binary", "Leave it out, or write `--only-binary name`"),
        ("--no-deps", "known are --index-url, --extra-index-url"),
        ("--index-url https://a.example b", "unrecognized arguments: b"),
        ("--index-url", "expected one argument"),
        ("--index-url=", "has no value"),
        ("--", "is not taken"),
        ("-i 'https://a.example", "cannot be read: No closing quotation"),
        ("-i 'https://a.example/a b'", "has a space in its value"),
        ("--find-links ./wheels", "needs an address"),
        ("--find-links=file:///wheels", "needs an address"),
        ("--index-url ftp://index.example", "needs an address that begins with https"),
        ("-r missing.txt", r"missing\.txt cannot be read"),
        ("-r requirements.txt", "includes itself"),
        ("-r a\\0b", r"cannot be read"),
        ("-r https://host.example/base.txt", r"is an address.*in the source folder and write -r base\.txt"),
        ("-c https://host.example/constraints-3.11.txt", r"is an address.* and write -c constraints-3\.11\.txt"),
        ("-r file://nas/base.txt", "names another machine, nas"),
        ("-r file://[/base.txt", "cannot be read: Invalid IPv6"),
        ("a=1", "is not understood"),
        ("a b", "is not understood"),
        ("a --no-binary :all:", "is not taken.*known are --hash"),
        ("a --hash=sha256", "hash that is not understood: write --hash=sha256:0123"),
        ("a; " + "(" * 3000, "is not understood"),
    ],
    ids=lambda text: text[:40],
)
def test_a_requirement_that_cannot_be_kept_is_refused_naming_the_file(write: Write, line: str, message: str) -> None:
    path = write("requirements.txt", f"{line}\n")

    with pytest.raises(ImageError, match=message) as refused:
        read_environment(path)

    assert str(path.parent) in str(refused.value)


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        (
            "--index-url https://a.example/simple --extra-index-url=https://b.example/simple",
            ("--index-url https://a.example/simple", "--extra-index-url https://b.example/simple"),
        ),
        (
            "-ihttps://a.example -f https://b.example",
            ("--index-url https://a.example", "--find-links https://b.example"),
        ),
        ("--extra-index https://a.example", ("--extra-index-url https://a.example",)),
        ("--no-index --find-links 'https://a.example'", ("--no-index", "--find-links https://a.example")),
        ("--index-url ${INDEX}", ("--index-url ${INDEX}",)),
        ("--no-binary :all: --only-binary=a,b", ("--no-binary :all:", "--only-binary a,b")),
        ("a==1 --hash sha256:ab --hash=sha256:cd", ("a==1 --hash=sha256:ab --hash=sha256:cd",)),
        ("a @ git+ssh://git@host.example/a.git@v1", ("a @ git+ssh://git@host.example/a.git@v1",)),
    ],
    ids=lambda text: str(text)[:40],
)
def test_options_are_read_as_pip_reads_them_and_each_has_a_line_of_its_own(line: str, taken: tuple[str, ...]) -> None:
    assert check_requirement(line) == taken
    assert Environment(requirements=("b", line)).requirements == ("b", *taken)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://user:s3cret@index.example/simple",
        "--index-url https://user@company.example:s3cret@index.example/simple",
        "--extra-index-url=https://s3cret@index.example/simple",
        "a @ git+https://s3cret@host.example/a.git",
        "a @ git+ssh://git:s3cret@host.example/a.git",
        "a @ https://${USER}:s3cret@host.example/a.whl",
        "a @ https://${USER}:${TOKEN}s3cret@host.example/a.whl",
        "a @ https://account.example/a.whl?sv=2024&sig=s3cret",
        "-r https://user:s3cret@host.example/base.txt",
        "--trusted-host https://user:s3cret@host.example",
        "--pre -i https://user:s3cret@host.example",
        "a --no-binary https://user:s3cret@host.example",
    ],
)
def test_a_password_in_an_address_is_refused_and_not_repeated(write: Write, line: str) -> None:
    path = write("requirements.txt", f"{line}\n")

    with pytest.raises(ImageError, match=r"holds a .*Write a variable in its place") as refused:
        read_environment(path)

    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://${USER}:${TOKEN}@index.example/simple",
        "--extra-index-url https://build:${TOKEN}@index.example/simple",
        "--extra-index-url https://${TOKEN}@index.example/simple",
        "a @ https://account.example/a.whl?sv=2024&sig=${SIGNATURE}",
    ],
)
def test_a_password_may_come_from_a_variable(write: Write, line: str) -> None:
    assert read_environment(write("requirements.txt", line)).requirements == (line,)


def test_a_variable_that_is_not_set_is_named_before_anything_is_built() -> None:
    requirements = ["--index-url https://build:${TOKEN}@${HOST}/simple", "a"]

    check_variables_are_set(requirements, {"TOKEN": "a", "HOST": "b"})
    with pytest.raises(ImageError, match="the requirements name HOST, TOKEN, and this process has no such variables"):
        check_variables_are_set(requirements, {"TOKEN": ""})


def test_a_file_may_be_included_as_a_path_or_by_file_scheme(write: Write, tmp_path: Path) -> None:
    write("a.txt", "a\n")
    (tmp_path / "my files").mkdir()
    write("my files/b.txt", "b\n-r c.txt\n")
    write("my files/c.txt", "c\n")
    path = write(
        "environment.yml",
        "dependencies:\n- pip:\n  - -r file:a.txt\n  - -r 'my files/b.txt'\n"
        f"  - --requirement=file://{tmp_path}/my%20files/c.txt\n  - -r file:./a.txt -r a.txt\n",
    )

    assert read_environment(path).requirements == ("a", "b", "c", "c", "a", "a")


def test_constraints_files_are_read_and_count_in_the_hash(write: Write) -> None:
    write("constraints.txt", "numpy<2  # why\n-r more.txt\n--extra-index-url https://a.example\n")
    write("more.txt", "scipy==1.11\n")
    lines: list[str] = []

    environment = read_environment(write("requirements.txt", "-c constraints.txt\nnumpy\n"), progress=lines.append)

    assert environment.requirements == ("--extra-index-url https://a.example", "numpy")
    assert environment.constraints == ("numpy<2", "scipy==1.11")
    assert environment_hash(environment) != environment_hash(environment.model_copy(update={"constraints": ()}))
    assert lines == [
        "environment: read from requirements.txt and constraints.txt and more.txt: "
        "no Python named; 2 requirements; 2 constraints"
    ]


@pytest.mark.parametrize("line", ["a[b]<2", "a<2 --hash=sha256:ab", "a @ https://host.example/a.whl", "./a"])
def test_a_constraint_that_is_more_than_versions_is_refused(write: Write, line: str) -> None:
    write("constraints.txt", line)

    with pytest.raises(ImageError, match=r"constraints\.txt: "):
        read_environment(write("requirements.txt", "-c constraints.txt"))


def test_files_that_include_each_other_without_end_are_refused(write: Write) -> None:
    for number in range(60):
        write(f"{number}.txt", f"-r {number + 1}.txt\n" * 2)
    with pytest.raises(ImageError, match="more than 50 files include others"):
        read_environment(write("requirements.txt", "-r 0.txt\n"))

    with pytest.raises(ImageError, match="more than 10,000 requirements"):
        read_environment(write("requirements.txt", "--no-index\n" * 10_001))


@given(st.text(max_size=20) | st.text("-rcei= :/@#[]{}$A'\\\"\0\n;", max_size=20).map(lambda text: "a -" + text))
def test_any_line_is_a_requirement_or_refused(line: str) -> None:
    try:
        checked = check_requirement(line)
    except ImageError:
        return
    assert all(check_requirement(text) == (text,) for text in checked)


RELEASES = st.lists(st.integers(0, 99), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
SPECIFIERS = st.lists(st.tuples(st.sampled_from(["==", ">=", "<", "!=", "~="]), st.just("1."), RELEASES), max_size=3)
EXTRAS = st.sampled_from(["", "[b]", "[c,b]"])
MARKERS = st.sampled_from(["", ' ; python_version>"3.8"', " ; sys_platform == 'linux'"])


@given(SPECIFIERS, EXTRAS, MARKERS, st.sampled_from(["", " --hash=sha256:ab", " --hash sha256:ab  --hash=sha256:cd"]))
def test_a_requirement_in_canonical_form_means_the_same_and_stays_as_it_is(
    specifiers: list[tuple[str, str, str]], extras: str, marker: str, hashes: str
) -> None:
    written = "a" + extras + " " + " , ".join("".join(parts) for parts in specifiers) + marker

    (canonical,) = check_requirement(written + hashes)

    assert check_requirement(canonical) == (canonical,)
    assert Requirement(canonical.partition(" --hash")[0]) == Requirement(written)
    assert canonical.count("--hash=sha256:") == hashes.count("--hash")
