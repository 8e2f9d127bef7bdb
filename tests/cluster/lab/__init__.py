"""A real one-node Kubernetes for the tests: real containers, a gateway, a registry and a telemetry store, no Docker."""
