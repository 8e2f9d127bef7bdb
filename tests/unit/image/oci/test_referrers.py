"""Documents attached to an image: the artifact's manifest, and the list of referrers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.manifest import INDEX, MANIFEST, Manifest
from controlled_rollout.image.oci.referrers import artifact_manifest, referrers_tag, with_referrer

SUBJECT = Manifest(b'{"schemaVersion":2}', MANIFEST)


def artifact(name: str) -> Manifest:
    from controlled_rollout.image.oci.manifest import Descriptor

    return artifact_manifest(SUBJECT, Descriptor.of("application/x", name.encode()), name)


def test_an_artifact_refers_to_its_subject_and_has_an_empty_configuration() -> None:
    document = json.loads(artifact("a").content)

    assert document["subject"] == {"mediaType": MANIFEST, "digest": SUBJECT.digest, "size": len(SUBJECT.content)}
    assert document["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert document["config"]["digest"].startswith("sha256:44136fa355b3678a")
    assert document["artifactType"] == "application/x"


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=8))
def test_a_list_of_referrers_has_each_once_and_its_order_is_always_the_same(order: list[str]) -> None:
    index: Manifest | None = None
    for name in order:
        index = with_referrer(index, artifact(name), "application/x")
    expected: Manifest | None = None
    for name in sorted(set(order)):
        expected = with_referrer(expected, artifact(name), "application/x")

    assert index == expected
    assert index is not None and index.media_type == INDEX


def test_entries_of_other_clients_in_a_list_of_referrers_stay() -> None:
    foreign = {
        "mediaType": MANIFEST,
        "digest": "sha256:1",
        "size": 1,
        "artifactType": "signature",
        "annotations": {"a": "b"},
    }
    index = Manifest(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [foreign]}).encode(), INDEX)

    assert foreign in json.loads(with_referrer(index, artifact("a"), "application/x").content)["manifests"]


def test_a_tag_with_something_other_than_a_list_of_referrers_is_not_overwritten() -> None:
    with pytest.raises(ImageError, match="remove its tag"):
        with_referrer(SUBJECT, artifact("a"), "application/x")


def test_referrers_tag_follows_the_oci_specification() -> None:
    assert referrers_tag("sha256:" + "a" * 64) == "sha256-" + "a" * 64
