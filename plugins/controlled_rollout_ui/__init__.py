"""The page of endpoints and rollouts in Airflow's UI: a plugin, its JSON API, and the page itself."""
