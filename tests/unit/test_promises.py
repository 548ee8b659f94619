"""What the pages promise: each row is held by a test that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "integration_tests").glob("*.py")]
TABLES = [("security.md", "promises"), ("supervision.md", "cases")]


def rows(page: str, table: str) -> list[str]:
    """Return the rows between the marks of a table."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = text.partition(f"<!-- {table}: begin -->")[2].partition(f"<!-- {table}: end -->")[0]
    return [line for line in found.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(("page", "table"), TABLES)
def test_every_promise_names_a_test(page: str, table: str):
    """A promise without a test is a wish; a file that is named holds the test."""
    tests = {
        name: source.as_posix()
        for source in SOURCES
        for name in re.findall(r"def (test_\w+)", source.read_text(encoding="utf-8"))
    }
    assert rows(page, table)
    for row in rows(page, table):
        named = re.findall(r"`(?:([\w/]+\.py)?::)?(test_\w+)`", row)
        assert named, row
        assert all(name in tests for _, name in named), row
        assert all(
            (ROOT / folder / file).is_file()
            and f"def {name}(" in (ROOT / folder / file).read_text(encoding="utf-8")
            for file, name in named
            if file
            for folder in ("tests" if "/" in file else "tests/faults",)
        ), row
