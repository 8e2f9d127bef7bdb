"""A registry that means harm: what it sends is checked before it is used, and bounded before it is kept."""

import itertools
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image import Credentials
from controlled_rollout.image.cache import Cache
from controlled_rollout.image.oci import registry_client
from controlled_rollout.image.oci.manifest import CONFIG, INDEX, LAYER, MANIFEST, Descriptor, Manifest, canonical_json
from controlled_rollout.image.oci.referrers import with_referrer
from controlled_rollout.image.oci.registry_client import RegistryClient, Repository
from controlled_rollout.image.scan.installed_packages import packages_of_image
from tests.unit.image.oci.hostile_registry import Answer, HostileRegistry, hostile_registry

DIGEST = "sha256:" + "a" * 64
USER = Credentials("robot", "hunter2")
MEBIBYTE = bytes(1 << 20)


def document(**changes: Any) -> bytes:
    """Return an image's manifest whose only layer is described with these changes."""
    layer = {"mediaType": LAYER, "digest": DIGEST, "size": 7} | changes
    return json.dumps({"config": Descriptor.of(CONFIG, b"{}").document(), "layers": [layer]}).encode()


def repository(server: HostileRegistry) -> Repository:
    return Repository(server.address, "models/digits")


async def read_manifest(answer: Answer) -> Manifest | None:
    with hostile_registry(answer) as server:
        async with RegistryClient() as client:
            return await client.manifest(repository(server), "tag")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "sha256:/../../../../elsewhere/weights"}, "a digest is sha256: and 64 hexadecimal digits"),
        ({"digest": "sha256:" + "A" * 64}, "64 hexadecimal digits"),
        ({"digest": DIGEST + "\n"}, "64 hexadecimal digits"),
        ({"digest": "sha512:" + "a" * 128}, "64 hexadecimal digits"),
        ({"digest": "sha256:" + "٣" * 64}, "64 hexadecimal digits"),
        ({"digest": None}, "64 hexadecimal digits"),
        ({"size": -1}, "a size is a whole number from 0 on"),
        ({"size": "7"}, "a size is a whole number"),
        ({"size": 1e30}, "a size is a whole number"),
        ({"size": True}, "a size is a whole number"),
        ({"mediaType": "text\r\nX-Header: 1"}, "has the media type .*, which is none"),
        ({"mediaType": 1}, "has the media type 1, which is none"),
    ],
)
async def test_a_layer_whose_description_is_not_valid_is_refused_before_a_path_is_made_of_it(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights.layer").write_bytes(b"kept")
    with hostile_registry(Answer(body=document(**changes))) as server:
        async with RegistryClient() as client:
            manifest = await client.manifest(repository(server), "tag")
            assert manifest is not None
            with pytest.raises(ImageError, match=message):
                await packages_of_image(client, repository(server), manifest, Cache.at(tmp_path / "cache"))

        assert len(server.requests) == 1, "nothing but the manifest was asked for"
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"], "and no folder of a cache was made"
    assert (elsewhere / "weights.layer").read_bytes() == b"kept"


async def test_the_digest_of_a_tag_is_refused_unless_it_is_one() -> None:
    headers = {"Docker-Content-Digest": "sha256:/../../elsewhere"}
    with hostile_registry(Answer(headers=headers)) as server:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match=r"has the digest .*64 hexadecimal digits"):
                await client.digest(repository(server), "tag")


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"[" * 100_000, MANIFEST),
        (b'{"config": {}, "layers": ' + b'{"a":' * 100_000, MANIFEST),
        (document()[:-1] + b', "manifests": []}', MANIFEST),
        (document()[:-1] + b', "mediaType": "application/vnd.oci.image.index.v1+json"}', MANIFEST),
        (b'{"config": {}, "layers": [1]}', MANIFEST),
        (b'{"size": 1' + b"0" * 10_000 + b"}", MANIFEST),
        (b"\xff\xfe", MANIFEST),
    ],
)
async def test_a_manifest_that_is_not_clearly_that_of_one_image_is_refused(content: bytes, media_type: str) -> None:
    manifest = await read_manifest(Answer(body=content, headers={"Content-Type": media_type}))

    assert manifest is not None
    with pytest.raises(ImageError, match="not one image"):
        _ = manifest.layers


