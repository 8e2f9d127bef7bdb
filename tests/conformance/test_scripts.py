"""What a script finds in its environment, with secrets that are nowhere but there, and what it leaves behind."""

import json
import secrets
import time

import httpx
import pytest

from controlled_rollout.endpoint import Auth
from controlled_rollout.errors import EndpointError
from tests.conformance.target_lab import CHANGE, TargetLab

# What shells, Kubernetes and JSON treat specially.
PLAIN = "$(AML_APP_ROOT) $$HOME 'a' \"b\" ü\nsecond line = 2"


async def test_plain_variables_and_keys_of_secrets_reach_the_script(target_lab: TargetLab) -> None:
    lab, value, secret = target_lab, secrets.token_hex(8), f"store-{secrets.token_hex(3)}"
    await lab.target.store_secret(secret, {"token": value, "other.key": "unused"})
    await lab.target.store_secret(secret, {"second": "2"})
    variables = {
        "PLAIN": PLAIN,
        "EMPTY": "",
        "MAX_BODY_BYTES": "200",
        "TOKEN": {"secret": secret, "key": "token"},
        "SECOND": {"secret": secret, "key": "second"},
    }

    endpoint = await lab.serve(lab.with_version(lab.endpoint("variables"), "one", environment_variables=variables))
    key = (await lab.target.keys(endpoint.name)).primary
    answer = await lab.ask(endpoint, key=key, variables=["PLAIN", "EMPTY", "TOKEN", "SECOND"])
    too_long = await lab.ask(endpoint, key=key, variables=["x" * 200])
    status = await lab.target.status(endpoint.name)

    assert json.loads(answer.body)["variables"] == {"PLAIN": PLAIN, "EMPTY": "", "TOKEN": value, "SECOND": "2"}
    # A setting of the scoring runtime that is no field of a version.
    assert too_long.status == 413
    known = [revision.model_dump_json() for revision in await lab.target.history(endpoint.name)]
    known += [status.model_dump_json(), await lab.target.logs(endpoint.name, "one")]
    assert not [text for text in known if value in text]


async def test_a_page_of_an_origin_that_a_version_names_may_call_an_endpoint_without_keys(
    target_lab: TargetLab,
) -> None:
    lab, origin = target_lab, "https://pages.example"
    variables = {"AML_CORS_ORIGINS": f"https://others.example, {origin}"}
    empty = lab.endpoint("open", auth=Auth.NONE)
    endpoint = await lab.serve(lab.with_version(empty, "one", environment_variables=variables))
    url = (await lab.target.status(endpoint.name)).url

    async with httpx.AsyncClient() as browser:
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        before = await browser.options(url, headers=asked)
        scored = await browser.post(url, json={}, headers={"Origin": origin})
        of_other = await browser.post(url, json={}, headers={"Origin": "https://evil.example"})

    assert (before.status_code, scored.status_code, of_other.status_code) == (200, 200, 200)
    assert before.headers["Access-Control-Allow-Origin"] == scored.headers["Access-Control-Allow-Origin"] == origin
    assert "Access-Control-Allow-Origin" not in of_other.headers


async def test_a_version_that_names_a_secret_which_is_not_there_is_refused_before_anything_changes(
    target_lab: TargetLab,
) -> None:
    lab, secret = target_lab, f"store-{secrets.token_hex(3)}"
    variables = {"TOKEN": {"secret": secret, "key": "token"}}
    wanted = lab.with_version(lab.endpoint("no-secret"), "one", environment_variables=variables)

    with pytest.raises(EndpointError, match=f"{secret}.*there is no such secret"):
        await lab.apply(wanted)
    await lab.target.store_secret(secret, {"tokens": "x"})
    with pytest.raises(EndpointError, match="it has tokens"):
        await lab.apply(wanted)

    assert wanted.name not in await lab.target.endpoints()


async def test_an_endpoints_own_secrets_can_be_neither_stored_nor_read_by_a_version(target_lab: TargetLab) -> None:
    lab = target_lab
    own = f"controlled-rollout-{lab.endpoint('other').name}-keys"

    with pytest.raises(EndpointError, match="endpoints' own secrets"):
        await lab.target.store_secret(own, {"primary": "mine"})
    with pytest.raises(EndpointError, match="endpoints' own secrets"):
        variables = {"KEY": {"secret": own, "key": "primary"}}
        lab.with_version(lab.endpoint("reader"), "one", environment_variables=variables)


async def test_a_version_whose_script_has_started_processes_ends_at_once(target_lab: TargetLab) -> None:
    lab = target_lab
    variables = {"STARTS_PROCESSES": "1"}
    endpoint = await lab.serve(lab.with_version(lab.endpoint("processes"), "one", environment_variables=variables))

    begun = time.monotonic()
    await lab.target.delete(endpoint.name, CHANGE)

    # A replica that waited for them would take its whole drain, of a minute or more.
    assert time.monotonic() - begun < 40
