"""The Kubernetes target: Deployments behind an HTTPRoute of Envoy Gateway, changed by whoever holds the pen."""
