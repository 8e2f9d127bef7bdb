"""Names of repositories, and the URLs of their registries."""

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image.container_image import build_container_image
from controlled_rollout.image.oci.registry_client import Repository


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("registry.example/models/digits", "https://registry.example/v2/models/digits"),
        ("127.0.0.1:5000/digits", "http://127.0.0.1:5000/v2/digits"),
        ("[::1]:5000/digits", "http://[::1]:5000/v2/digits"),
        ("localhost/a.b/c__d/e-f", "http://localhost/v2/a.b/c__d/e-f"),
        ("10.0.0.1:5000/digits", "https://10.0.0.1:5000/v2/digits"),
        ("docker.io/me/digits", "https://registry-1.docker.io/v2/me/digits"),
    ],
)
def test_plain_http_is_used_for_this_machine_only(text: str, url: str) -> None:
    assert Repository.parse(text).url == url
    assert str(Repository.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["digits", "me/digits", "https://registry.example/a", "registry.example/", "registry.example/A", "r.io/a:1"]
)
def test_text_that_is_not_a_repository_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"repository .* (does not begin with a registry|is not valid)"):
        Repository.parse(text)


async def test_the_name_of_the_environments_is_reserved(tmp_path: "pytest.TempPathFactory") -> None:
    with pytest.raises(ImageError, match="'environments' is reserved"):
        await build_container_image(str(tmp_path), name="environments", registry="r.example/a", cache=tmp_path)  # type: ignore[arg-type]
