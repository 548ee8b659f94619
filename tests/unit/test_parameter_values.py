"""A value means the same wherever a parameter is set, and what is none is refused everywhere."""

import asyncio
import json
from contextlib import suppress
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fakes.dialect import Dialect
from fakes.dialect_server import Server
from langchain_core.runnables import ConfigurableField
from pydantic import TypeAdapter, ValidationError

from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.checked_fields import CheckedFields, _checked_names
from langchain_car_vllm.errors import CarVllmError, ConfigurationError
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.parameter_values import _KINDS, Count, Number
from langchain_car_vllm.wire.request.parameters import SAMPLING

numpy = pytest.importorskip("numpy", reason="its numbers are what people have")

MODEL = "vllm-mlx/qwen3.6-35b-a3b:4bit"
NUMBERS = [0, 1, 5, -1, 0.5, 5.0, 1e400, float("nan"), 10**400, Decimal("0.5"), Decimal(5)]
OF_NUMPY = [numpy.float32(0.5), numpy.int64(5), numpy.float64(5), numpy.array(5), numpy.True_]
TEXTS = ["0.5", "5", " 5 ", "5x", "", "a", "low", "Low", "yes", "10m", b"5", numpy.str_("a")]
LISTS = [["a"], ("a",), {"b", "a"}, numpy.array(["a", "b"]), [5], [], [None]]
OTHERS = [True, False, Fraction(1, 2), {}, {"a": 1}, {5: 1}, object(), Path("none/at/all")]
VALUES = [*NUMBERS, *OF_NUMPY, *TEXTS, *LISTS, *OTHERS]

in_both = sorted(_KINDS.keys() & ChatVllmMlx.model_fields.keys())


def outcome(make: Any, given: dict[str, Any]) -> Any:
    """Return all that a call would do, or that it is refused."""
    stop = given.pop("stop", None)
    try:
        call = make()._call(stop, given)
    except CarVllmError:
        return "refused"
    return repr(
        (
            call.spec,
            call.spec.keep_alive,
            sorted(call.stop),
            {k: v for k, v in call.given.items() if v},
        )
    )


def assigned(name: str, value: Any) -> ChatVllmMlx:
    model = ChatVllmMlx(model=MODEL)
    setattr(model, name, value)
    return model


def configured(name: str, value: Any) -> Any:
    field: Any = {name: ConfigurableField(id="it")}
    configurable: Any = ChatVllmMlx(model=MODEL).configurable_fields(**field)
    return configurable.prepare({"configurable": {"it": value}})[0]


@pytest.mark.parametrize("name", in_both)
def test_a_value_means_the_same_wherever_it_is_set(name, tmp_path: Path, monkeypatch):
    """In a constructor, a copy, an assignment, the configuration, `model_kwargs` and a call."""
    monkeypatch.chdir(tmp_path)
    plain = ChatVllmMlx(model=MODEL)
    for value in VALUES:
        ways: dict[str, Any] = {
            "constructor": lambda v: ChatVllmMlx(**{"model": MODEL, name: v}),
            "copy": lambda v: plain.model_copy(update={name: v}),
            "assignment": lambda v: assigned(name, v),
            "configuration": lambda v: configured(name, v),
        }
        if name not in ("stop", "model"):  # a call names them by themselves
            ways["model_kwargs"] = lambda v: ChatVllmMlx(model=MODEL, model_kwargs={name: v})
        found = {way: outcome(lambda: make(value), {}) for way, make in ways.items()}  # noqa: B023
        found["call"] = outcome(lambda: plain, {name: value})
        assert len(set(found.values())) == 1, (value, found)


@pytest.mark.parametrize("name", sorted(_KINDS))
def test_no_number_is_a_truth_value(name):
    """True was 1.0 for a constructor."""
    if _KINDS[name].type in (Number, Count):
        for value in (True, False, numpy.True_):
            with pytest.raises(ConfigurationError, match=f"`{name}` must be a "):
                ChatVllmMlx(model=MODEL)._call(None, {name: value})


