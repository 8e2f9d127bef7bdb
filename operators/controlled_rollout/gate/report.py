"""A verdict as a plain-text table, and as values that JSON can carry."""

import math
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate.model import Claim, Verdict
from controlled_rollout.text_table import text_table

__all__ = ["describe", "verdict_from_dict", "verdict_to_dict"]

INFINITE: Final = "Infinity"
HEADINGS: Final = ("claim", "e-value", "of", "requests still needed")


def verdict_to_dict(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as values for JSON; an infinite e-value becomes the text "Infinity"."""
    values = _values_of(verdict)
    values["outcome"] = verdict.outcome.value
    values["claims"] = [
        {name: INFINITE if value == math.inf else value for name, value in _values_of(claim).items()}
        for claim in verdict.claims
    ]
    return values


def _values_of(one: Verdict | Claim) -> dict[str, Any]:
    """Return the fields by name; `asdict` would copy each of them first, at every look."""
    return {field.name: getattr(one, field.name) for field in fields(one)}


@lru_cache(maxsize=1)
def _verdict_adapter() -> TypeAdapter[Verdict]:
    """Return pydantic's reader of verdicts, built once because that takes longer than a whole look."""
    return TypeAdapter(Verdict)


def verdict_from_dict(values: Mapping[str, Any]) -> Verdict:
    """Return the verdict that `verdict_to_dict` wrote; raise EvidenceError if the values are not one.

    Raises:
        EvidenceError: The values are not a verdict.
    """
    try:
        return _verdict_adapter().validate_python(dict(values))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise EvidenceError(
            f"this is not a verdict: {faults}; give the values that verdict_to_dict returned"
        ) from error


def describe(verdict: Verdict) -> str:
    """Return the claims as a text table, and the number of requests behind them."""
    rows = [HEADINGS]
    for claim in verdict.claims:
        if claim.kind != "pass":
            needed = "alarm" if claim.reached else "-"
        elif claim.reached:
            needed = "none"
        else:
            needed = "not known" if claim.needed_requests is None else f"{claim.needed_requests:,}"
        rows.append((claim.name, _format_e_value(claim.e_value), _format_e_value(claim.threshold), needed))
    requests = f"treatment {verdict.treatment_requests:,} requests, control {verdict.control_requests:,}"
    if not verdict.claims:
        return f"{verdict.outcome.value.replace('_', ' ')}: {verdict.reason}\n{requests}"
    return f"{text_table(rows, left_columns=1)}\n{requests}"


def _format_e_value(value: float) -> str:
    """Return an e-value as text of few digits."""
    if value == math.inf:
        return "inf"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"
