"""The JSON API behind the page: what `controlled_rollout.view` says of endpoints, for users who may see plugins."""
