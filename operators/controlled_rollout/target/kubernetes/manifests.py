"""The Kubernetes objects of an endpoint and its versions, as dictionaries. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    HTTP_ROUTE_FILTER,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SECRET,
    SECURITY_POLICY,
    SERVICE,
    Kind,
)
from controlled_rollout.endpoint import ROUTED_BY_HEADER, VERSION_HEADER, Auth, Endpoint, Version
from controlled_rollout.environment_variables import SecretReference
from controlled_rollout.target.kubernetes import overload, sticky_split
from controlled_rollout.target.kubernetes.collector_sidecar import RESTRICTED, add_collector
from controlled_rollout.target.kubernetes.names import (
    endpoint_labels,
    endpoint_object_name,
    route_name,
    version_labels,
    version_object_name,
)
from controlled_rollout.target.kubernetes.token_policy import REASON_TAG, WRONG_AUDIENCE, token_checks
from controlled_rollout.target.protocol import Keys
from controlled_rollout.tokens import SigningKeys
from controlled_rollout.workspace import Workspace

__all__ = [
    "CONTAINER",
    "HTTP_PORT",
    "SERVICE_PORT",
    "deployment",
    "direct_response",
    "disruption_budget",
    "http_route",
    "keys_secret",
    "network_policy",
    "owner_reference",
    "root_config_map",
    "security_policy",
    "service",
    "signing_keys_secret",
    "standby_policy",
    "standby_route",
    "traffic_policy",
]


SERVICE_PORT: Final = 80
HTTP_PORT: Final = 8080
HEALTH_PORT: Final = 8081
CONTAINER: Final = "model"

# A pod that has to end goes on answering for so long: until then every router has taken it off its list.
LEAVE_S: Final = 5
# The time for requests that are still being answered, on top of the longest wait and the scoring time-out.
DRAIN_MARGIN_S: Final = 10
# Below the replicas' keep-alive, so that it is always the router that ends an idle connection.
UPSTREAM_IDLE: Final = "10s"
# High, but bounded: a replica refuses what it cannot queue long before this.
MAX_IN_FLIGHT: Final = 4096
# A larger body is answered 413, as by the local router.
MAX_PAYLOAD: Final = "100M"
USER_ID: Final = 10001
# One version must not take its node's memory or disk from what runs beside it.
DEFAULT_MEMORY_LIMIT: Final = 2.0
TMP_SIZE: Final = "10Gi"
# One node, or one zone, takes as few of a version's replicas with it as possible.
SPREAD_OVER: Final = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")


def root_config_map(endpoint: str, namespace: str) -> Object:
    """Return the ConfigMap that owns all other objects of an endpoint: deleting it deletes them too."""
    return {
        **_object_head(CONFIG_MAP, endpoint_object_name(endpoint), namespace, endpoint_labels(endpoint)),
        "data": {"endpoint": endpoint},
    }


def owner_reference(owner: Object) -> Object:
    """Return the ownerReference to `owner`, with which an object is deleted together with its owner."""
    return {
        "apiVersion": "v1",
        "kind": CONFIG_MAP.name,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": True,
    }


def deployment(endpoint: Endpoint, version: Version, workspace: Workspace, *, owner: Object) -> Object:
    """Return a version's Deployment, without the number of replicas, which scaling sets."""
    labels = version_labels(endpoint.name, version.name)
    drain_s = -(-version.longest_answer_ms // 1000) + DRAIN_MARGIN_S
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": LEAVE_S + drain_s + DRAIN_MARGIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [_spread_over(key, labels) for key in SPREAD_OVER],
        "containers": [_container(version, drain_s)],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}}],
    }
    if version.node_selector:
        pod["nodeSelector"] = dict(version.node_selector)
    if version.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in version.tolerations]
    if workspace.image_pull_secret:
        pod["imagePullSecrets"] = [{"name": workspace.image_pull_secret}]
    metadata: Object = {"labels": labels}
    if version.collected is not None and workspace.has_collector:
        add_collector(pod, metadata, endpoint.name, version, workspace)
    name = version_object_name(endpoint.name, version.name)
    return {
        **_owned_object_head(DEPLOYMENT, name, workspace.namespace, labels, owner),
        "spec": {
            "selector": {"matchLabels": labels},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": version.initial_delay_seconds + 300,
            # A replica of the old definition stays until one of the new definition answers.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": metadata, "spec": pod},
        },
    }


