"""What people are told about a rollout: on hold, promoted, rolled back, stuck; in the log, in Slack, in Teams."""
