"""Schemas that go out become grammars, whatever patterns, bounds and forms users write."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langchain_car_vllm.runtime import ensure_runtime
from langchain_car_vllm.wire.request.grammar import grammar_schema
from langchain_car_vllm.wire.request.patterns import weaken_pattern

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

HARNESS = Path(__file__).with_name("grammar_harness.py")
UNSATISFIABLE = "nsatisfiable"
PIECES = [
    *"ab1 -_.,:/|^$",
    *("\\d", "\\w+", "\\s*", "\\S", "\\b", "\\B", "\\Z", "\\A", "\\.", "\\-", "\\u00e9", "\\x41"),
    *("\\W", "\\D", "[^\\w]", "[^\\W\\d_]"),
    *("[a-z]", "[^/]", "[\\w.-]", "[]a]", "[a-]", "(?:", "(", "(?P<n>", "(?=", "(?!", "(?<=", ")"),
    *("*", "+", "?", "{2}", "{,5}", "{3,}", "{1,4}", "*?", "{", "}", "]", "(?i)", "\\1", "\\p{L}"),
]
bounds = st.one_of(
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 1e308, -1e308, 1e-300, 0.1]),
)


@pytest.fixture(scope="module")
def build(machine: None) -> Iterator[Callable[[Any], str]]:
    """Return a function that builds a grammar and returns what is wrong with it."""
    python = ensure_runtime().server.parent / "python"
    command = [str(python if python.exists() else sys.executable), str(HARNESS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdin is not None
        assert run.stdout is not None

        def ask(schema: Any) -> str:
            run.stdin.write(json.dumps(schema) + "\n")
            run.stdin.flush()
            return str(json.loads(run.stdout.readline()))

        yield ask
        run.stdin.close()


def held(part: Any) -> dict[str, Any]:
    """Return a schema that holds another where nobody must fill it."""
    return {"type": "object", "properties": {"x": {"anyOf": [part, {"type": "null"}]}}}


def check(strategy: st.SearchStrategy[Any], build: Callable[[Any], str]) -> None:
    """Build the grammar of whatever the strategy gives."""

    @settings(
        max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def every(part: Any) -> None:
        complaint = build(grammar_schema(held(part)))
        assert not complaint or UNSATISFIABLE in complaint, complaint

    every()


def test_any_pattern_that_python_reads(build: Callable[[Any], str]):
    """What the grammar cannot read is left out, what stays means no less."""
    check(
        st.lists(st.sampled_from(PIECES), max_size=9).map(
            lambda pieces: {"type": "string", "pattern": "".join(pieces)}
        ),
        build,
    )


def test_any_bounds(build: Callable[[Any], str]):
    """Of whole and broken numbers, lengths and counts."""
    names = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
    numbers = st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional=dict.fromkeys(names, bounds),
    )
    sizes = st.fixed_dictionaries(
        {"type": st.just("string")},
        optional=dict.fromkeys(["minLength", "maxLength"], st.integers(0, 2**70)),
    )
    lists = st.fixed_dictionaries(
        {"type": st.just("array"), "items": st.just({"type": "boolean"})},
        optional=dict.fromkeys(["minItems", "maxItems"], st.integers(0, 2**70)),
    )
    check(st.one_of(numbers, sizes, lists), build)


def test_ordinary_patterns_keep_their_force(build: Callable[[Any], str]):
    """They are enforced as they are, not left out."""
    for pattern in (
        r"^\d{4}-\d{2}-\d{2}$",
        r"^[a-z0-9]+(?:-[a-z0-9]+)*$",
        r"^[^@\s]+@[^@\s]+\.[a-z]{2,}$",
        r"^(red|green|blue)$",
        r"^\+?[0-9 ()-]{7,20}$",
        r"^#[0-9a-fA-F]{6}$",
    ):
        assert weaken_pattern(pattern) == pattern
        assert re.compile(pattern)
        assert not build(grammar_schema(held({"type": "string", "pattern": pattern})))