def all_kinds(cls: type[CheckedFields] = CheckedFields) -> set[type[CheckedFields]]:
    return {cls}.union(*map(all_kinds, cls.__subclasses__()))


def test_no_field_of_ours_takes_a_truth_value_for_a_number():
    """Each is a `Number` or a `Count`; LangChain's own are its own."""
    assert {ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker} <= all_kinds()
    ours = [cls for cls in all_kinds() if cls.__module__.startswith("langchain_car_vllm.")]
    for cls in ours:
        for name in _checked_names(cls):
            adapter = TypeAdapter(cls.model_fields[name].rebuild_annotation(), config={})
            with suppress(ValidationError):
                assert adapter.validate_python(True) is True, name


@pytest.mark.parametrize("cls", [VllmMlxEmbeddings, VllmMlxReranker])
@pytest.mark.parametrize("name", ["timeout", "batch_size", "startup_timeout"])
def test_batches_are_counted_in_numbers(cls, name):
    """As the fields of a chat model are."""
    with pytest.raises(ConfigurationError, match=f"`{name}` must be a "):
        cls(model="org/name", **{name: True})
    assert getattr(cls(model="org/name", **{name: numpy.int64(5)}), name) == 5


@pytest.fixture(scope="module")
def server():
    with Server(Dialect()) as found:
        yield found


@pytest.mark.parametrize("name", ["extra_body", "chat_template_kwargs", "logit_bias"])
def test_numbers_of_any_library_reach_the_server_in_dictionaries(server, name):
    """They were of a type that is not JSON serializable."""
    model = ChatVllmMlx(model="m", base_url=server.base_url)
    inner = [numpy.int64(3), numpy.float32(0.5), numpy.True_, Decimal("0.25"), Fraction(1, 2)]
    model.bind(**{name: {"a": inner}}).invoke("hi")
    sent = server.dialect.requests[-1]
    assert (sent if name == "extra_body" else sent[name])["a"] == [3, 0.5, True, 0.25, 0.5]


@pytest.mark.parametrize("name", ["chat_template_kwargs", "logit_bias", "response_format"])
@pytest.mark.parametrize("value", [object(), {1}, float("nan")])
def test_what_cannot_be_written_is_named(server, name, value):
    """By its field; and nothing is left out and tried again, as where a server refuses a field."""
    model = ChatVllmMlx(model="m", base_url=server.base_url, extra_body={name: {"a": value}})
    count = len(server.dialect.requests)
    for call in (model.invoke, lambda text: asyncio.run(model.ainvoke(text))):
        with pytest.raises(InvalidRequestError, match=f"`{name}` cannot be written as JSON"):
            call("hi")
    assert len(server.dialect.requests) == count


@pytest.mark.parametrize("most", ["x", 5.5, [], {}, True])
def test_the_server_says_what_it_does_not_take_in_an_extra_body(server, most):
    """Its own words, not Python's about the sum of an integer and a string."""
    model = ChatVllmMlx(model="m", base_url=server.base_url, extra_body={"max_tokens": most})
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        model.invoke("hi")


@pytest.mark.parametrize("name", ["max_input_tokens", "max_output_tokens"])
@pytest.mark.parametrize("most", [0, -3])
def test_a_profile_has_room_for_a_token(name, most):
    """Every prompt was too long for it."""
    with pytest.raises(ConfigurationError, match=f"profile.{name}"):
        ChatVllmMlx(model=MODEL, profile={name: most})


def test_a_sampled_number_is_plain_in_the_request(server):
    """As JSON has it, whatever it came as."""
    model = ChatVllmMlx(model="m", base_url=server.base_url)
    model.bind(**dict.fromkeys(SAMPLING, "1")).invoke("hi")
    sent = server.dialect.requests[-1]
    assert json.dumps([sent[name] for name in SAMPLING]) == "[1.0, 1.0, 1, 1.0, 1.0, 1.0, 1]"
