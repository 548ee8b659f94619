"""The conformance table says what the test results say."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "conformance.py"
SUITE = "integration_tests.test_standard.TestQwenBatched"


@pytest.fixture(scope="module")
def conformance():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("conformance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _results(file: Path, *cases: str) -> Path:
    body = "".join(cases)
    file.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>", encoding="utf-8")
    return file


def _case(name: str, inside: str = "") -> str:
    return f'<testcase classname="{SUITE}" name="{name}">{inside}</testcase>'


def _rows(text: str) -> dict[str, list[str]]:
    rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_a_failure_in_any_form_fails_the_row(conformance, tmp_path):
    """A later run replaces an earlier one, test by test; what was not run is empty."""
    skip = '<skipped message="no pictures" type="pytest.skip"/>'
    failed = '<failure message="no"/>'
    old = _results(tmp_path / "1.xml", _case("test_a[x]", failed), _case("test_b", failed))
    new = _results(
        tmp_path / "2.xml",
        _case("test_a[x]"),
        _case("test_a[y]", "<error/>"),
        _case("test_b"),
        _case("test_c", skip),
    )
    text = conformance.table(conformance.read([old, new]))
    rows = _rows(text)
    assert rows["`test_a`"] == ["", "**failed**", "", "", ""]
    assert rows["`test_b`"] == ["", "✓", "", "", ""]
    assert rows["`test_c`"] == ["", "skipped", "", "", ""]
    assert rows["**passed**"] == ["not run", "2 of 3", "not run", "not run", "not run"]
    assert "- `test_c`: no pictures" in text


def test_the_table_goes_between_its_markers(conformance):
    """The prose around it stays, and writing twice changes nothing."""
    page = f"before\n{conformance.BEGIN}\nold\n{conformance.END}\nafter\n"
    once = conformance.written(page, "new")
    assert once == f"before\n{conformance.BEGIN}\nnew\n{conformance.END}\nafter\n"
    assert conformance.written(once, "new") == once
    with pytest.raises(ValueError, match="conformance: begin"):
        conformance.written("no markers", "new")


def test_the_suites_are_those_of_the_tests(conformance):
    """Each column names a class that is there."""
    root = SCRIPT.parents[1]
    for suite in (*conformance.CHAT, *conformance.OTHERS):
        module, _, name = suite.place.rpartition(".")
        source = (root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        assert f"\nclass {name}(" in source, suite.place
