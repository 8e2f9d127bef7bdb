"""How all tests run: generated examples are the same in every CI run, and new ones on every other."""

import os

from hypothesis import settings

# Timings on a busy machine say nothing about the code.
settings.register_profile("everywhere", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everywhere")
