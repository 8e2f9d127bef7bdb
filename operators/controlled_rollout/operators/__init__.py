"""The Airflow operators: arguments in, engine called, decision out."""
