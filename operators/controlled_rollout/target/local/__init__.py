"""One laptop: a supervisor process that owns a real Envoy, the versions' replicas and the telemetry store."""
