"""Whole rollouts under random events: the real steps, looks, gate, record and task group on simulated surroundings."""
