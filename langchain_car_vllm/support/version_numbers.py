"""Comparing the numbers of versions, as programs of others write them."""

import re

Version = tuple[int, int, int]


def is_at_least(version: str, minimum: Version) -> bool:
    """Return whether a version is at least another; an unreadable one is not.

    A pre-release counts as its release, and what is missing counts as 0.
    """
    found = re.match(r"\s*v?(\d+)(?:\.(\d+))?(?:\.(\d+))?(?![\d])", version)
    return found is not None and tuple(int(part or 0) for part in found.groups()) >= minimum
