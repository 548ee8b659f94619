"""Keeping folders out of backups: what can be made again, and what holds prompts.

Time Machine asks for an attribute, which its own tool sets; other programs look for a tag file
(https://bford.info/cachedir/).
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.support.programs import ask_program

PLATFORM: str = sys.platform
_TMUTIL = "/usr/bin/tmutil"
_PATIENCE = 10.0
TAG = "CACHEDIR.TAG"
_TAG_TEXT = """Signature: 8a477f597d28d172789f06886806bc55
# This folder can be made again, or holds what nobody should copy: backups leave it out.
"""


def exclude_from_backups(folder: Path) -> None:
    """Keep a folder out of backups; where that cannot be done it stays in them."""
    with suppress(OSError):
        tag = folder / TAG
        if not is_tagged(folder):
            tag.write_text(_TAG_TEXT, encoding="utf-8")
    if PLATFORM == "darwin":
        ask_program([_TMUTIL, "addexclusion", folder], _PATIENCE)


def is_tagged(folder: Path) -> bool:
    """Return whether a folder has been kept out of backups before."""
    return os.path.exists(folder / TAG)  # noqa: PTH110 - `Path.exists` raises
