"""How many examples a property test tries, in every run and under `make fuzz`."""

from hypothesis import settings

__all__ = ["examples"]

USUAL = 100


def examples(count: int) -> settings:
    """Return the settings for `count` examples, raised as the profile raises the usual 100."""
    return settings(max_examples=max(1, count * settings().max_examples // USUAL))
