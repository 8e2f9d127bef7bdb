"""The author's metrics of a rollout, both versions beside each other, for its report. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.gate import Bin, Counts
from controlled_rollout.visible_text import short_text

__all__ = [
    "ComparedValue",
    "category_shares",
    "compared_metrics",
    "most_different_category",
    "pooled_mean",
]

SHOWN_CATEGORIES: Final = 5


@dataclass(frozen=True, slots=True)
class ComparedValue:
    """One value of a metric of both versions.

    Attributes:
        name: The metric and what of it, such as `label: 3`.
        treatment, control: The values; None where a version has none.
        is_share: Whether they are shares, 0 to 1.
    """

    name: str
    treatment: float | None
    control: float | None
    is_share: bool


def compared_metrics(bins: Sequence[Bin]) -> list[ComparedValue]:
    """Return the means of both versions, and of each categorical metric the categories that differ most.

    Args:
        bins: The rollout's bins.
    """
    treatment, control = [bin_.treatment for bin_ in bins], [bin_.control for bin_ in bins]
    every = [*treatment, *control]
    rows = [
        ComparedValue(name, pooled_mean(treatment, name), pooled_mean(control, name), is_share=False)
        for name in sorted({name for counts in every for name in counts.means})
    ]
    for name in sorted({name for counts in every for name in counts.categories}):
        treated, compared = category_shares(treatment, name), category_shares(control, name)
        shown = _by_difference(treated, compared)
        for category in shown[:SHOWN_CATEGORIES]:
            part, other = treated.get(category, 0.0), compared.get(category, 0.0)
            rows.append(ComparedValue(f"{name}: {short_text(category)}", part, other, is_share=True))
        if more := shown[SHOWN_CATEGORIES:]:
            part, other = (sum(shares.get(category, 0.0) for category in more) for shares in (treated, compared))
            rows.append(ComparedValue(f"{name}: {len(more)} others", part, other, is_share=True))
    return rows


def pooled_mean(counts: Iterable[Counts], name: str) -> float | None:
    """Return the mean of a metric over several bins; None without values."""
    moments = [counts_.means[name] for counts_ in counts if name in counts_.means]
    number = sum(one.count for one in moments)
    return sum(one.count * one.mean for one in moments) / number if number else None


def category_shares(counts: Iterable[Counts], name: str) -> dict[str, float]:
    """Return the share of each category of a metric over several bins; empty without values."""
    tally: Counter[str] = Counter()
    for one in counts:
        tally.update(one.categories.get(name, {}))
    number = tally.total()
    return {category: count / number for category, count in tally.items()} if number else {}


def most_different_category(bins: Sequence[Bin], name: str) -> str | None:
    """Return the category whose share differs most between the versions; None without any."""
    shares = (category_shares((getattr(bin_, arm) for bin_ in bins), name) for arm in ("treatment", "control"))
    return next(iter(_by_difference(*shares)), None)


def _by_difference(treatment: dict[str, float], control: dict[str, float]) -> list[str]:
    """Return all categories, those first whose shares differ most."""
    known = sorted(treatment.keys() | control.keys())
    return sorted(known, key=lambda category: -abs(treatment.get(category, 0.0) - control.get(category, 0.0)))
