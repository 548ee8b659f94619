"""The promises of docs/security.md: each is held by a test that exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_promise_names_a_test():
    """A promise without a test is a wish."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = page.partition("<!-- promises: begin -->")[2].partition("<!-- promises: end -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows
    sources = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "integration_tests").glob("*.py")]
    known = {
        name
        for source in sources
        for name in re.findall(r"def (test_\w+)", source.read_text(encoding="utf-8"))
    }
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= known, row
