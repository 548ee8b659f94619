"""What was found out about LangChain and about the server is held by tests that name it."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(("whose", "count"), [("langchain", 10), ("server", 12)])
def test_each_fact_has_a_test_of_its_number(whose: str, count: int):
    """`grep test_server_3` leads to the proof that fact 3 does no harm."""
    sources = "".join(file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py"))
    named = re.findall(rf"def test_(?:\w+_)?{whose}_(\d+)_", sources)
    assert set(range(1, count + 1)) <= set(map(int, named))