def _spread_over(topology: str, labels: Mapping[str, str]) -> Object:
    """Return the constraint that spreads a version's pods over nodes or zones, as far as there are enough of them."""
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(labels)},
        # While one definition replaces another, each is spread for itself.
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(version: Version, drain_s: int) -> Object:
    """Return the container of a version's pods: image, resources, probes and settings."""
    requests: dict[str, str] = {"cpu": _cpu_quantity(version.cpu_cores), "memory": _memory_quantity(version.memory_gb)}
    limits = {"memory": _memory_quantity(version.memory_gb_limit or DEFAULT_MEMORY_LIMIT * version.memory_gb)}
    if version.cpu_cores_limit is not None:
        limits["cpu"] = _cpu_quantity(version.cpu_cores_limit)
    if version.gpu_cores:
        # A GPU cannot be shared: Kubernetes wants request and limit to be the same.
        requests["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(version.gpu_cores)
    probe = {
        "periodSeconds": version.period_seconds,
        "timeoutSeconds": version.timeout_seconds,
        "failureThreshold": version.failure_threshold,
    }
    settings = {
        "WORKER_COUNT": version.worker_count,
        "SCORING_TIMEOUT_MS": version.scoring_timeout_ms,
        "REPLICA_MAX_CONCURRENT_REQUESTS": version.replica_max_concurrent_requests,
        "MAX_REQUEST_WAIT_TIME_MS": version.max_request_wait_time,
        "DRAIN_TIMEOUT_S": drain_s,
    }
    return {
        "name": CONTAINER,
        "image": version.image,
        "args": ["--bind", f"0.0.0.0:{HTTP_PORT}", "--health", f"0.0.0.0:{HEALTH_PORT}"],
        "env": [
            *({"name": name, "value": str(value)} for name, value in settings.items()),
            *(_environment_variable(name, value) for name, value in version.environment_variables.items()),
        ],
        "ports": [
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
        ],
        "resources": {"requests": requests, "limits": limits},
        # A process that does not score answers the probes: a busy model is neither restarted nor taken off the list.
        "startupProbe": {
            "httpGet": {"path": "/ready", "port": "health", "scheme": "HTTP"},
            "periodSeconds": 1,
            "timeoutSeconds": version.timeout_seconds,
            "failureThreshold": version.initial_delay_seconds,
        },
        "readinessProbe": {
            "httpGet": {"path": "/ready", "port": "health", "scheme": "HTTP"},
            "periodSeconds": 1,
            "timeoutSeconds": version.timeout_seconds,
            "successThreshold": version.success_threshold,
            "failureThreshold": version.failure_threshold,
        },
        "livenessProbe": {"httpGet": {"path": "/live", "port": "health", "scheme": "HTTP"}, **probe},
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_S}}},
        "securityContext": dict(RESTRICTED),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the container's own
    }


def _environment_variable(name: str, value: str | SecretReference) -> Object:
    """Return an environment variable of a container: a text, or a reference to a key of a Secret."""
    if isinstance(value, SecretReference):
        return {"name": name, "valueFrom": {"secretKeyRef": {"name": value.secret, "key": value.key}}}
    # Kubernetes would replace `$(NAME)`; `$$` is a `$`.
    return {"name": name, "value": value.replace("$", "$$")}


