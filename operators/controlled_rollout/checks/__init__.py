"""What has to work before a rollout, and what its steps can show."""
