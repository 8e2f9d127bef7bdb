"""The Airflow hooks: connections become workspaces, users and clusters."""
