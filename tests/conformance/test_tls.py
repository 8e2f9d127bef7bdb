"""TLS is the same on both targets, seen by openssl, curl and this project's own commands."""

import asyncio
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.checks.certificate import with_certificate
from controlled_rollout.checks.connectivity import check_connectivity
from controlled_rollout.checks.result import CheckResult
from controlled_rollout.cli import main
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.protocol import EndpointStatus
from tests.conformance.tls_lab import TlsLab, cluster_tls_lab, local_tls_lab
from tests.local.local_target_lab import steady_load
from tests.polling import until
from tests.tls_callers import accepts, curl, serial_number


@pytest.fixture(scope="module")
def target_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsLab]:
    """A target with TLS, in place of the one without that the other modules share."""
    folder = tmp_path_factory.mktemp("tls")
    if request.param == "local":
        with local_tls_lab(folder) as tls_lab:
            yield tls_lab
    else:
        with cluster_tls_lab(request.getfixturevalue("lab"), folder) as tls_lab:
            yield tls_lab


@pytest.fixture(scope="module")
def served() -> dict[str, Endpoint]:
    """The endpoint that the tests of one target share, by the target's URL."""
    return {}


async def endpoint_of(target_lab: TlsLab, served: dict[str, Endpoint]) -> tuple[str, str]:
    """Serve one endpoint of the target, and return its URL and a key; the router takes https from then on."""
    if target_lab.base_url not in served:
        wanted = target_lab.with_version(target_lab.endpoint("tls"), "one")
        served[target_lab.base_url] = await target_lab.serve(wanted)
    name = served[target_lab.base_url].name
    return (await target_lab.target.status(name)).url, (await target_lab.target.keys(name)).primary


async def test_tls_before_1_2_is_refused_and_callers_choose_http_1_1_or_2(
    target_lab: TlsLab, served: dict[str, Endpoint], tmp_path: Path
) -> None:
    url, key = await endpoint_of(target_lab, served)
    scoring = ("-H", f"Authorization: Bearer {key}", "-d", "{}")

    assert url.startswith(f"{target_lab.base_url}/")
    assert [accepts(url, version) for version in ("tls1_1", "tls1_2", "tls1_3")] == [False, True, True]
    answers = [curl(url, *scoring, option, authority=target_lab.authority_file) for option in ("--http2", "--http1.1")]
    assert [(answer.status, answer.protocol) for answer in answers] == [(200, "2"), (200, "1.1")], answers
    assert curl(url, *scoring).exit_code == 60
    # One that waits elsewhere in the local router, because it is large.
    (tmp_path / "large.json").write_text(json.dumps({"more": "x" * 400_000}))
    large = ("-H", f"Authorization: Bearer {key}", "--data-binary", f"@{tmp_path / 'large.json'}")
    answers = [curl(url, *large, option, authority=target_lab.authority_file) for option in ("--http2", "--http1.1")]
    assert [answer.status for answer in answers] == [200, 200], answers


async def test_plain_http_scores_nothing(target_lab: TlsLab, served: dict[str, Endpoint]) -> None:
    url, key = await endpoint_of(target_lab, served)
    path = url.removeprefix(target_lab.base_url)

    answer = curl(target_lab.plain_url + path, "-H", f"Authorization: Bearer {key}", "-d", "{}")

    # No redirect either: a client that follows it would send its key in clear each time.
    assert answer.status in (400, 404), answer


async def test_a_certificate_is_renewed_under_load_and_no_request_fails(
    target_lab: TlsLab, served: dict[str, Endpoint]
) -> None:
    url, key = await endpoint_of(target_lab, served)
    context = ssl.create_default_context(cafile=target_lab.authority_file)
    seen = [await asyncio.to_thread(serial_number, url)]

    async def is_new() -> bool:
        return await asyncio.to_thread(serial_number, url) not in seen

    # Connections that stay open over the renewals, and a new one for each request.
    async with (
        steady_load(url, key, rate=20, connections=2, tls=context) as kept,
        steady_load(url, key, rate=10, connections=2, tls=context, per_connection=1) as fresh,
    ):
        await kept.more(10)
        for _ in range(2):
            await asyncio.to_thread(target_lab.renew, target_lab.authority.pair())
            await until(is_new, "the new certificate is served", timeout_s=120, interval_s=0.2)
            seen.append(await asyncio.to_thread(serial_number, url))
            await fresh.more(10)
            await kept.more(10)

    assert (kept.failed, fresh.failed) == ({}, {}), (kept.refusals, fresh.refusals)
    assert len(set(seen)) == 3


async def test_status_and_check_say_when_the_certificate_ends_and_warn_before(
    target_lab: TlsLab, served: dict[str, Endpoint]
) -> None:
    url, _ = await endpoint_of(target_lab, served)
    name = served[target_lab.base_url].name
    before = await asyncio.to_thread(serial_number, url)
    await asyncio.to_thread(target_lab.renew, target_lab.authority.pair(lasts=timedelta(days=10)))

    async def is_new() -> bool:
        return await asyncio.to_thread(serial_number, url) != before

    await until(is_new, "the certificate that ends soon is served", timeout_s=120, interval_s=0.2)

    # On a busy machine a handshake may take longer than a status waits for it.
    async def status_with_end() -> EndpointStatus | None:
        status = await with_certificate(target_lab.workspace, await target_lab.target.status(name))
        return status if status.certificate_ends else None

    async def check_of_address() -> CheckResult | None:
        results = await check_connectivity(target_lab.workspace, {})
        return next((one for one in results if one.name in ("router", "endpoints' address") and one.works), None)

    status = await until(status_with_end, "the status says when the certificate ends", timeout_s=120, interval_s=1)
    said = await until(check_of_address, "the check reaches the endpoints' address", timeout_s=180, interval_s=1)

    assert status.certificate_ends is not None
    assert timedelta(days=9) < status.certificate_ends - datetime.now(UTC) <= timedelta(days=10)
    assert any("in 9 days" in warning for warning in status.warnings), status.warnings
    assert "in 9 days" in said.message


async def test_the_command_sends_its_request_by_https_with_the_workspaces_authority(
    target_lab: TlsLab, served: dict[str, Endpoint], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await endpoint_of(target_lab, served)
    settings = target_lab.workspace.model_dump(mode="json", exclude_none=True)
    (tmp_path / "workspace.yaml").write_text(json.dumps(settings))

    command = ["endpoint", "score", served[target_lab.base_url].name, "--data", "{}"]
    code = await asyncio.to_thread(main, [*command, "--workspace", str(tmp_path / "workspace.yaml")])

    assert code == 0
    assert "200 from one" in capsys.readouterr().err
