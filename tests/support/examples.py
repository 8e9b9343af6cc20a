"""How many examples a property is tried with: few in ``make test``, many with ``HYPOTHESIS_PROFILE=long``."""

from __future__ import annotations

import os

from hypothesis import settings

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

# The quick ones are the same every time, so that a change is to blame when one fails; the long ones look for new ones.
settings.register_profile("quick", derandomize=True, database=None, deadline=None)
settings.register_profile("long", deadline=None, print_blob=True)
settings.load_profile("long" if LONG else "quick")


def examples(quick: int, long: int) -> int:
    """The number for the profile that was asked for."""
    return long if LONG else quick
