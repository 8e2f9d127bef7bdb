"""Rollouts whose rows are not independent: batches of rows in one request, and requests of one user."""

from typing import Literal

import numpy as np

from controlled_rollout.gate.columns import Metric, Values
from tests.benchmarks.gate.data.rollouts import (
    BASELINE_VALUES,
    LABELS,
    LOOKS,
    SHARE,
    Counted,
    Draw,
    Floats,
    Rollout,
    Seen,
    columns_of,
    label_shares,
    moments,
    normal,
    requests_by_minute,
    seen_numbers,
)

__all__ = [
    "HOW",
    "ROWS",
    "SPLITS",
    "TIMES",
    "USERS_REQUESTS",
    "batches_of_labels",
    "batches_of_numbers",
    "users_labels",
    "users_numbers",
]

# How many rows a request has, and how often.
ROWS = {1: 0.4, 10: 0.3, 100: 0.25, 1_000: 0.05}
USERS_REQUESTS = 20
# Labels of one request, or of one user, are drawn from shares of their own, around the common ones: a correlation of a
# third. Numbers have half of their variance in common.
CONCENTRATION = 2.0
COMMON = 0.5
How = Literal["one row of each request", "every row"]
Split = Literal["by request", "by user"]
Times = Literal["within a minute", "over the hour"]
HOW: tuple[How, ...] = ("one row of each request", "every row")
SPLITS: tuple[Split, ...] = ("by request", "by user")
TIMES: tuple[Times, ...] = ("within a minute", "over the hour")


def batches_of_labels(variation: float, per_minute: float, metric: str, how: How) -> Draw:
    """Return rollouts in which a request has many rows with labels; the gate counts one row of each, or every one."""
    shares = label_shares(variation)[0], label_shares(0.0)[0]

    def draw(rng: np.random.Generator) -> Rollout:
        sizes = requests_by_minute(rng, per_minute)
        rows, counted = [], []
        for size, common in zip(sizes, shares, strict=True):
            of_request = _own_shares(rng, common, int(size.sum()))
            by_request = rng.multinomial(_rows(rng, len(of_request)), of_request).astype(np.float64)
            rows.append(_by_minute(by_request, size))
            one_row = _one_hot(rng, by_request) if how == "one row of each request" else by_request
            counted.append(_by_minute(one_row, size))
        counts = {f"label {one}": Metric(counted[0][:, one], counted[1][:, one]) for one in range(LABELS)}
        columns = columns_of(sizes, categories={metric: counts})
        return Rollout(columns, Seen(rows[0], rows[1], _baseline(rng, shares[1])))

    return draw


def batches_of_numbers(shift: float, per_minute: float, metric: str, how: How) -> Draw:
    """Return rollouts in which a request has many rows with numbers; the gate takes its mean, or every row."""

    def draw(rng: np.random.Generator) -> Rollout:
        sizes = requests_by_minute(rng, per_minute)
        values, of_rows, judged = [], [], []
        for size, more in zip(sizes, (shift, 0.0), strict=True):
            rows = _rows(rng, int(size.sum()))
            ends = np.cumsum(rows)
            own = np.sqrt(COMMON) * rng.standard_normal(len(rows))
            numbers = np.repeat(own, rows) + np.sqrt(1 - COMMON) * rng.standard_normal(int(rows.sum())) + more
            rows_by_minute = _by_minute(rows[:, np.newaxis].astype(np.float64), size)[:, 0].astype(np.int64)
            values.append(numbers)
            of_rows.append(rows_by_minute)
            if how == "every row":
                judged.append(moments(numbers, rows_by_minute))
            else:
                means = np.add.reduceat(numbers, ends - rows) / rows if len(rows) else np.zeros(0)
                judged.append(moments(means, size))
        columns = columns_of(sizes, values={metric: (judged[0], judged[1])})
        return Rollout(columns, seen_numbers(values, of_rows, rng.standard_normal(BASELINE_VALUES), normal))

    return draw


