"""Lineage in OpenLineage's types. Imported only when OpenLineage's provider asks for it, which needs it installed."""

from typing import Any, Final

import attrs
from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import Dataset as OpenLineageDataset
from openlineage.client.facet_v2 import RunFacet, dataset_version_dataset

from controlled_rollout.operators.datasets import Dataset, Lineage

__all__ = ["RUN_FACET", "RolloutRunFacet", "dataset", "operator_lineage"]

# Custom facets have the name of who defines them before their own.
RUN_FACET: Final = "controlledRollout_rollout"


@attrs.define
class RolloutRunFacet(RunFacet):
    """What a task of a rollout has done; what is not known is None.

    Attributes:
        step: What it does: build, deploy, shift, promote, roll_back.
        workspace: The connection's id.
        endpoint: The endpoint's name.
        version: The version's name.
        revision: The endpoint's, after the change.
        share: The version's per cent of the traffic, after the change.
        control: The endpoint's control, after the change.
        formerControl: The version that a new control has replaced.
        verdict: What a promotion rests on: outcome, reason, who, time.
        reason: Why it was done.
    """

    step: str = ""
    workspace: str | None = None
    endpoint: str | None = None
    version: str | None = None
    revision: int | None = None
    share: float | None = None
    control: str | None = None
    formerControl: str | None = None
    verdict: dict[str, Any] | None = None
    reason: str | None = None


def operator_lineage(lineage: Lineage) -> OperatorLineage[OpenLineageDataset, RunFacet]:
    """Return the lineage of a task as OpenLineage's provider takes it.

    Args:
        lineage: The lineage.
    """
    return OperatorLineage(
        inputs=[dataset(each) for each in lineage.inputs],
        outputs=[dataset(each) for each in lineage.outputs],
        run_facets={RUN_FACET: RolloutRunFacet(**lineage.facts)},
    )


def dataset(described: Dataset) -> OpenLineageDataset:
    """Return a dataset in OpenLineage's type.

    Args:
        described: The dataset.
    """
    version = dataset_version_dataset.DatasetVersionDatasetFacet(described.version) if described.version else None
    return OpenLineageDataset(described.namespace, described.name, facets={"version": version} if version else {})
