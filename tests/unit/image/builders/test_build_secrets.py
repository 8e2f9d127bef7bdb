"""The settings of this machine that a build gets as secrets."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.addresses import no_proxy_variables
from controlled_rollout.errors import ImageError
from controlled_rollout.image.builders.build_secrets import build_secrets, build_variables
from controlled_rollout.image.builders.indexes_in_use import hosts_in_addresses, netrc_entries, uv_configuration

NOWHERE = Path("/nonexistent")
NO_PIP = "# pip is not called\nRUN install-environment\n"
CALLS_PIP = "RUN --mount=type=secret,id=pip.conf pip download six\n"
NETRC = """machine index.example login build password one
machine github.example
  login me
  password two
default login anybody password three
macdef init
machine in-the-macro
"""


def settings(environment: dict[str, str], requirements: tuple[str, ...] = (), dockerfile: str = NO_PIP) -> list[str]:
    return build_secrets(requirements, dockerfile, environment, system=NOWHERE)["settings"].decode().splitlines()


def test_indexes_and_proxies_are_passed_on_and_nothing_else() -> None:
    given = {
        "UV_DEFAULT_INDEX": "https://index.example/simple",
        "UV_INDEX": "private-one=https://private.example/simple",
        "UV_INDEX_PRIVATE_ONE_PASSWORD": "it's secret",
        "UV_INDEX_OF_OTHERS_PASSWORD": "not yours",
        "https_proxy": "http://proxy.example:3128",
        "PIP_RETRIES": "9",
        "AWS_SECRET_ACCESS_KEY": "not yours",
        "UV_CACHE_DIR": "/home/me/cache",
        "PIP_FIND_LINKS": "/opt/wheels",
    }

    expected = [
        "export NO_PROXY=localhost,127.0.0.1,127.0.0.0/8,::1",
        "export UV_DEFAULT_INDEX=https://index.example/simple",
        "export UV_INDEX=private-one=https://private.example/simple",
        """export UV_INDEX_PRIVATE_ONE_PASSWORD='it'"'"'s secret'""",
        "export https_proxy=http://proxy.example:3128",
        "export no_proxy=localhost,127.0.0.1,127.0.0.0/8,::1",
    ]
    assert settings(given) == expected
    assert settings(given, dockerfile=CALLS_PIP) == sorted(["export PIP_RETRIES=9", *expected])


def test_variables_that_requirements_name_are_passed_on() -> None:
    requirements = ("--extra-index-url https://${USER_NAME}:${TOKEN}@index.example/simple", "six")

    assert settings({"TOKEN": "t", "USER_NAME": "u", "OTHER": "o"}, requirements) == [
        "export TOKEN=t",
        "export USER_NAME=u",
    ]
    with pytest.raises(ImageError, match="the requirements name USER_NAME"):
        settings({"TOKEN": "t"}, requirements)


def test_files_of_this_machine_are_found_where_uv_and_pip_look_for_them(tmp_path: Path) -> None:
    uv = '[[index]]\nurl = "https://index.example/simple"\n'
    for path, text in ((".config/uv/uv.toml", uv), (".netrc", NETRC), (".config/pip/pip.conf", "pip")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "ca.crt").write_text("certificates")

    environment = {"HOME": str(tmp_path), "REQUESTS_CA_BUNDLE": str(tmp_path / "ca.crt")}
    secrets = build_secrets((), CALLS_PIP, environment, system=NOWHERE)

    assert {name: content for name, content in secrets.items() if name != "settings"} == {
        "uv.toml": uv.encode(),
        "netrc": b"machine index.example login build password one\n",
        "pip.conf": b"pip",
        "certificates": b"certificates",
    }
    assert "export SSL_CERT_FILE=/run/secrets/certificates" in secrets["settings"].decode()
    assert "export UV_CONFIG_FILE=/run/secrets/uv.toml" in secrets["settings"].decode()
    assert str(tmp_path) not in secrets["settings"].decode()


def test_files_that_this_machine_lacks_are_no_secrets(tmp_path: Path) -> None:
    secrets = build_secrets(
        (), NO_PIP, {"HOME": str(tmp_path), "SSL_CERT_FILE": str(tmp_path / "missing")}, system=NOWHERE
    )

    assert "certificates" not in secrets
    assert b"SSL_CERT_FILE" not in secrets["settings"]


@pytest.mark.parametrize(
    ("requirements", "environment", "passwords"),
    [
        ((), {}, []),
        ((), {"UV_DEFAULT_INDEX": "https://index.example:8443/simple"}, ["one"]),
        (("--index-url https://INDEX.example/simple",), {}, ["one"]),
        (("--find-links https://${USER_NAME}@github.example/wheels",), {"USER_NAME": "u"}, ["two"]),
        (("mine @ git+https://github.example/me/mine@v1",), {}, ["two"]),
        (("mine @ https://${HOST}/mine.whl",), {"HOST": "github.example"}, ["two"]),
        (("--index-url https://index.example.evil/simple", "six==1.0"), {}, []),
        (("--index-url https://[broken/simple",), {}, []),
    ],
)
def test_of_netrc_only_the_entries_of_the_indexes_in_use_are_handed_over(
    tmp_path: Path, requirements: tuple[str, ...], environment: dict[str, str], passwords: list[str]
) -> None:
    (tmp_path / "netrc").write_text(NETRC)

    secrets = build_secrets(
        requirements, NO_PIP, {"NETRC": str(tmp_path / "netrc"), **environment}, system=tmp_path / "none"
    )

    words = secrets.get("netrc", b"").decode().split()
    assert [word for word in words if word in ("one", "two", "three")] == passwords
    assert (b"NETRC" in secrets["settings"]) == bool(passwords)


def test_an_index_that_only_projects_use_is_taken_out_of_uvs_settings() -> None:
    text = """
