"""What a version may say of the data that it keeps, and what is refused before anything is tried."""

from typing import Any

import pytest

from controlled_rollout.collection_settings import Collection
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.environment_variables import SecretReference
from controlled_rollout.errors import EndpointError
from controlled_rollout.target.refusals import new_references
from controlled_rollout.version import Version

SALT = {"secret": "data", "key": "salt"}


def collecting(collection: dict[str, Any], **settings: Any) -> Version:
    return Version.model_validate({"name": "blue", "collect_model_data": True, "collection": collection, **settings})


def test_version_that_collects_keeps_everything_as_parquet_unless_told_otherwise() -> None:
    assert Version(name="blue").collected is None
    collected = Version(name="blue", collect_model_data=True).collected
    assert collected == Collection(share=1.0, layout="parquet", max_body_bytes=1_000_000, spool_mb=256)
    assert collected is not None
    assert (collected.keep, collected.mask, collected.hash) == (None, (), ())


def test_settings_survive_the_document_of_an_endpoint() -> None:
    collection = {"keep": ["age", "name"], "mask": ["inputs.age"], "hash": ["name"], "salt": SALT, "share": 0.25}
    endpoint = Endpoint(name="digits").create_version("blue", collect_model_data=True, collection=collection)
    for unset in (True, False):
        assert Endpoint.model_validate(endpoint.model_dump(mode="json", exclude_unset=unset)) == endpoint
    assert endpoint.versions["blue"].collected == Collection.model_validate(collection)


@pytest.mark.parametrize(
    ("collection", "why"),
    [
        ({"share": 0}, "share"),
        ({"share": 1.5}, "share"),
        ({"share": True}, "not true or false"),
        ({"share": float("nan")}, "share"),
        ({"share": "half"}, "share"),
        ({"layout": "avro"}, "layout"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"max_body_bytes": 10**9}, "max_body_bytes"),
        ({"spool_mb": 1}, "spool_mb"),
        ({"spool_mb": 16, "max_body_bytes": 10_000_000}, "would not fit into it"),
        ({"keep": "age"}, "a list of names of columns"),
        ({"keep": [1]}, "keep"),
        ({"keep": ["age", "age"]}, "names \\['age'\\] twice"),
        ({"mask": [" "]}, "empty name"),
        ({"mask": ["age"], "hash": ["inputs.age"], "salt": SALT}, "in mask and in hash"),
        ({"keep": ["name"], "mask": ["age"]}, "masks or hashes \\['age'\\], which keep leaves out"),
        ({"hash": ["name"]}, "needs a salt"),
        ({"salt": SALT}, "hashes no column"),
        ({"hash": ["name"], "salt": "pepper"}, "salt"),
        ({"hash": ["name"], "salt": {"secret": "Data", "key": "salt"}}, "cannot have the name 'Data'"),
        ({"keep": [f"column {number}" for number in range(1_001)]}, "names 1,001 columns"),
        ({"keep": ["x" * 40_000]}, "40,000 characters"),
        ({"colums": ["age"]}, "colums"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_reason(collection: dict[str, Any], why: str) -> None:
    with pytest.raises(EndpointError, match=why):
        collecting(collection)


def test_settings_of_a_version_that_does_not_collect_are_refused() -> None:
    with pytest.raises(EndpointError, match="does not collect: set collect_model_data=True"):
        collecting({"share": 0.5}, collect_model_data=False)
    endpoint = Endpoint(name="digits").create_version("blue", collect_model_data=True, collection={"share": 0.5})
    with pytest.raises(EndpointError, match="does not collect"):
        endpoint.update_version("blue", collect_model_data=False)


def test_workers_need_a_part_of_the_spool_that_a_request_fits_into() -> None:
    collection = {"spool_mb": 16, "max_body_bytes": 1_000_000}
    collecting(collection, worker_count=7)
    with pytest.raises(EndpointError, match="worker_count=8, which share spool_mb=16 MB"):
        collecting(collection, worker_count=8)


def test_salt_is_a_secret_that_has_to_be_there() -> None:
    collection = {"hash": ["name"], "salt": SALT}
    endpoint = Endpoint(name="digits").create_version("blue", collect_model_data=True, collection=collection)
    assert new_references(endpoint, None) == {SecretReference(**SALT): "blue"}
    assert new_references(endpoint, endpoint) == {}


@pytest.mark.parametrize("name", ["CAPTURE_SPOOL", "CAPTURE_SHARE", "CAPTURE_REPLICA"])
def test_variables_of_capture_are_the_targets(name: str) -> None:
    with pytest.raises(EndpointError, match=f"sets {name}, which the image or the target sets"):
        Version(name="blue", environment_variables={name: "x"})
