"""The Airflow sensors."""