exclude-newer = "2026-01-01"
[[index]]
name = "used"
url = "https://u:p@index.example/simple"
[[index]]
name = "other"
url = "https://u:secret@other.example/simple"
explicit = true
[pip]
no-binary = ["a", "b\\u007f"]
"""
    configuration, names = uv_configuration(text)

    expected = tomllib.loads(text)
    expected["index"].pop()
    assert tomllib.loads(configuration) == expected
    assert names == {"used"}


def test_settings_of_uv_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "uv.toml").write_text("[[index")

    with pytest.raises(ImageError, match=r"uv's settings in .*uv\.toml cannot be read"):
        build_secrets((), NO_PIP, {"UV_CONFIG_FILE": str(tmp_path / "uv.toml")}, system=NOWHERE)


@given(st.text(max_size=200), st.sets(st.sampled_from(["a.example", "b.example"])))
def test_any_netrc_gives_entries_of_the_asked_hosts_only(text: str, hosts: set[str]) -> None:
    kept = netrc_entries(f"machine a.example password a-secret\n{text}\nmachine b.example password b-secret", hosts)

    assert ("a-secret" in kept) <= ("a.example" in hosts)
    assert ("b-secret" in kept) <= ("b.example" in hosts)


@given(st.text(max_size=100))
def test_hosts_of_any_text_are_found_without_an_error(text: str) -> None:
    assert "index.example" in hosts_in_addresses([f"{text} https://index.example/simple"])


def test_a_build_on_this_machine_gets_no_secret_but_that_of_its_index() -> None:
    environment = {
        "PATH": "/bin",
        "UV_CACHE_DIR": "/cache",
        "UV_PYTHON": "3.9",
        "VIRTUAL_ENV": "/airflow",
        "AIRFLOW__CORE__FERNET_KEY": "secret",
        "AZURE_CLIENT_SECRET": "secret",
        "SSH_AUTH_SOCK": "/agent",
        "https_proxy": "http://proxy.example:3128",
        "TOKEN": "of the index",
    }
    requirements = ("--index-url https://u:${TOKEN}@index.example/simple",)

    passed = {name: environment[name] for name in ("PATH", "UV_CACHE_DIR", "https_proxy")}
    assert build_variables((), environment) == passed | no_proxy_variables(environment)
    assert build_variables(requirements, environment)["TOKEN"] == "of the index"
    assert build_variables(("a @ git+ssh://git@github.example/a",), environment)["SSH_AUTH_SOCK"] == "/agent"
