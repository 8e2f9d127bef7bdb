"""The telemetry store: a server with App Insights' ingestion and the Log Analytics query API, on one machine.

It is a process of its own (`controlled-rollout telemetry-store`) and needs nothing else of this package;
docs/telemetry-store.md lists what it supports.
"""