def service(endpoint: str, version: str, *, namespace: str, owner: Object) -> Object:
    """Return the Service of a version's pods."""
    labels = version_labels(endpoint, version)
    return {
        **_owned_object_head(SERVICE, version_object_name(endpoint, version), namespace, labels, owner),
        "spec": {
            "type": "ClusterIP",
            "selector": labels,
            "ports": [{"name": "http", "port": SERVICE_PORT, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def disruption_budget(endpoint: str, version: str, *, namespace: str, owner: Object) -> Object:
    """Return the PodDisruptionBudget by which a version's pods leave a node that is drained one by one.

    A version with one replica can leave, too. A replica that is not ready anyway never keeps a node from being drained.
    """
    labels = version_labels(endpoint, version)
    name = version_object_name(endpoint, version)
    return {
        **_owned_object_head(POD_DISRUPTION_BUDGET, name, namespace, labels, owner),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": labels},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(endpoint: str, workspace: Workspace, envoy_labels: Mapping[str, str], *, owner: Object) -> Object:
    """Return the NetworkPolicy by which only the Gateway's Envoys reach the endpoint's versions.

    Whoever else reached a pod would be answered without a key, past the split and without telemetry. The kubelet's
    probes come from the pod's own node, which Kubernetes always lets in.

    Args:
        endpoint: The endpoint's name.
        workspace: Where its versions are, and the Gateway's Envoys.
        envoy_labels: The labels of those Envoys' pods.
        owner: The endpoint's root object.
    """
    envoys = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": workspace.envoy_namespace}},
        "podSelector": {"matchLabels": dict(envoy_labels)},
    }
    return {
        **_policy_head(NETWORK_POLICY, endpoint, workspace.namespace, owner),
        "spec": {
            "podSelector": {"matchLabels": endpoint_labels(endpoint)},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [envoys], "ports": [{"protocol": "TCP", "port": HTTP_PORT}]}],
        },
    }


def keys_secret(endpoint: str, keys: Keys, *, namespace: str, owner: Object, part: str = "keys") -> Object:
    """Return the Secret with an endpoint's keys, against which the router checks callers' keys, or that Secret's copy.

    Args:
        endpoint: The endpoint's name.
        keys: The keys.
        namespace: Where it is.
        owner: The endpoint's root object.
        part: `keys`, or `keys-copy`.
    """
    return {
        **_owned_object_head(SECRET, endpoint_object_name(endpoint, part), namespace, endpoint_labels(endpoint), owner),
        "type": "Opaque",
        "stringData": {"primary": keys.primary, "secondary": keys.secondary},
    }


def signing_keys_secret(endpoint: str, keys: SigningKeys, *, namespace: str, owner: Object) -> Object:
    """Return the Secret with the private keys that sign an endpoint's tokens."""
    name = endpoint_object_name(endpoint, "signing-keys")
    return {
        **_owned_object_head(SECRET, name, namespace, endpoint_labels(endpoint), owner),
        "type": "Opaque",
        "stringData": keys.model_dump(),
    }


def security_policy(endpoint: Endpoint, *, namespace: str, owner: Object, key_set: str | None = None) -> Object:
    """Return the SecurityPolicy that only lets callers with a key or a token in; everybody, if none is asked for.

    An open endpoint has a policy, too: the Gateway's own one closes all routes that have none.

    Args:
        endpoint: The endpoint.
        namespace: Where it is.
        owner: Its root object.
        key_set: The public parts of its signing keys; None if it has none.
    """
    name = endpoint.name
    spec: Object = {"targetRefs": [_route_reference(name)]}
    if endpoint.auth is Auth.NONE:
        spec["authorization"] = {"defaultAction": "Allow"}
    elif endpoint.auth is Auth.TOKEN:
        spec |= token_checks(endpoint, key_set)
    else:
        spec["apiKeyAuth"] = {
            "credentialRefs": [{"group": "", "kind": "Secret", "name": endpoint_object_name(name, "keys")}],
            "extractFrom": [{"headers": ["Authorization"]}],
            "sanitize": True,
        }
    return {**_policy_head(SECURITY_POLICY, name, namespace, owner), "spec": spec}


def standby_policy(
    endpoint: Endpoint, name: str, labels: Mapping[str, str], key_set: str, *, namespace: str, owner: Object
) -> Object:
    """Return the SecurityPolicy that holds one of an endpoint's key sets for a route that nobody calls."""
    target = {"group": HTTP_ROUTE.group, "kind": HTTP_ROUTE.name, "name": name}
    head = _owned_object_head(SECURITY_POLICY, name, namespace, labels, owner)
    return {**head, "spec": {"targetRefs": [target], **token_checks(endpoint, key_set)}}


def standby_route(
    endpoint: str, name: str, labels: Mapping[str, str], parent: Object, *, namespace: str, owner: Object
) -> Object:
    """Return the route for such a policy: it answers 503, at a path that leads nowhere else."""
    path = {"type": "Exact", "value": f"/.controlled-rollout/{namespace}/{name}"}
    filters = [
        {
            "type": "ExtensionRef",
            "extensionRef": {
                "group": HTTP_ROUTE_FILTER.group,
                "kind": HTTP_ROUTE_FILTER.name,
                "name": endpoint_object_name(endpoint, "closed"),
            },
        }
    ]
    head = _owned_object_head(HTTP_ROUTE, name, namespace, labels, owner)
    return {**head, "spec": {"parentRefs": [parent], "rules": [{"matches": [{"path": path}], "filters": filters}]}}


def traffic_policy(endpoint: Endpoint, *, namespace: str, owner: Object) -> Object:
    """Return the BackendTrafficPolicy of an endpoint: buffer, retries, load balancing, limits and telemetry."""
    has_tokens = endpoint.auth is Auth.TOKEN
    return {
        **_policy_head(BACKEND_TRAFFIC_POLICY, endpoint.name, namespace, owner),
        "spec": {
            "targetRefs": [_route_reference(endpoint.name)],
            "loadBalancer": sticky_split.load_balancer(endpoint),
            "timeout": {
                "tcp": {"connectTimeout": "2s"},
                "http": {"connectionIdleTimeout": UPSTREAM_IDLE},
            },
            "circuitBreaker": {
                "maxConnections": MAX_IN_FLIGHT,
                "maxPendingRequests": MAX_IN_FLIGHT,
                "maxParallelRequests": MAX_IN_FLIGHT,
            },
            # A replica gets a request once the router has all of it: who sends slowly keeps no place in a replica.
            "requestBuffer": {"limit": MAX_PAYLOAD},
            # Only requests that certainly never reached a model's code are retried.
            "retry": overload.retry(),
            "responseOverride": [*overload.response_overrides(), *([dict(WRONG_AUDIENCE)] if has_tokens else [])],
            "telemetry": {
                "tracing": {
                    "samplingFraction": {"numerator": 100 if endpoint.enable_app_insights else 0, "denominator": 100},
                    "customTags": {
                        "endpoint": {"type": "Literal", "literal": {"value": endpoint.name}},
                        "version": {"type": "RequestHeader", "requestHeader": {"name": VERSION_HEADER}},
                        "routed_by": {"type": "RequestHeader", "requestHeader": {"name": ROUTED_BY_HEADER}},
                        **sticky_split.key_tags(endpoint),
                    },
                    "tags": {**overload.reason_tags(), **(REASON_TAG if has_tokens else {})},
                },
                # Counters by the name of each rule: an Envoy that has them has taken the rule over.
                "metrics": {"routeStatName": "%ROUTE_NAMESPACE%/%ROUTE_NAME%/%ROUTE_RULE_NAME%"},
            },
        },
    }


def http_route(
    endpoint: str,
    parent: Object,
    rules: Sequence[Object],
    annotations: Mapping[str, str],
    *,
    namespace: str,
    owner: Object,
) -> Object:
    """Return the route of an endpoint's requests, as it is created."""
    route = _owned_object_head(HTTP_ROUTE, route_name(endpoint), namespace, endpoint_labels(endpoint), owner)
    route["metadata"]["annotations"] = dict(annotations)
    return {**route, "spec": {"parentRefs": [parent], "rules": list(rules)}}


def direct_response(endpoint: str, part: str, status: int, text: str, *, namespace: str, owner: Object) -> Object:
    """Return the filter by which the router itself answers a request."""
    return {
        **_owned_object_head(
            HTTP_ROUTE_FILTER, endpoint_object_name(endpoint, part), namespace, endpoint_labels(endpoint), owner
        ),
        "spec": {
            "directResponse": {
                "contentType": "text/plain; charset=utf-8",
                "statusCode": status,
                "body": {"type": "Inline", "inline": text},
            }
        },
    }


def _policy_head(kind: Kind, endpoint: str, namespace: str, owner: Object) -> Object:
    """Return the common part of a policy of an endpoint: kind, metadata and owner."""
    return _owned_object_head(kind, endpoint_object_name(endpoint), namespace, endpoint_labels(endpoint), owner)


def _route_reference(endpoint: str) -> Object:
    """Return the reference by which a policy names the endpoint's HTTPRoute."""
    return {"group": HTTP_ROUTE.group, "kind": HTTP_ROUTE.name, "name": route_name(endpoint)}


def _object_head(kind: Kind, name: str, namespace: str, labels: Mapping[str, str]) -> Object:
    """Return the common part of an object: API version, kind, name, namespace and labels."""
    return {
        "apiVersion": kind.version,
        "kind": kind.name,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels)},
    }


def _owned_object_head(kind: Kind, name: str, namespace: str, labels: Mapping[str, str], owner: Object) -> Object:
    """Return the common part of an object that is deleted together with `owner`."""
    head = _object_head(kind, name, namespace, labels)
    head["metadata"]["ownerReferences"] = [owner_reference(owner)]
    return head


def _cpu_quantity(cores: float) -> str:
    """Return a number of CPU cores as a Kubernetes quantity in millicores."""
    return f"{max(1, round(cores * 1000))}m"


def _memory_quantity(gigabytes: float) -> str:
    """Return a number of gigabytes (10^9 bytes) as a Kubernetes quantity in bytes."""
    return str(max(1, round(gigabytes * 1_000_000_000)))
