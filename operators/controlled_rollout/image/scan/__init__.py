"""The scan of an image before it is rolled out: known vulnerabilities, and whether the image may pass."""

from controlled_rollout.image.scan.decision import ScanDecision, ScanPolicy, decide_on_scan
from controlled_rollout.image.scan.image_scan import ScanSettings, scan_image
from controlled_rollout.image.scan.vulnerabilities import ScanReport, Severity, Vulnerability

__all__ = [
    "ScanDecision",
    "ScanPolicy",
    "ScanReport",
    "ScanSettings",
    "Severity",
    "Vulnerability",
    "decide_on_scan",
    "scan_image",
]
