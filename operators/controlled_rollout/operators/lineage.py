"""What tasks report to OpenLineage: models and folders become images, images versions, and a version the control.

OpenLineage is imported only when its provider asks for this, which it does only where it is installed and configured.
Airflow imports this module while it parses DAGs, for the assets' converter: it has to stay light.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from controlled_rollout.operators.datasets import Dataset, Lineage, asset_dataset, image_dataset

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Asset
    from openlineage.client.event_v2 import Dataset as OpenLineageDataset
    from openlineage.client.facet_v2 import RunFacet

    from controlled_rollout.endpoint import Endpoint

__all__ = ["EndpointLineage", "ReportsLineage", "asset_to_openlineage"]


class ReportsLineage:
    """A task that reports to OpenLineage what it reads when it begins, and what it has made when it succeeds."""

    lineage: Lineage | None = None

    def expected_lineage(self) -> Lineage:
        """Return what the task's arguments say of its inputs; a task that fails or is skipped reports no more."""
        raise NotImplementedError

    def get_openlineage_facets_on_start(self) -> "OperatorLineage[OpenLineageDataset, RunFacet]":
        """Return what the task is about to read; the OpenLineage provider calls it when the task begins."""
        return _as_openlineage(self.expected_lineage())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> "OperatorLineage[OpenLineageDataset, RunFacet]":
        """Return what the task has read and made; the OpenLineage provider calls it after the task."""
        return _as_openlineage(self.lineage or self.expected_lineage())

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> "OperatorLineage[OpenLineageDataset, RunFacet]":
        """Return what the task has read; the OpenLineage provider calls it when the task has failed."""
        return _as_openlineage(self.expected_lineage())


class EndpointLineage(ReportsLineage):
    """The same for a task that changes a version of an endpoint, as its arguments name them."""

    endpoint: str
    conn_id: str
    # What the task does with the version, by the verb that the record has.
    lineage_step = ""

    def expected_lineage(self) -> Lineage:
        """Return the image of the version, if the task knows it, and which version of which endpoint it is about."""
        image, version = str(getattr(self, "image", None) or ""), str(getattr(self, "version", None) or "")
        facts = {"step": self.lineage_step, "workspace": self.conn_id, "endpoint": str(self.endpoint)}
        if version:
            facts["version"] = version
        return Lineage((image_dataset(image),) if "@" in image else (), facts=facts)

    def changed(
        self,
        stored: "Endpoint",
        version: str,
        *,
        inputs: Sequence[Dataset] = (),
        outputs: Sequence[Dataset] = (),
        **facts: Any,
    ) -> None:
        """Remember what the task has made of the endpoint.

        Args:
            stored: The endpoint as stored.
            version: The version that it was about.
            inputs: What the change was made of; the version itself if it was there before.
            outputs: What was made.
            **facts: Further facts about the rollout.
        """
        known = {
            **self.expected_lineage().facts,
            "version": version,
            "revision": stored.revision,
            "share": stored.effective_traffic().get(version),
            "control": stored.control.name if stored.control is not None else None,
        }
        self.lineage = Lineage(tuple(inputs), tuple(outputs), {**known, **facts})


def asset_to_openlineage(asset: "Asset", lineage_context: Any) -> "OpenLineageDataset":
    """Return the asset of an endpoint's control as a dataset, for DAGs that are scheduled on it; Airflow calls it."""
    from controlled_rollout.operators.openlineage_events import dataset

    return dataset(asset_dataset(asset.uri))


def _as_openlineage(lineage: Lineage) -> "OperatorLineage[OpenLineageDataset, RunFacet]":
    """Return the lineage in OpenLineage's types."""
    from controlled_rollout.operators.openlineage_events import operator_lineage

    return operator_lineage(lineage)
