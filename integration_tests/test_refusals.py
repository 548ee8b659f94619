"""What the server refuses: a 400 for the one request, with the cause, and nobody else's harm."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_client import RawClient

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.child import install_launcher
from langchain_car_vllm.wire.errors import ServerFailedError

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

BAD_SCHEMAS: dict[str, Any] = {
    "bigint": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "the least number": {"type": "integer", "minimum": -(2**63), "maximum": -(2**63)},
    "beyond 64 bits": {"const": 10**20},
    "wide floats": {"type": "number", "minimum": -1e308, "maximum": 1e308},
    "end of text": {"type": "string", "pattern": "^a\\Z"},
    "repetition": {"type": "string", "pattern": "^a{,5}$"},
    "look-ahead": {"type": "string", "pattern": "(?=a)b"},
    "empty enum": {"enum": []},
    "empty range": {"type": "integer", "minimum": 5, "maximum": 1},
    "negation": {"not": {"type": "string"}},
    "foreign reference": {"$ref": "http://127.0.0.1:1/x"},
    "missing reference": {"$ref": "#/$defs/nothing"},
    "list of items": {"type": "array", "items": [{"type": "integer"}]},
    "no type": {"type": "colour"},
}


@pytest.fixture(scope="module", params=["batched", "simple"])
def model(
    request: pytest.FixtureRequest, smollm2: str, fast_cpu: dict[str, str]
) -> Iterator[ChatVllmMlx]:
    """SmolLM2 on each engine, running."""
    found = ChatVllmMlx(
        model=smollm2, engine=request.param, temperature=0, max_tokens=8, server_env=fast_cpu
    )
    found.invoke("Hello.")
    yield found
    found.unload(force=True)


@pytest.fixture
def client(model: ChatVllmMlx) -> RawClient:
    return RawClient(model)


def wanted(schema: Any) -> dict[str, Any]:
    """Return a response format that holds the schema one level down, as tools and classes do."""
    whole = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": whole}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_bad_schema_is_refused_with_its_cause(client: RawClient, name: str, stream: bool):
    """A 400 with the sentence of whoever cannot read it, streamed or not."""
    reply = client.chat("Hi.", response_format=wanted(BAD_SCHEMAS[name]), stream=stream)
    assert reply.status == 400
    assert reply.detail.startswith("the schema cannot be enforced: ")
    assert len(reply.detail) > 45


def test_a_bad_schema_ends_nobody_elses_answer(model: ChatVllmMlx):
    """Streams that are under way go on to their end."""
    many = 1 if model.engine == "simple" else 3  # the simple engine answers one after the other
    begun, answers = threading.Barrier(many + 1), []

    def stream() -> None:
        parts = model.stream("Count to a hundred.", max_tokens=40)
        first = next(parts)
        begun.wait()
        answers.append(first.text + "".join(part.text for part in parts))

    threads = [threading.Thread(target=stream) for _ in range(many)]
    for thread in threads:
        thread.start()
    begun.wait()
    for schema in BAD_SCHEMAS.values():
        assert RawClient(model).chat("Hi.", response_format=wanted(schema)).status == 400
    for thread in threads:
        thread.join()
    assert answers == [model.invoke("Count to a hundred.", max_tokens=40).text] * many


@pytest.mark.parametrize(
    "ways", [{"min_p": 2.0}, {"temperature": -1.0}, {"repetition_penalty": -1.0}], ids=str
)
def test_what_nothing_can_be_sampled_with_is_refused_by_name(
    client: RawClient, ways: dict[str, float]
):
    """A 400 that says what it must be."""
    reply = client.chat("Hi.", **ways)
    assert reply.status == 400
    assert reply.detail.startswith(f"{next(iter(ways))} must be ")


def test_tokens_of_other_models_are_passed_over(client: RawClient):
    """What is biased beyond the vocabulary changes nothing, and ends no server."""
    answer = client.chat("Hi.")
    again = client.chat("Hi.", logit_bias={"99999999": 5, "-1": -5}, top_k=10**7)
    assert (again.status, again.text) == (200, answer.text)


_scalars = st.one_of(
    st.fixed_dictionaries({"type": st.just("boolean")}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={
            "minimum": st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
            "maximum": st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
            "exclusiveMinimum": st.one_of(st.booleans(), st.integers()),
            "multipleOf": st.one_of(st.integers(-3, 10**30), st.floats(-1, 1)),
        },
    ),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(-1, 10**9),
            "maxLength": st.integers(-1, 10**9),
            "pattern": st.one_of(
                st.text(max_size=12),
                st.text(alphabet="ab()[]{}*+?|^$\\.,-:=!<>dwpZ09", max_size=12),
            ),
            "format": st.one_of(st.text(max_size=8), st.sampled_from(["date", "uuid", "email"])),
        },
    ),
    st.fixed_dictionaries({"enum": st.lists(st.one_of(st.none(), st.integers(), st.text()))}),
    st.fixed_dictionaries({"const": st.one_of(st.none(), st.floats(), st.text())}),
    st.fixed_dictionaries({"$ref": st.one_of(st.text(max_size=8), st.just("#"))}),
    st.booleans(),
    st.fixed_dictionaries({"type": st.one_of(st.text(max_size=5), st.lists(st.text(max_size=5)))}),
)
_names = st.one_of(st.sampled_from(["a", "b"]), st.text(max_size=5))
schemas = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.fixed_dictionaries(
            {"type": st.just("object")},
            optional={
                "properties": st.dictionaries(_names, inner, max_size=3),
                "required": st.lists(_names, max_size=3),
                "additionalProperties": inner,
                "patternProperties": st.dictionaries(st.text(max_size=5), inner, max_size=2),
                "minProperties": st.integers(-1, 5),
            },
        ),
        st.fixed_dictionaries(
            {"type": st.just("array")},
            optional={
                "items": st.one_of(inner, st.lists(inner, max_size=2)),
                "prefixItems": st.lists(inner, max_size=2),
                "minItems": st.integers(-1, 10**9),
                "maxItems": st.integers(-1, 10**9),
                "uniqueItems": st.booleans(),
            },
        ),
        st.dictionaries(
            st.sampled_from(["anyOf", "oneOf", "allOf"]), st.lists(inner, max_size=3), max_size=2
        ),
        st.dictionaries(st.sampled_from(["not", "if", "then", "else"]), inner, max_size=2),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def harness(
    smollm2: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Any], list[str]]]:
    """Return what the server's own code makes of a schema, without a server around it."""
    folder = tmp_path_factory.mktemp("launcher")
    install_launcher(ServerDirectory(folder))
    python = interpreter_of(ensure_runtime().server)
    process = subprocess.Popen(
        [str(python), str(Path(__file__).with_name("schema_harness.py")), str(folder), smollm2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(schema: Any) -> list[str]:
        process.stdin.write(json.dumps(schema) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield ask
    process.kill()
    process.communicate()


def test_every_schema_answers_or_is_refused(harness: Callable[[Any], list[str]]):
    """Whatever the schema: no fault while its grammar is built, used and checked."""
    seen = set()

    @settings(
        max_examples=400, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(schemas)
    def check(schema: Any) -> None:
        whole = wanted(schema)["json_schema"]["schema"]
        kind, reason = harness(whole)
        assert kind in ("answered", "refused", "ended"), reason
        assert "\n" not in reason
        seen.add(kind)

    check()
    assert {"answered", "refused"} <= seen


@pytest.mark.full
def test_no_schema_harms_anybody(model: ChatVllmMlx):
    """Whatever the schema, its request alone answers or is refused, and the server lives on."""
    client = RawClient(model)
    witness = client.chat("Say hello.").text

    @settings(
        max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(schemas, st.booleans())
    def check(schema: Any, stream: bool) -> None:
        reply = client.chat("Hi.", response_format=wanted(schema), max_tokens=4, stream=stream)
        assert reply.status in (200, 400, 422), reply

    check()
    assert client.chat("Say hello.").text == witness


def test_the_connection_after_a_failure_is_closed_and_says_so(client: RawClient):
    """A 500 announces the end of its connection, so that nobody sends another request on it."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    choice = {"type": "function", "function": {"name": "other"}}
    reply = client.chat("Hi.", tools=tools, tool_choice=choice)
    assert reply.status == 500
    assert reply.connection == "close"
    assert client.chat("Hi.").status == 200


async def _ainvoked(llm: ChatVllmMlx) -> bool:
    return bool((await llm.ainvoke("Hi.", max_tokens=1)).usage_metadata)


async def _astreamed(llm: ChatVllmMlx) -> bool:
    return bool([part async for part in llm.astream("Hi.", max_tokens=1)])


CALLS: dict[str, Callable[[asyncio.Runner, ChatVllmMlx], bool]] = {
    "invoke": lambda _, llm: bool(llm.invoke("Hi.", max_tokens=1).usage_metadata),
    "stream": lambda _, llm: bool(list(llm.stream("Hi.", max_tokens=1))),
    "ainvoke": lambda runner, llm: runner.run(_ainvoked(llm)),
    "astream": lambda runner, llm: runner.run(_astreamed(llm)),
}


@pytest.mark.parametrize("way", CALLS)
def test_fifty_requests_after_fifty_failures_work(model: ChatVllmMlx, way: str):
    """The connection of a failure is never used again: 50 of 50 requests after a 500 answer."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "other"}}
    fails = model.model_copy(update={"extra_body": {"tools": [tool], "tool_choice": choice}})
    failed = answered = 0
    with asyncio.Runner() as runner:
        for _ in range(50):
            try:
                CALLS[way](runner, fails)
            except ServerFailedError as error:
                failed += error.status == 500
            answered += CALLS[way](runner, model)
    assert (failed, answered) == (50, 50)
