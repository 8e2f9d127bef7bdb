import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openlineage.client.serde import Serde

from controlled_rollout import (
    BuildImageOperator,
    PromoteToControlOperator,
    RollBackOperator,
    RolloutVersionOperator,
    control_asset,
)
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.image import ModelSource
from controlled_rollout.operators.datasets import (
    Dataset,
    control_dataset,
    image_dataset,
    model_dataset,
    version_dataset,
)
from controlled_rollout.operators.lineage import asset_to_openlineage
from controlled_rollout.operators.openlineage_events import RUN_FACET

SHA = "sha256:" + "a" * 64
DEFAULT = "controlled_rollout_default"
NAMESPACE = f"controlled-rollout://{DEFAULT}"


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (f"local/digits@{SHA}", Dataset("oci://local", "digits", SHA)),
        (f"registry.example:5000/ml/digits@{SHA}", Dataset("oci://registry.example:5000", "ml/digits", SHA)),
        (f"team/digits@{SHA}", Dataset("oci://docker.io", "team/digits", SHA)),
    ],
)
def test_an_image_is_a_dataset_of_its_registry_with_its_digest_as_version(image: str, expected: Dataset) -> None:
    assert image_dataset(image) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (Path("/data/digits#1.bin"), Dataset("file", "/data/digits#1.bin", "sha256:ff")),
        ("file:///data/digits.bin", Dataset("file", "/data/digits.bin", "sha256:ff")),
        ("models:/digits/7", Dataset("mlflow", "digits", "7")),
        ("models:/digits@champion", Dataset("mlflow", "digits", "sha256:ff")),
        ("s3://bucket/models/digits.bin", Dataset("s3://bucket", "models/digits.bin", "sha256:ff")),
        (
            "abfss://models@account.dfs.core.windows.net/digits/",
            Dataset("abfss://models@account.dfs.core.windows.net", "digits", "sha256:ff"),
        ),
        # No signature and no password leaves the worker.
        (
            "https://a.blob.core.windows.net/models/d.bin?sig=s3cret",
            Dataset("https://a.blob.core.windows.net", "models/d.bin", "sha256:ff"),
        ),
        ("ftp://me:s3cret@files.example/d.bin", Dataset("ftp://files.example", "d.bin", "sha256:ff")),
        ("https://s3cret@files.example:8443/d.bin", Dataset("https://files.example:8443", "d.bin", "sha256:ff")),
    ],
)  # fmt: skip
def test_a_model_is_a_dataset_of_its_store(path: Path | str, expected: Dataset) -> None:
    assert model_dataset(ModelSource("digits", path), "ff") == expected


def test_the_asset_of_a_control_and_the_control_that_a_promotion_reports_are_one_dataset() -> None:
    stored = Endpoint(name="digits").create_version("v1a", is_control=True, image=f"local/digits@{SHA}")
    for conn_id, asset in ((DEFAULT, control_asset("digits")), ("aks/prod", control_asset("digits", "aks/prod"))):
        reported, scheduled_on = control_dataset(conn_id, stored), asset_to_openlineage(asset, None)
        assert (scheduled_on.namespace, scheduled_on.name) == (reported.namespace, reported.name)
        assert reported.version == "v1a"


def test_versions_and_controls_of_all_workspaces_and_endpoints_have_names_of_their_own() -> None:
    names = set()
    for conn_id in ("aks_prod", "aks_staging", "aks", "aks/prod"):
        for endpoint in ("digits", "control", "versions"):
            stored = Endpoint(name=endpoint).create_version("control", is_control=True, image=f"local/digits@{SHA}")
            names.add(control_dataset(conn_id, stored))
            names |= {version_dataset(conn_id, endpoint, version, SHA) for version in ("control", "versions", "v1a")}
    assert len({(each.namespace, each.name) for each in names}) == 4 * 3 * 4
    # As OpenLineage has it: a data source is a scheme with an authority, and a name is a path within.
    assert all(re.fullmatch(r"controlled-rollout://[^/]+", each.namespace) for each in names)
    assert not [each.name for each in names if each.name.startswith("/")]


def test_airflow_finds_the_converter_of_the_asset() -> None:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    manager = ProvidersManagerTaskRuntime()  # type: ignore[no-untyped-call]
    assert manager.asset_to_openlineage_converters["controlled-rollout"] is asset_to_openlineage


def reported(lineage: Any) -> dict[str, Any]:
    """Return what a task reports, as JSON values, without what OpenLineage's client adds."""
    facet = json.loads(Serde.to_json(lineage.run_facets[RUN_FACET]))
    return {
        "inputs": [(each.namespace, each.name, version_of(each)) for each in lineage.inputs],
        "outputs": [(each.namespace, each.name, version_of(each)) for each in lineage.outputs],
        "facts": {name: value for name, value in facet.items() if not name.startswith("_")},
    }


