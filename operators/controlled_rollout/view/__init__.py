"""What people see of endpoints and rollouts, for the page in Airflow and the command line."""
