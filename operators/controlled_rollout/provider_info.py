"""Describes this provider to Airflow: its operators, sensors, triggers, hook and connection form."""

from typing import Any

INTEGRATION = "Controlled Rollout"


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata in Airflow's provider-info schema; Airflow calls it."""
    return {
        "package-name": "airflow-provider-controlled-rollout",
        "name": INTEGRATION,
        "description": "Rolls out machine-learning models safely: canary traffic, a statistical gate, "
        "promotion or roll-back.",
        "integrations": [_integration()],
        "operators": [
            {
                "integration-name": INTEGRATION,
                "python-modules": [
                    "controlled_rollout.operators.approval",
                    "controlled_rollout.operators.collected_data",
                    "controlled_rollout.operators.connectivity",
                    "controlled_rollout.operators.hold",
                    "controlled_rollout.operators.image_build",
                    "controlled_rollout.operators.image_scan",
                    "controlled_rollout.operators.labels",
                    "controlled_rollout.operators.promotion",
                    "controlled_rollout.operators.rollout",
                    "controlled_rollout.operators.rollout_check",
                    "controlled_rollout.operators.traffic_shift",
                ],
            }
        ],
        "sensors": [
            {
                "integration-name": INTEGRATION,
                "python-modules": [
                    "controlled_rollout.sensors.collected_data",
                    "controlled_rollout.sensors.treatment_gate",
                ],
            }
        ],
        "triggers": [
            {
                "integration-name": INTEGRATION,
                "python-modules": [
                    "controlled_rollout.triggers.collected_data",
                    "controlled_rollout.triggers.treatment_gate",
                    "controlled_rollout.triggers.rollout_question",
                ],
            }
        ],
        "hooks": [{"integration-name": INTEGRATION, "python-modules": ["controlled_rollout.hooks.workspace"]}],
        "extra-links": [
            f"controlled_rollout.links.task_links.{name}"
            for name in ("EndpointLink", "ReportLink", "RequestsLink", "VersionLogLink")
        ],
        "asset-uris": [_asset()],
        "notifications": ["controlled_rollout.notifications.notifier.RolloutNotifier"],
        "connection-types": [_connection_type()],
        "config": _config(),
    }


def _integration() -> dict[str, Any]:
    """Return what Airflow shows of the software that everything here belongs to."""
    return {
        "integration-name": INTEGRATION,
        "external-doc-url": "https://pypi.org/project/airflow-provider-controlled-rollout/",
        "how-to-guide": ["/docs/airflow.md"],
        "tags": ["machine-learning", "software"],
    }


def _asset() -> dict[str, Any]:
    """Return how Airflow's provider for OpenLineage finds what the asset of an endpoint's control is as a dataset."""
    return {
        "schemes": ["controlled-rollout"],
        "handler": None,
        "to_openlineage_converter": "controlled_rollout.operators.lineage.asset_to_openlineage",
    }


def _config() -> dict[str, Any]:
    """Return the section `[controlled_rollout]` of Airflow's configuration: the settings of the page."""
    workspaces = {
        "description": "Connection ids of the workspaces that the page shows, separated by commas, 20 at most.",
        "version_added": "0.1.0",
        "type": "string",
        "example": "models_dev,models_prod",
        "default": "controlled_rollout_default",
    }
    dags = {
        f"{action}_dag_id": {
            "description": f"The DAG that the page triggers to {what}. It takes the params that the DAG `{action}` of "
            "this provider's examples has.",
            "version_added": "0.1.0",
            "type": "string",
            "example": f"models_{action}",
            "default": action,
        }
        for action, what in (
            ("promote", "promote a version"),
            ("roll_back", "roll a version back"),
            ("hold", "put a rollout on hold"),
            ("shift", "shift traffic to a version"),
        )
    }
    options = {"ui_workspaces": workspaces, **dags}
    return {"controlled_rollout": {"description": "Settings of the page of endpoints.", "options": options}}


