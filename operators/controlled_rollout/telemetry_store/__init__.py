"""The local telemetry store: App Insights' ingestion and the Log Analytics query API on one machine.

A process of its own (`controlled-rollout telemetry-store`); docs/telemetry-store.md says what it supports.
"""
