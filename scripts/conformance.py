"""Write the conformance table of `docs/langchain.md` from the results of the test runs.

    make test-full      # leaves its results in .results/
    make conformance    # writes the table

The suites are those of langchain-tests, as they are. Whatever JUnit files lie in `.results/` are
read, the older first, so a suite that was run again replaces its earlier results. A suite of which
there are none keeps its column and says so.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".results"
PAGE = ROOT / "docs" / "langchain.md"
LOCK = ROOT / "langchain_car_vllm" / "runtime" / "requirements.lock"
BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"


class Suite(NamedTuple):
    """One run of langchain-tests.

    Attributes:
        title: The column's head.
        place: Module and class of the tests.
    """

    title: str
    place: str


CHAT = (
    Suite("fake server", "tests.standard.test_chat_model.TestIntegration"),
    Suite("Qwen, batched", "integration_tests.test_standard.TestQwenBatched"),
    Suite("Qwen, simple", "integration_tests.test_standard.TestQwenSimple"),
    Suite("SmolLM2, batched", "integration_tests.test_standard.TestSmolLM2Batched"),
    Suite("SmolLM2, simple", "integration_tests.test_standard.TestSmolLM2Simple"),
)
OTHERS = (
    Suite("`ChatVllmMlx`, unit", "tests.standard.test_chat_model.TestUnit"),
    Suite("`VllmMlxEmbeddings`, unit", "tests.standard.test_embeddings.TestUnit"),
    Suite("`VllmMlxEmbeddings`, fake server", "tests.standard.test_embeddings.TestIntegration"),
    Suite("`VllmMlxEmbeddings`, real server", "integration_tests.test_embeddings.TestStandard"),
)


class Outcome(NamedTuple):
    """How one test ended.

    Attributes:
        word: `passed`, `skipped` or `failed`.
        reason: Why it was skipped.
    """

    word: str
    reason: str = ""


Outcomes = dict[str, dict[str, Outcome]]
"""By suite, then by test with its parameters."""


def read(files: Iterable[Path]) -> Outcomes:
    """Return the outcomes in JUnit files; a later file's replace an earlier one's."""
    found: Outcomes = {}
    for file in files:
        for case in ET.parse(file).getroot().iter("testcase"):  # noqa: S314 - our own files
            suite = found.setdefault(case.get("classname", ""), {})
            suite[case.get("name", "")] = _outcome(case)
    return found


def _outcome(case: ET.Element) -> Outcome:
    if case.find("failure") is not None or case.find("error") is not None:
        return Outcome("failed")
    skipped = case.find("skipped")
    return Outcome("passed") if skipped is None else Outcome("skipped", skipped.get("message", ""))


def table(outcomes: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return the tables in Markdown."""
    columns = [outcomes.get(suite.place, {}) for suite in CHAT]
    names = sorted({_plain(name) for column in columns for name in column})
    versions = [
        f"{name} {metadata.version(name)}" for name in ("langchain-tests", "langchain-core")
    ]
    lines = [
        f"With {', '.join(versions)} and vllm-mlx {_server_version()}; an empty cell was not run.",
        "",
        _row("", *(suite.title for suite in CHAT)),
        _row("---", *("---" for _ in CHAT)),
        _row("**passed**", *(_sum(column) for column in columns)),
    ]
    lines += [_row(f"`{name}`", *(_cell(column, name) for column in columns)) for name in names]
    lines += ["", _row("other suites", "passed"), _row("---", "---")]
    lines += [_row(suite.title, _sum(outcomes.get(suite.place, {}))) for suite in OTHERS]
    reasons = sorted({_why(found) for column in columns for found in column.items()} - {""})
    if reasons:
        lines += ["", "Skipped, as langchain-tests says:", "", *(f"- {why}" for why in reasons)]
    return "\n".join(lines)


def written(page: str, text: str) -> str:
    """Return a page with the text between its markers.

    Raises:
        ValueError: The page has no markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        message = f"the page has no `{BEGIN}` and `{END}`"
        raise ValueError(message)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _plain(name: str) -> str:
    return name.partition("[")[0]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _sum(column: Mapping[str, Outcome]) -> str:
    if not column:
        return "not run"
    words = [outcome.word for outcome in column.values()]
    asked = len(words) - words.count("skipped")
    return f"{words.count('passed')} of {asked}"


def _cell(column: Mapping[str, Outcome], test: str) -> str:
    words = {outcome.word for name, outcome in column.items() if _plain(name) == test}
    marks = {"failed": "**failed**", "passed": "✓", "skipped": "skipped"}
    return next((mark for word, mark in marks.items() if word in words), "")


def _why(found: tuple[str, Outcome]) -> str:
    name, outcome = found
    return f"`{_plain(name)}`: {outcome.reason}" if outcome.word == "skipped" else ""


def _server_version() -> str:
    found = re.search(r"^vllm-mlx==([\w.]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "of your own"


def main() -> int:
    """Write the page, or say that there is nothing to write."""
    files = sorted(RESULTS.glob("*.xml"), key=lambda file: file.stat().st_mtime)
    if not files:
        print(f"there are no results in {RESULTS.name}/: run `make test-full` first")
        return 1
    text = table(read(files))
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