def users_labels(per_minute: float, metric: str, split: Split, times: Times) -> Draw:
    """Return rollouts with labels whose users send many requests each, and have preferences of their own."""
    common = label_shares(0.0)[0]

    def draw(rng: np.random.Generator) -> Rollout:
        user, minute, treated = _requests_of_users(rng, per_minute, split, times)
        own = np.cumsum(_own_shares(rng, common, int(user.max()) + 1), axis=1)
        label = np.minimum((own[user] < rng.random(len(user))[:, np.newaxis]).sum(axis=1), LABELS - 1)
        arms = [
            np.bincount(minute[arm] * LABELS + label[arm], minlength=LOOKS * LABELS)
            .reshape(LOOKS, LABELS)
            .astype(np.float64)
            for arm in (treated, ~treated)
        ]
        sizes = tuple(arm.sum(axis=1).astype(np.int64) for arm in arms)
        counts = {f"label {one}": Metric(arms[0][:, one], arms[1][:, one]) for one in range(LABELS)}
        columns = columns_of((sizes[0], sizes[1]), categories={metric: counts})
        return Rollout(columns, Seen(arms[0], arms[1], _baseline(rng, common)))

    return draw


def users_numbers(per_minute: float, metric: str, split: Split, times: Times) -> Draw:
    """Return rollouts with numbers whose users send many requests each, and differ from each other."""

    def draw(rng: np.random.Generator) -> Rollout:
        user, minute, treated = _requests_of_users(rng, per_minute, split, times)
        own = np.sqrt(COMMON) * rng.standard_normal(int(user.max()) + 1)
        numbers = own[user] + np.sqrt(1 - COMMON) * rng.standard_normal(len(user))
        values = [numbers[arm] for arm in (treated, ~treated)]
        sizes = [np.bincount(minute[arm], minlength=LOOKS) for arm in (treated, ~treated)]
        judged: list[Values] = [moments(some, size) for some, size in zip(values, sizes, strict=True)]
        columns = columns_of((sizes[0], sizes[1]), values={metric: (judged[0], judged[1])})
        return Rollout(columns, seen_numbers(values, sizes, rng.standard_normal(BASELINE_VALUES), normal))

    return draw


def _requests_of_users(
    rng: np.random.Generator, per_minute: float, split: Split, times: Times
) -> tuple[Counted, Counted, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Draw by request its user, its minute, and whether the treatment gets it; ordered by minute."""
    users = max(1, int(rng.poisson(per_minute * LOOKS / USERS_REQUESTS)))
    user = np.repeat(np.arange(users), USERS_REQUESTS)
    if times == "within a minute":
        minute = np.repeat(rng.integers(0, LOOKS, users), USERS_REQUESTS)
    else:
        minute = rng.integers(0, LOOKS, len(user))
    treated = (rng.random(users) < SHARE)[user] if split == "by user" else rng.random(len(user)) < SHARE
    order = np.argsort(minute, kind="stable")
    return user[order], minute[order], treated[order]


def _rows(rng: np.random.Generator, requests: int) -> Counted:
    """Draw how many rows each request has."""
    return rng.choice(np.array(list(ROWS)), requests, p=list(ROWS.values()))


def _own_shares(rng: np.random.Generator, common: Floats, number: int) -> Floats:
    """Draw shares of labels around the common ones, for each request or user."""
    weights = rng.standard_gamma(CONCENTRATION * common, (number, len(common))) + 1e-12
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result


def _one_hot(rng: np.random.Generator, by_request: Floats) -> Floats:
    """Draw one row of each request: 1 for its label."""
    row = rng.random(len(by_request)) * by_request.sum(axis=1)
    label = (np.cumsum(by_request, axis=1) <= row[:, np.newaxis]).sum(axis=1)
    result: Floats = np.eye(LABELS)[np.minimum(label, LABELS - 1)]
    return result


def _by_minute(by_request: Floats, size: Counted) -> Floats:
    """Return by minute the sums over its requests, which are in order."""
    sums = np.concatenate([np.zeros((1, by_request.shape[1])), np.cumsum(by_request, axis=0)])
    result: Floats = np.diff(sums[np.concatenate([[0], np.cumsum(size)])], axis=0)
    return result


def _baseline(rng: np.random.Generator, shares: Floats) -> Floats:
    """Draw control's labels before the rollout."""
    return rng.multinomial(BASELINE_VALUES, shares).astype(np.float64)
