"""The collector: ships what versions have captured from the spools on a disk to a workspace's storage."""
