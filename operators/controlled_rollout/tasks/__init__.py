"""Airflow: one module per step of a deployment."""