async def test_a_manifest_without_a_media_type_is_refused() -> None:
    with pytest.raises(ImageError, match="sends a manifest of the media type ''"):
        await read_manifest(Answer(body=document(), headers={}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
DESCRIPTORS = st.fixed_dictionaries(
    {
        "digest": st.sampled_from([DIGEST, "sha256:/../x", DIGEST.upper()]) | JSON,
        "size": st.integers(-2, 10) | JSON,
        "mediaType": st.sampled_from([LAYER, "text", "a/b\n"]) | JSON,
    }
)


@given(JSON | st.fixed_dictionaries({"config": DESCRIPTORS | JSON, "layers": st.lists(DESCRIPTORS, max_size=3) | JSON}))
def test_of_any_manifest_only_valid_descriptors_are_taken(content: object) -> None:
    manifest = Manifest(json.dumps(content).encode(), MANIFEST)
    try:
        blobs = (manifest.config, *manifest.layers)
    except ImageError as error:
        assert len(str(error)) < 1000
        return
    for blob in blobs:
        assert len(blob.digest) == 71 and set(blob.digest[7:]) <= set("0123456789abcdef")
        assert type(blob.size) is int and blob.size >= 0


@given(JSON | st.fixed_dictionaries({"manifests": st.lists(JSON, max_size=3) | JSON}))
def test_any_list_of_referrers_is_extended_or_refused(content: object) -> None:
    index = Manifest(json.dumps(content).encode(), INDEX)
    try:
        extended = with_referrer(index, Manifest(document(), MANIFEST), "text/plain")
    except ImageError:
        return
    assert any(entry["digest"] for entry in json.loads(extended.content)["manifests"] if "digest" in entry)


async def test_an_endless_manifest_is_refused_after_a_few_megabytes() -> None:
    with hostile_registry(Answer(body=itertools.repeat(MEBIBYTE))) as server:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match=r"sends a document of more than 4,194,304 bytes"):
                await client.manifest(repository(server), "tag")
        assert server.sent_bytes < 64 << 20


async def test_an_answer_that_unpacks_is_refused() -> None:
    headers = {"Content-Type": MANIFEST, "Content-Encoding": "gzip"}

    with pytest.raises(ImageError, match=r"compresses what it sends \(gzip\), which was not asked for"):
        await read_manifest(Answer(body=b"\x1f\x8b", headers=headers))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (itertools.repeat(MEBIBYTE), "sends more than 7 bytes of sha256:"),
        (b"short", "sends 5 of 7 bytes of sha256:"),
        (b"another", r"sha256:a+ of .* was asked for, sha256:\w+ came"),
    ],
)
async def test_a_blob_that_is_not_what_the_manifest_says_is_refused_while_it_comes(
    body: bytes | Any, message: str
) -> None:
    with hostile_registry(Answer(body=body)) as server:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match=message):
                await client.blob(repository(server), Descriptor(LAYER, DIGEST, 7))
        assert server.sent_bytes < 64 << 20


async def test_a_blob_that_changes_while_it_is_copied_reaches_no_other_registry_whole() -> None:
    def answer(method: str, path: str) -> Answer:
        return Answer(404) if method == "HEAD" else Answer(202, headers={"Location": "/upload"})

    with hostile_registry(Answer(body=b"another")) as source, hostile_registry(answer) as target:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match="was asked for"):
                await client.copy_blob(repository(source), repository(target), Descriptor(LAYER, DIGEST, 7))
        assert [method for method, _, _ in target.requests] in (["HEAD", "POST"], ["HEAD", "POST", "PATCH"])


async def test_an_endless_error_is_one_short_line_of_text() -> None:
    error = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[2J\n" + "x" * 10_000}]}).encode()
    with hostile_registry(Answer(400, error)) as server:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match=r"400 DENIED: \?\[2J\?xxx") as caught:
                await client.manifest(repository(server), "tag")
            server.answer = lambda method, path: Answer(400, itertools.repeat(MEBIBYTE))
            with pytest.raises(ImageError, match="400 Bad Request"):
                await client.manifest(repository(server), "tag")

    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("what", ["manifest", "blob"])
