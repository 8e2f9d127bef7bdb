"""The scan gate: what is known to be vulnerable in an image, and whether it may be rolled out all the same."""

from controlled_rollout.image.scan.findings import Decision, Finding, Policy, Report, Severity, decide
from controlled_rollout.image.scan.image_scan import ScanSettings, scan

__all__ = ["Decision", "Finding", "Policy", "Report", "ScanSettings", "Severity", "decide", "scan"]