def _connection_type() -> dict[str, Any]:
    """Return the connection type `controlled_rollout` with the fields of its form."""
    return {
        "connection-type": "controlled_rollout",
        "hook-class-name": "controlled_rollout.hooks.workspace.WorkspaceHook",
        "hook-name": "Controlled Rollout workspace",
        "conn-fields": {
            **_place_fields(),
            **_cluster_fields(),
            **_image_fields(),
            **_scan_fields(),
            **_telemetry_fields(),
        },
        "ui-field-behaviour": {
            "hidden-fields": ["host", "port", "login", "password", "schema", "extra"],
            "relabeling": {},
            "placeholders": {
                "root": "~/.controlled-rollout",
                "kubernetes_conn_id": "kubernetes_default",
                "namespace": "default",
                "gateway": "namespace/name",
                "envoy_namespace": "envoy-gateway-system",
                "endpoint_url": "https://models.example",
                "registry": "registry.example/models",
            },
        },
    }


def _form_field(label: str, description: str, **schema: Any) -> dict[str, Any]:
    """Return the schema of one form field; every field may be left empty."""
    return {"label": label, "schema": {"type": ["string", "null"], **schema}, "description": description}


def _place_fields() -> dict[str, Any]:
    """Return the form fields that say where versions run and where files are kept."""
    return {
        "target": _form_field(
            "Target",
            "Where versions run. local: this machine, with nothing installed. kubernetes: a cluster with the Gateway "
            "API and Envoy Gateway.",
            enum=["local", "kubernetes"],
            default="local",
        ),
        "root": _form_field(
            "Folder",
            "The workspace's folder on the workers, for the local target everything but the cache; empty for "
            "$CONTROLLED_ROLLOUT_HOME or ~/.controlled-rollout.",
        ),
        "cache_folder": _form_field(
            "Cache folder",
            "The workers' folder of built environments, local images and fetched models; empty for the user's own, "
            "$CONTROLLED_ROLLOUT_CACHE or ~/.cache/controlled-rollout/images.",
        ),
        "data_engine": _form_field(
            "Data engine",
            "What summarises collected data for the gate. duckdb: the task's own process. spark: a cluster.",
            enum=["duckdb", "spark"],
            default="duckdb",
        ),
        "spark_remote": _form_field(
            "Spark Connect server",
            "For spark: sc://host:port, without a token, which is read from $SPARK_CONNECT_AUTHENTICATE_TOKEN; empty "
            "for the session that Spark's own configuration describes.",
        ),
        "storage": _form_field(
            "Storage",
            "The place for models that tasks hand over, collected data, reports and records: a folder that all workers "
            "and the triggerer share, or https://<account>.blob.core.windows.net/<container>/<prefix>; empty for the "
            "folder storage in the workspace's folder.",
        ),
        "tls": _form_field(
            "TLS",
            "Whether callers have to use https: the local router has to have been started so, and the Gateway needs a "
            "listener with https.",
            type=["boolean", "null"],
        ),
        "endpoint_ca": _form_field(
            "Authority of the endpoints' certificate",
            "A file on the workers that the certificate is checked against; empty for the machine's own authorities.",
        ),
        "records": _form_field(
            "Records",
            "Where the records of decisions are instead of in the storage: an address in Azure Blob Storage. Empty for "
            "records in the storage or, if that is not set, in the workspace's folder.",
        ),
    }


def _cluster_fields() -> dict[str, Any]:
    """Return the form fields of the Kubernetes cluster."""
    return {
        "kubernetes_conn_id": _form_field(
            "Kubernetes connection",
            "The connection of the type kubernetes to the cluster; empty for kubernetes_default or, if that does not "
            "exist, the cluster that the worker runs in.",
        ),
        "namespace": _form_field("Namespace", "Where the endpoints' objects live in the cluster; empty for default."),
        "gateway": _form_field(
            "Gateway",
            "The Gateway that the endpoints' routes attach to, as namespace/name or namespace/name/listener; needed "
            "on Kubernetes.",
        ),
        "envoy_namespace": _form_field(
            "Namespace of Envoy", "Where the Gateway's Envoy pods run; empty for envoy-gateway-system."
        ),
        "endpoint_url": _form_field(
            "URL of the endpoints",
            "Base URL under which callers reach the Gateway; empty for the Gateway's own address.",
            format="url",
        ),
        "image_pull_secret": _form_field(
            "Image pull secret",
            "The Secret in the namespace with which the cluster pulls images; empty for a registry that needs none.",
        ),
        "collector_image": _form_field(
            "Image of the collector",
            "What ships the data of versions that collect, by its digest; empty where none does.",
        ),
        "collector_secret": _form_field(
            "Secret of the collector",
            "The Secret in the namespace with its connection_string or sas_token; empty for a workload identity.",
        ),
        "collector_service_account": _form_field(
            "ServiceAccount of the collector",
            "With the workload identity that may write blobs; empty where the Secret is used.",
        ),
    }