def version_of(dataset: Any) -> str:
    return str(dataset.facets["version"].datasetVersion) if dataset.facets else ""


def test_a_task_that_has_not_succeeded_reports_what_it_was_to_read_and_nothing_made() -> None:
    deploy = RolloutVersionOperator(task_id="deploy", endpoint="digits", version="v2a", image=f"local/digits@{SHA}")
    expected = {
        "inputs": [("oci://local", "digits", SHA)],
        "outputs": [],
        "facts": {
            "step": "deploy", "workspace": "controlled_rollout_default", "endpoint": "digits", "version": "v2a",
        },
    }  # fmt: skip
    assert reported(deploy.get_openlineage_facets_on_start()) == expected
    assert reported(deploy.get_openlineage_facets_on_failure(None)) == expected
    assert reported(deploy.get_openlineage_facets_on_complete(None)) == expected, "it was skipped"


def test_a_build_that_begins_reports_the_project_folder_and_the_models() -> None:
    from airflow.sdk import DAG

    with DAG("weekly", schedule=None) as dag:
        build = BuildImageOperator(
            task_id="build", name="digits", source_dir="models", models={"digits": "/data/d.bin"}
        )
    folder = str(Path(dag.folder) / "models")
    assert reported(build.get_openlineage_facets_on_start()) == {
        "inputs": [("file", folder, ""), ("file", "/data/d.bin", "")],
        "outputs": [],
        "facts": {"step": "build"},
    }


def test_a_promotion_reports_the_version_the_control_and_what_it_rests_on() -> None:
    first = Endpoint(name="digits", revision=7).create_version("v1a", is_control=True, image=f"local/digits@{SHA}")
    stored = first.create_version("v2a", image=f"local/digits@{SHA}").promote("v2a")
    promote = PromoteToControlOperator(task_id="promote", endpoint="digits", version="v2a")
    verdict = {"outcome": "pass", "reason": "no claim alarms", "who": "weekly/run-1/gate", "time": "2026-01-05"}

    promote.changed(
        stored,
        "v2a",
        inputs=[version_dataset(DEFAULT, "digits", "v2a", stored.versions["v2a"].image)],
        outputs=[control_dataset(DEFAULT, stored)],
        formerControl="v1a",
        verdict=verdict,
    )
    assert reported(promote.get_openlineage_facets_on_complete(None)) == {
        "inputs": [(NAMESPACE, "digits/versions/v2a", SHA)],
        "outputs": [(NAMESPACE, "digits/control", "v2a")],
        "facts": {
            "step": "promote", "workspace": "controlled_rollout_default", "endpoint": "digits", "version": "v2a",
            "revision": 7, "share": 100.0, "control": "v2a", "formerControl": "v1a", "verdict": verdict,
        },
    }  # fmt: skip


def test_a_roll_back_to_a_former_control_reports_it_as_the_new_one_and_another_the_version_only() -> None:
    first = Endpoint(name="digits", revision=7).create_version("v1a", is_control=True, image=f"local/digits@{SHA}")
    stored = first.create_version("v2a", image=f"local/digits@{SHA}")
    back = RollBackOperator(task_id="roll_back", endpoint="digits", version="v2a", reason="errors are higher")
    back.change_reason = back.reason

    back._note_lineage(stored, None)
    treatment = reported(back.get_openlineage_facets_on_complete(None))
    assert treatment["outputs"] == [(NAMESPACE, "digits/versions/v2a", SHA)]
    assert (treatment["facts"]["share"], treatment["facts"]["reason"]) == (0, "errors are higher")

    from controlled_rollout.operators.new_control import NewControl

    back._note_lineage(stored, NewControl(former_control="v2a"))
    control = reported(back.get_openlineage_facets_on_complete(None))
    assert control["inputs"] == [(NAMESPACE, "digits/versions/v1a", SHA)]
    assert control["outputs"] == [(NAMESPACE, "digits/control", "v1a")]
    assert (control["facts"]["control"], control["facts"]["formerControl"]) == ("v1a", "v2a")


def test_nothing_of_openlineage_is_imported_until_its_provider_asks() -> None:
    script = """
import sys, controlled_rollout
from controlled_rollout.endpoint import Endpoint
for name in controlled_rollout.__all__:
    getattr(controlled_rollout, name)
task = controlled_rollout.PromoteToControlOperator(task_id="promote", endpoint="digits", version="v2a")
task.changed(Endpoint(name="digits"), "v2a")
# Airflow reads the entry points of all providers: `get_provider_info` alone is no use of one.
imported = [name for name in sys.modules if name.partition(".")[0] == "openlineage"]
assert not imported, imported
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