async def test_an_answer_that_comes_byte_by_byte_is_given_up_after_a_time(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(registry_client, "RESPONSE_TIMEOUT_S", 0.3)
    ended = threading.Event()

    def drip() -> Any:
        while not ended.wait(0.05):
            yield b"{"

    with hostile_registry(lambda method, path: Answer(body=drip())) as server:
        async with RegistryClient() as client:
            with pytest.raises(RegistryUnavailableError, match=r"does not answer within 0\.3 s"):
                if what == "manifest":
                    await client.manifest(repository(server), "tag")
                else:
                    await client.blob(repository(server), Descriptor(LAYER, DIGEST, 5_000))
        ended.set()


async def test_an_upload_that_is_led_on_is_sent_anew() -> None:
    answers = {
        "HEAD": Answer(404),
        "POST": Answer(202, headers={"Location": "/upload"}),
        "PATCH": Answer(202, headers={"Location": "/finish"}),
        "PUT": Answer(201),
    }

    def answer(method: str, path: str) -> Answer:
        return Answer(307, headers={"Location": "/elsewhere"}) if path == "/upload" else answers[method]

    async def content() -> AsyncIterator[bytes]:
        yield b"content"

    with hostile_registry(answer) as server:
        async with RegistryClient() as client:
            pushed = await client.put_blob(repository(server), Descriptor.of(LAYER, b"content"), content)

        assert pushed
        assert [path for method, path, _ in server.requests if method == "PATCH"] == ["/upload", "/elsewhere"]


async def test_of_several_challenges_the_bearers_own_realm_is_taken() -> None:
    with hostile_registry(Answer(body=b'{"token": "a"}')) as service:
        challenge = f'Bearer realm="http://{service.address}/token",service="s", Basic realm="registry"'

        def answer(method: str, path: str) -> Answer:
            known = "Authorization" in server.requests[-1][2]
            return Answer(404) if known else Answer(401, headers={"WWW-Authenticate": challenge})

        with hostile_registry(answer) as server:
            async with RegistryClient() as client:
                assert await client.digest(repository(server), "tag") is None


def asks_for_basic(method: str, path: str) -> Answer:
    return Answer(401, headers={"WWW-Authenticate": 'Basic realm="r"', "Set-Cookie": "session=1; Path=/"})


@pytest.mark.parametrize("status", [202, 307])
async def test_another_port_of_the_host_gets_neither_the_password_nor_a_cookie(status: int) -> None:
    with hostile_registry(Answer(404)) as other, hostile_registry(asks_for_basic) as server:

        def answer(method: str, path: str) -> Answer:
            if not server.requests[-1][2].get("Authorization"):
                return asks_for_basic(method, path)
            if method == "HEAD":
                return Answer(404)
            return Answer(status, headers={"Location": f"http://{other.address}/upload", "Set-Cookie": "session=1"})

        server.answer = answer
        async with RegistryClient({server.address: USER}) as client:
            with pytest.raises(ImageError):
                await client.put_blob(repository(server), Descriptor.of(LAYER, b"content"), b"content")

        assert server.headers("authorization")
        assert other.requests
        assert other.headers("authorization") == other.headers("cookie") == server.headers("cookie") == []


@pytest.mark.parametrize(
    "target",
    [
        "http://registry.example/v2/elsewhere",
        "http://169.254.169.254/metadata",
        "https://127.0.0.1:8443/v2/",
        "http://localhost/v2/",
        "https://[::1]/v2/",
        "https://0.0.0.0:8443/v2/",
        "https://[::]/v2/",
        "https://registry.localhost/v2/",
        "file:///etc/passwd",
        "https://registry.example:port/",
    ],
)
@pytest.mark.parametrize("way", ["redirect", "upload", "token"])
async def test_a_registry_elsewhere_cannot_lead_to_plain_http_nor_to_this_machine(
    monkeypatch: pytest.MonkeyPatch, target: str, way: str
) -> None:
    asked: list[httpx.URL] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        if way == "token":
            return httpx.Response(
                401, headers={"www-authenticate": f'Bearer realm="{target}"'}, stream=httpx.ByteStream(b"")
            )
        status = 404 if request.method == "HEAD" and way == "upload" else 307 if way == "redirect" else 202
        return httpx.Response(status, headers={"location": target}, stream=httpx.ByteStream(b""))

    monkeypatch.setattr(registry_client, "transport_for", lambda url: httpx.MockTransport(handle))
    async with RegistryClient({"registry.example": USER}) as client:
        with pytest.raises(ImageError):
            await client.put_blob(Repository("registry.example", "digits"), Descriptor.of(LAYER, b"x"), b"x")

    assert {url.host for url in asked} == {"registry.example"}
    assert {url.scheme for url in asked} == {"https"}


async def test_redirects_without_end_are_an_error() -> None:
    with hostile_registry(Answer(307, headers={"Location": "/v2/again"})) as server:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match="redirects more than 10 times"):
                await client.digest(repository(server), "tag")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"token": "a\\r\\nX-Header: 1"}', "a token that is not text of one line"),
        (b'{"token": ["a"]}', "answers without a token"),
        (b"[" * 100_000, "answers without a token"),
        (itertools.repeat(MEBIBYTE), "more than 4,194,304 bytes"),
    ],
)
async def test_a_token_that_is_none_is_refused(body: bytes | Any, message: str) -> None:
    with hostile_registry(Answer(body=body)) as service:
        challenge = {"WWW-Authenticate": f'Bearer realm="http://{service.address}/token",service="s"'}
        with hostile_registry(Answer(401, headers=challenge)) as server:
            async with RegistryClient({server.address: USER}) as client:
                with pytest.raises(ImageError, match=message):
                    await client.digest(repository(server), "tag")


async def test_a_challenge_of_any_length_is_read_in_no_time() -> None:
    with hostile_registry(Answer(401, headers={"WWW-Authenticate": "Bearer " + "a" * 60_000})) as server:
        async with RegistryClient() as client:
            with pytest.raises(ImageError, match="leads to"):
                await client.digest(repository(server), "tag")


def test_a_manifest_with_thousands_of_layers_is_refused() -> None:
    layer = {"mediaType": LAYER, "digest": DIGEST, "size": 7}
    content = {"config": Descriptor.of(CONFIG, b"{}").document(), "layers": [layer] * 1001}

    with pytest.raises(ImageError, match="has 1,001 layers: up to 1,000"):
        _ = Manifest(canonical_json(content), MANIFEST).layers