def _image_fields() -> dict[str, Any]:
    """Return the form fields about building and storing images."""
    return {
        "registry": _form_field(
            "Registry", "Where images are pushed: a registry and a prefix; empty where no images are built."
        ),
        "shared_registry": _form_field(
            "Shared registry",
            "The registry that is looked up for environments that the first one does not have; may be empty.",
        ),
        "base_image": _form_field("Base image", "The base of images whose environment names no base image."),
        "registry_conn_id": _form_field(
            "Registry connection",
            "The connection with login and password for the registry; empty if it needs none, or for an Azure "
            "Container Registry that the worker's own identity signs in to.",
        ),
        "shared_registry_conn_id": _form_field("Shared registry connection", "The same for the shared registry."),
        "base_image_conn_id": _form_field("Base image connection", "The same for the registry of base images."),
        "builder": _form_field(
            "Builder",
            "Who builds environment images. buildah: the worker. kubernetes: a pod in the cluster. acr_tasks: the "
            "Azure Container Registry itself.",
            enum=["buildah", "kubernetes", "acr_tasks"],
            default="buildah",
        ),
        "builder_image": _form_field("Builder image", "For the builder kubernetes: an image with buildah in it."),
        "builder_namespace": _form_field(
            "Builder namespace", "For the builder kubernetes: where its pods run; not the endpoints' namespace."
        ),
        "builder_pod_template": _form_field(
            "Builder pod template", "For the builder kubernetes: a file on the worker with a Pod to begin with."
        ),
        "acr_id": _form_field("Registry's resource id", "For the builder acr_tasks: /subscriptions/… of the registry."),
    }


def _scan_fields() -> dict[str, Any]:
    """Return the form fields about scanning images."""
    return {
        "scanner": _form_field(
            "Scanner",
            "The program that scans images before they are rolled out; installed on the workers. Empty for trivy.",
            enum=["trivy", "grype"],
            default="trivy",
        ),
        "osv_url": _form_field(
            "OSV service",
            "The query address of an OSV service for pip-audit; empty for PyPI's own vulnerability data.",
            format="url",
        ),
    }


def _telemetry_fields() -> dict[str, Any]:
    """Return the form fields of the metric store."""
    return {
        "telemetry_endpoint": _form_field(
            "Telemetry endpoint",
            "Base address of the Log Analytics query API; empty for Azure's or, on the local target, for the local "
            "telemetry store.",
            format="url",
        ),
        "telemetry_workspace_id": _form_field(
            "Log Analytics workspace",
            "The workspace that is queried; needed on Kubernetes, empty for the local telemetry store's.",
        ),
        "telemetry_resource_id": _form_field(
            "Resource id of the Log Analytics workspace",
            "For the tasks' links into the Azure portal: /subscriptions/… of that workspace; empty for no such links.",
        ),
        "telemetry_token_file": _form_field(
            "File with the telemetry token",
            "The file with the token of a telemetry store on the worker itself; empty for Azure, where the identity "
            "of the worker signs in.",
        ),
        "prometheus_url": _form_field(
            "Prometheus",
            "Base address of a Prometheus that scrapes the routers, to read the evidence there instead.",
            format="url",
        ),
        "prometheus_selector": _form_field(
            "Prometheus selector",
            'Label matchers of the routers\' series in that Prometheus, such as job="envoy".',
        ),
    }
