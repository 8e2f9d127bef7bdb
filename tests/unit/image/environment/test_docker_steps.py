"""Docker steps in the environment image's Dockerfile: which are taken, and which are refused."""

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image.environment.docker_steps import with_docker_steps
from controlled_rollout.image.scoring_runtime import build_files

DOCKERFILE = build_files()["Dockerfile"].read_text()


def test_steps_come_after_the_base_image_and_before_the_installation() -> None:
    lines = with_docker_steps(DOCKERFILE, ["RUN first", "ENV A=b"]).splitlines()

    assert lines.index("FROM ${BASE_IMAGE}") < lines.index("RUN first") < lines.index("ENV A=b")
    assert lines.index("ENV A=b") < lines.index('ARG PYTHON=">=3.10"'), "which only the installation needs"


def test_digest_does_not_depend_on_user_names_of_the_builder() -> None:
    assert not [line for line in DOCKERFILE.splitlines() if line.startswith(("COPY", "ADD"))]


def test_without_steps_nothing_changes() -> None:
    assert with_docker_steps(DOCKERFILE, []) == DOCKERFILE


@pytest.mark.parametrize(
    ("step", "line"),
    [
        ("apt-get update", "RUN apt-get update"),
        ("RUN a && \\\n    b", "RUN a && \\\n    b"),
        ("ENV MODE=fast", "ENV MODE=fast"),
        ("RUN curl https://${USER}@host.example/", "RUN curl https://${USER}@host.example/"),
    ],
)
def test_a_step_is_an_instruction_or_a_command(step: str, line: str) -> None:
    if "@" in step:
        with pytest.raises(ImageError, match="an address with a user and a password"):
            with_docker_steps(DOCKERFILE, [step])
    else:
        assert line in with_docker_steps(DOCKERFILE, [step])


@pytest.mark.parametrize("instruction", ["FROM other", "COPY a b", "ADD a b", "ENTRYPOINT x", "CMD x", 'SHELL ["x"]'])
def test_instructions_that_would_make_it_another_image_are_refused(instruction: str) -> None:
    with pytest.raises(ImageError, match=r"is not allowed, only RUN, ENV"):
        with_docker_steps(DOCKERFILE, [instruction])


def test_a_second_line_is_refused() -> None:
    with pytest.raises(ImageError, match="has more than one line"):
        with_docker_steps(DOCKERFILE, ["RUN a\nFROM other"])


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ("ARG INDEX_TOKEN=abc123", "INDEX_TOKEN"),
        ("ENV DB_PASSWORD abc123", "DB_PASSWORD"),
        ("ENV A=b my_api_key=abc123", "my_api_key"),
        ("RUN pip install --index-url https://me:abc123@host.example/simple x", "an address with a user"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(step: str, named: str) -> None:
    with pytest.raises(ImageError, match=f"holds {named}.*--mount=type=secret") as caught:
        with_docker_steps(DOCKERFILE, [step])

    assert "abc123" not in str(caught.value)


@pytest.mark.parametrize(
    "mount",
    [
        "type=cache,target=/root/.cache",
        "target=/root/.cache,type=cache",
        "type=$KIND,target=/x",
        '"type=cache,target=/x"',
        "type=bind,from=docker.io/library/python,target=/x",
        "from=docker.io/library/python",
        "type=ssh",
    ],
)
def test_a_step_that_shares_files_with_other_builds_is_refused(mount: str) -> None:
    with pytest.raises(ImageError, match="would be shared with other builds"):
        with_docker_steps(DOCKERFILE, [f"RUN --mount=type=tmpfs,target=/tmp --mount={mount} make"])


def test_a_step_may_mount_secrets_and_files_of_its_own_build() -> None:
    step = "RUN --mount=type=secret,id=settings,required --mount=target=/build,type=bind --network=host true"

    assert step in with_docker_steps(DOCKERFILE, [step])
