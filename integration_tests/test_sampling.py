"""Text models on the batched engine: each answer is drawn as its own request asks."""

from pathlib import Path

from beside_mends import told_by


def test_answers_are_drawn_as_they_are_asked_for(tmp_path: Path, smollm2: str):
    """Without the mends company changes the temperature, and settings are lost or draw nonsense."""
    harness = Path(__file__).with_name("sampling_harness.py")
    mended, plain = (told_by(harness, tmp_path, smollm2, mode)[-1] for mode in ("mended", "plain"))
    likeliest = mended.pop("likeliest")
    assert plain.pop("likeliest") == likeliest
    assert mended.pop("penalty") != likeliest
    assert plain.pop("penalty") == likeliest
    assert mended == dict.fromkeys(mended, likeliest)
    assert likeliest not in plain.values()
