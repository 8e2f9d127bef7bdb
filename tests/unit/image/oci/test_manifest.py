"""What a layer on top changes in an image's manifest and configuration."""

import json

import pytest

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.manifest import (
    CONFIG,
    LAYER,
    MANIFEST,
    Descriptor,
    Manifest,
    canonical_json,
    image_with_layer,
)

BASE_DIGEST, TOP_DIGEST = "sha256:" + "b" * 64, "sha256:" + "c" * 64
BASE_CONFIG = canonical_json(
    {
        "architecture": "amd64",
        "config": {"Env": ["PATH=/bin", "AML_APP_ROOT=/elsewhere"], "User": "10001"},
        "rootfs": {"type": "layers", "diff_ids": [BASE_DIGEST]},
        "history": [{"created_by": "base"}],
    }
)
BASE_LAYER = Descriptor(LAYER, BASE_DIGEST, 7)
ON_TOP = Descriptor(LAYER, TOP_DIGEST, 9)


def manifest(config: bytes) -> Manifest:
    document = {"config": Descriptor.of(CONFIG, config).document(), "layers": [BASE_LAYER.document()]}
    return Manifest(canonical_json(document), MANIFEST)


def test_a_layer_is_put_on_top_and_everything_else_stays() -> None:
    base = manifest(BASE_CONFIG)

    config, image = image_with_layer(base, BASE_CONFIG, ON_TOP, variables={"AML_APP_ROOT": "/opt/app"}, created_by="us")

    document = json.loads(config)
    assert document["config"] == {"Env": ["PATH=/bin", "AML_APP_ROOT=/opt/app"], "User": "10001"}
    assert document["rootfs"]["diff_ids"] == [BASE_DIGEST, TOP_DIGEST]
    assert [step["created_by"] for step in document["history"]] == ["base", "us"]
    assert image.layers == (BASE_LAYER, ON_TOP)
    assert image.config == Descriptor.of(CONFIG, config)
    assert json.loads(image.content)["annotations"] == {"org.opencontainers.image.base.digest": base.digest}


def test_equal_inputs_give_equal_manifests() -> None:
    settings = {"B": "1", "A": "2"}

    images = [
        image_with_layer(manifest(BASE_CONFIG), BASE_CONFIG, ON_TOP, variables=order, created_by="us")[1].digest
        for order in (settings, dict(reversed(settings.items())))
    ]

    assert len(set(images)) == 1


@pytest.mark.parametrize("config", [b"", b"[]", b"{}", b'{"config": 1}', b'{"rootfs": {}}'])
def test_a_configuration_that_cannot_be_read_is_an_error(config: bytes) -> None:
    with pytest.raises(ImageError, match="has no configuration that can be read"):
        image_with_layer(manifest(config), config, ON_TOP, variables={}, created_by="us")


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"manifests": []}', b'{"config": {}, "layers": []}'])
def test_a_manifest_of_no_image_is_an_error(content: bytes) -> None:
    with pytest.raises(ImageError, match="not one image"):
        _ = Manifest(content, "application/vnd.oci.image.index.v1+json").layers
