"""The page on the server's dialect names files and tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "dialect.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| (?!The server|---)(.+) \|$", re.MULTILINE)


def rows() -> list[list[str]]:
    """Return the cells of every quirk."""
    return [row.split(" | ") for row in _ROW.findall(PAGE)]


def test_every_quirk_says_what_since_when_where_and_which_test():
    """Five cells, none of them empty, and the versions begin with a number."""
    assert len(rows()) > 30
    for cells in rows():
        assert len(cells) == 5, cells
        assert all(cells), cells
        assert re.match(r"0\.\d", cells[1]), cells


def test_the_files_and_the_tests_exist():
    """Whoever moves one of them mends the page."""
    folders = (ROOT / "tests", ROOT / "integration_tests")
    tests = {
        name
        for folder in folders
        for file in folder.rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
    }
    for _, _, _, where, test in rows():
        files = re.findall(r"`([^`]+)`", where)
        assert files, where
        assert all((ROOT / "langchain_car_vllm" / file).is_file() for file in files), where
        assert test.strip("`") in tests, test
