"""Docker steps in the environment image's Dockerfile: which are taken, and which are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image import Environment
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
        (
            "pip download -i https://build:$TOKEN@host.example/",
            "RUN pip download -i https://build:$TOKEN@host.example/",
        ),
        ("ENV\tMODE=fast", "ENV\tMODE=fast"),
        ("RUN R CMD INSTALL x", "RUN R CMD INSTALL x"),
        ("wc <<<$A && echo $((1<<2))", "RUN wc <<<$A && echo $((1<<2))"),
    ],
)
def test_a_step_is_an_instruction_or_a_command(step: str, line: str) -> None:
    assert f"\n{line}\n" in with_docker_steps(DOCKERFILE, [step])


@pytest.mark.parametrize(
    "step",
    [
        "ENV TOKENIZERS_PARALLELISM=false",
        "ENV MAX_TOKENS=512 MAX_NEW_TOKENS 100",
        "ARG PASSWORD_FILE=/etc/app/password",
        "ENV HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
        "ENV USE_AUTH_TOKEN=True",
        "ENV PAD_TOKEN=<pad> EOS_TOKEN </s>",
        "ENV SECRETS_FOLDER=/run/secrets",
        "ENV TOKEN_TYPE=bearer",
        "ENV DB_PASSWORD=/run/secrets/db",
        "ARG TOKEN",
        "ENV TOKEN= PASSWORD=''",
        "ENV TOKEN=$OTHER PASSWORD=${OTHER}",
        "ENV PATH=/opt/pat:$PATH",
        "ENV OLDPWD=/a PWD=/b PYTHONPATH=/a",
        "ENV PASS=train COMPASS=north PASS_COUNT=3 BY_PASS=true",
        "LABEL com.example.tokens=2",
        "RUN TOKEN=$(cat /run/secrets/token) make",
        "RUN export PASSWORD=$OTHER && MAX_TOKENS=5 make --tokens=3",
        'RUN API_KEY="`cat /run/secrets/key`" make',
        "RUN sed -i s/token=.*/x/ a",
    ],
)
def test_a_setting_that_only_sounds_like_a_secret_is_taken(step: str) -> None:
    assert f"\n{step}\n" in with_docker_steps(DOCKERFILE, [step])


@pytest.mark.parametrize("word", ["env A=b", "Run apt-get update", "arg A", "user root"])
def test_an_instruction_in_small_letters_is_refused_saying_how_to_write_it(word: str) -> None:
    first = word.split()[0]
    with pytest.raises(ImageError, match=rf"write {first.upper()} in capitals .* or `RUN {first} …` for the command"):
        with_docker_steps(DOCKERFILE, [word])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("RUN apt-get update \\", "the next line would be a part of it"),
        ("RUN a \\\n b \\  ", "the next line would be a part of it"),
        ("ENV A=b \\\n", "the next line would be a part of it"),
        ("RUN cat <<EOF", "its text would be the lines after it"),
        ("cat 3<<-'EOF' > a", "its text would be the lines after it"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("RUN", "is empty"),
        ("ENV A='b", "cannot be read: No closing quotation"),
        ("MAKE all", "If it is a command, write `RUN MAKE …`"),
        ("copy a b", "copy is not allowed"),
    ],
)
def test_a_step_that_is_not_one_whole_instruction_is_refused(step: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        with_docker_steps(DOCKERFILE, [step])


def test_a_step_is_refused_when_the_environment_is_read() -> None:
    with pytest.raises(ImageError, match="copy is not allowed"):
        Environment(docker_steps=("copy a b",))


@given(st.text(max_size=30) | st.text("ENV ARGUN=A'\"\\\n\t<$b", max_size=30))
def test_any_text_is_one_instruction_or_refused(step: str) -> None:
    before = with_docker_steps(DOCKERFILE, []).splitlines()
    try:
        after = with_docker_steps(DOCKERFILE, [step])
    except ImageError:
        return
    added = re.sub(r"\\[ \t]*\r?\n", " ", after).split("\n")
    assert len(added) == len(re.sub(r"\\[ \t]*\r?\n", " ", "\n".join(before)).split("\n")) + 2


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
        ("ENV\tHF_TOKEN=abc123", "HF_TOKEN"),
        ("ARG TOKEN='abc123'", "TOKEN"),
        ("ENV githubToken=abc123 password=$A", "githubToken"),
        ("ENV DBPASSWORD=abc123", "DBPASSWORD"),
        ("ENV SECRET_KEY_BASE=abc123", "SECRET_KEY_BASE"),
        ("ENV A=b PASSWORD2=abc123", "PASSWORD2"),
        ("ENV TOKEN_B64=abc123", "TOKEN_B64"),
        ("RUN HF_TOKEN=abc123 make", "HF_TOKEN"),
        ("RUN true && export DB_PASSWORD='abc123'", "DB_PASSWORD"),
        ("echo 'token=abc123' > ~/.config", "token"),
        ("RUN make --api-key=abc123", "api-key"),
        ("RUN make -DTOKEN=abc123", "DTOKEN"),
        ("ENV DB_PWD=abc123 PWD=/a", "DB_PWD"),
        ("ENV SMTP_PASS=abc123", "SMTP_PASS"),
        ("ENV ENCRYPTION_KEY=abc123", "ENCRYPTION_KEY"),
        ("ENV SigningKey=abc123", "SigningKey"),
        ("ENV DJANGO_SECRET_KEY=abc123", "DJANGO_SECRET_KEY"),
        ("ENV AZURE_STORAGE_CONNECTION_STRING=abc123", "AZURE_STORAGE_CONNECTION_STRING"),
        ("ENV TOKEN=${TOKEN:-abc123}", "TOKEN"),
        ("LABEL com.example.token=abc123", "com.example.token"),
        ("ENV A=b \\\n  DB_PASSWORD=abc123", "DB_PASSWORD"),
        ("ENV A=b DB_PASS\\\nWORD=abc123", "DB_PASSWORD"),
        ("ENV A=b DB_PASS\\\n # c \\\nWORD=abc123", "DB_PASSWORD"),
        ("RUN curl 'https://account.example/a?sig=abc123'", "an address with a secret"),
        ("RUN pip install --index-url https://me:abc123@host.example/simple x", "an address with a password"),
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


@pytest.mark.parametrize(
    "step",
    [
        "--mount=type=cache,target=/x make",
        "RUN --mou\\\nnt=type=cache,target=/x make",
        'RUN --mou"nt"=type=cache,target=/x make',
        "RUN --mou\\nt=type=cache,target=/x make",
        "RUN --security=insecure make",
        "RUN\t--mount=type=cache,target=/x make",
    ],
)
def test_a_shared_mount_is_found_however_it_is_written(step: str) -> None:
    with pytest.raises(ImageError, match=r"has the mount 'type=cache|known are --mount=… and --network=…"):
        with_docker_steps(DOCKERFILE, [step])


def test_a_step_may_mount_secrets_and_files_of_its_own_build() -> None:
    step = "RUN --mount=type=secret,id=settings,required --mount=target=/build,type=bind --network=host true"

    assert step in with_docker_steps(DOCKERFILE, [step])
