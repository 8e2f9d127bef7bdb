"""The workspace's storage: one place for models handed from task to task, collected data, reports and records."""

from controlled_rollout.storage.models import hand_over_model
from controlled_rollout.storage.place import open_storage, storage_at
from controlled_rollout.storage.protocol import Storage, StoredFile

__all__ = ["Storage", "StoredFile", "hand_over_model", "open_storage", "storage_at"]
