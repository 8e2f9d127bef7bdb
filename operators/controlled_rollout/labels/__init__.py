"""Judges a version by labels that come late: what was right is known hours or weeks after the answer."""

from controlled_rollout.labels.judgement import LabelCounts, LabelLook, judge_labels
from controlled_rollout.labels.look import look_at_labels
from controlled_rollout.labels.settings import LabelMetric, Labels
from controlled_rollout.labels.source import Label, LabelRow, LabelSource, arrival_of, label_of
from controlled_rollout.labels.stored import StoredLabels

__all__ = [
    "Label",
    "LabelCounts",
    "LabelLook",
    "LabelMetric",
    "LabelRow",
    "LabelSource",
    "Labels",
    "StoredLabels",
    "arrival_of",
    "judge_labels",
    "label_of",
    "look_at_labels",
]
