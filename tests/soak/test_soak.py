"""Two minutes of the soak with fixed choices; `make soak` makes it longer."""

import os
import sys
from pathlib import Path

import pytest

from soak.driver import Soak


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform == "darwin", reason="macOS shows no foreign environment")
def test_two_minutes_of_random_faults_break_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Six programs, three models, room for two, and a fault every third of a second."""
    before = dict(os.environ)
    try:
        soak = Soak(1, float(os.environ.get("SOAK_SECONDS", "120")), tmp_path)
        soak.run()
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert not soak.violations, "\n".join(soak.violations)
    assert soak.counts["calls"] > 0
