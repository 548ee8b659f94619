"""Models that take media: pictures are answered beside others, and rightly."""

from pathlib import Path

import pytest
from beside_mends import tiny_vlm, told_by
from pictures_harness import ARRIVALS

HARNESS = Path(__file__).with_name("pictures_harness.py")


@pytest.mark.parametrize(
    "named", ["qwen3_5-qwen3.6", pytest.param("gemma4-plain", marks=pytest.mark.full)]
)
def test_no_picture_waits_for_the_answers_of_others(tmp_path: Path, smollm2: str, named: str):
    """Nor does what comes behind it; each answer is that of a lone request, and nothing is held."""
    [told] = told_by(HARNESS, tmp_path, tiny_vlm(named, smollm2), "mended")
    assert told == {"before": len(ARRIVALS) - 1, "differ": 0, "held": False}


@pytest.mark.full
def test_by_itself_the_server_has_them_wait(tmp_path: Path, smollm2: str):
    """And it holds what it read for a client that has gone: the test above proves something."""
    [told] = told_by(HARNESS, tmp_path, tiny_vlm("qwen3_5-qwen3.6", smollm2), "plain")
    assert told["before"] < len(ARRIVALS) - 1
    assert told["held"]
