"""Judges a version by labels that come late: what was right is known hours or weeks after the answer.

Here is what DAG files write; `judgement` and `look` are what judges, and are imported where it happens.
"""

from controlled_rollout.labels.settings import LabelMetric, Labels
from controlled_rollout.labels.source import Label, LabelRow, LabelSource, arrival_of, label_of
from controlled_rollout.labels.stored import StoredLabels

__all__ = ["Label", "LabelMetric", "LabelRow", "LabelSource", "Labels", "StoredLabels", "arrival_of", "label_of"]
