"""`make demo`: retrain a model and roll it out with Airflow on this machine, under load, with everything real."""
