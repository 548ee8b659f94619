"""Parts of several calls, however a server says which part is of which call."""

import json

import pytest
from fakes.calls import called, shout, ways
from fakes.reply import Reply
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.wire.events import call_event, part, stream

from langchain_car_vllm import CutOffCallWarning
from langchain_car_vllm.wire.answer.call_collector import CallCollector
from langchain_car_vllm.wire.answer.call_parts import CallReader
from langchain_car_vllm.wire.answer.reader import Answer

STOP = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
WHOLE = '{"text": "a"}'
MARKS = {
    "numbers": lambda place: {"index": place},
    "texts": lambda place: {"index": str(place)},
    "fractions": lambda place: {"index": float(place)},
    "ids": lambda place: {"id": f"call-{place}"},
    "ids at one index": lambda place: {"index": 0, "id": f"call-{place}"},
    "ids that are numbers": lambda place: {"id": place + 1},
    "both": lambda place: {"index": place, "id": f"call-{place}"},
    "one id for all": lambda place: {"index": place, "id": "call"},
}


@pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
@given(data=st.data())
def test_parts_in_any_order_make_the_calls_that_were_meant(mark, data):
    """An agent would run a tool with the arguments of another call."""
    texts = data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=3))
    left = [[(name, "") for name in ["f"]] + [(None, c) for c in json.dumps(t)] for t in texts]
    left = [[*parts[:1], (None, '{"a": '), *parts[1:], (None, "}")] for parts in left]
    reader, collector = CallReader(), CallCollector()
    while waiting := [place for place, parts in enumerate(left) if parts]:
        place = data.draw(st.sampled_from(waiting))
        name, arguments = left[place].pop(0)
        collector.feed(reader.read([part(name, arguments, **mark(place))]))
    collector.feed(reader.end())
    valid, invalid = collector.parse(whole=True)
    assert not invalid
    assert sorted(call["args"]["a"] for call in valid) == sorted(texts)
    assert len({call["id"] for call in valid}) == len(texts)


@pytest.mark.parametrize("number", [0, None], ids=["one index", "no index"])
def test_calls_of_one_id_are_two_with_two_ids(serve, number):
    """A result could not be told to be that of one of them; what is sent again is no second one."""
    calls = [part("shout", json.dumps({"text": t}), index=number, id="0") for t in "ab"]
    for events, texts in (
        ([call_event(*calls)], "ab"),
        ([call_event(call) for call in calls], "ab"),
        ([call_event(calls[0]), call_event(calls[0])], "a"),
    ):
        model, _ = serve(stream(*events, STOP), streaming=True)
        message = model.bind_tools([shout]).invoke("go")
        assert called(message) == [("shout", {"text": text}) for text in texts]
        assert len({call["id"] for call in message.tool_calls}) == len(texts)


@pytest.mark.parametrize("ids", [True, False], ids=["an id", "no id"])
@given(data=st.data())
def test_a_name_that_comes_again_makes_no_call_of_its_own(ids, data):
    """With nothing behind it, an agent would run the tool once more, without arguments."""
    texts = data.draw(st.lists(st.text(max_size=3), min_size=1, max_size=3))
    reader, collector = CallReader(), CallCollector()
    for place, text in enumerate(texts):
        mark = {"index": place, **({"id": f"call-{place}"} if ids else {})}
        whole = json.dumps({"a": text})
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
        pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        for number, piece in enumerate([*pieces, ""]):
            is_told = number == 0 or data.draw(st.booleans())
            sent = mark if is_told else {"index": place}
            collector.feed(reader.read([part("f", piece, **sent)]))
    collector.feed(reader.end())
    valid, invalid = collector.parse(whole=True)
    assert not invalid
    assert [call["args"] for call in valid] == [{"a": text} for text in texts]


@pytest.mark.parametrize("mark", [{}, {"index": 0}, {"id": "call"}, {"index": 0, "id": "call"}])
@given(data=st.data())
def test_calls_that_nothing_tells_apart_begin_with_a_name(mark, data):
    """Also where the arguments follow it, and the tool is the one that was called before."""
    wanted = data.draw(
        st.lists(st.tuples(st.sampled_from("fg"), st.integers(0, 99)), min_size=1, unique=True)
    )
    reader, collector = CallReader(), CallCollector()
    for name, number in wanted:
        whole = json.dumps({"a": number})
        at = data.draw(st.integers(0, len(whole)))
        for told, piece in ((name, ""), (None, whole[:at]), (None, whole[at:]), (None, "")):
            collector.feed(reader.read([part(told, piece, **mark)]))
    collector.feed(reader.end())
    valid, invalid = collector.parse(whole=True)
    assert not invalid
    assert [(call["name"], call["args"]["a"]) for call in valid] == wanted


def test_a_call_in_openais_former_shape_is_one(serve):
    """Some gateways still send it, and a list that is none."""
    former = [{"name": "shout", "arguments": ""}, {"arguments": WHOLE}]
    empty = {"content": "hi", "function_call": {"name": "", "arguments": ""}}

    def script(body):
        if body.get("stream"):
            deltas = [{"choices": [{"delta": {"function_call": call}}]} for call in former]
            return stream(*deltas, {"choices": [{"delta": {}, "finish_reason": "function_call"}]})
        said = {"content": None, "function_call": {"name": "shout", "arguments": WHOLE}}
        choice = {"message": said, "finish_reason": "function_call"}
        return Reply(raw=json.dumps({"choices": [choice]}).encode())

    model, _ = serve(script)
    for way, message in ways(model.bind_tools([shout]), "go").items():
        assert called(message) == [("shout", {"text": "a"})], way
        assert message.response_metadata["finish_reason"] == "tool_calls"
    model, _ = serve(stream({"choices": [{"delta": empty}]}, STOP), streaming=True)
    assert not called(model.bind_tools([shout]).invoke("go"))
    alone = {"tool_calls": part("shout", WHOLE, index=0, id="1")}
    model, _ = serve(stream({"choices": [{"delta": alone}]}, STOP), streaming=True)
    assert called(model.bind_tools([shout]).invoke("go")) == [("shout", {"text": "a"})]


CUT = ['{"text": "/home/us', '{"text": "a", "more": tru', '{"text": "a"', '{"text"{"text": "a"}']


@pytest.mark.parametrize("arguments", CUT)
@pytest.mark.parametrize("finish", ["tool_calls", "stop", "length"])
def test_a_call_without_an_end_is_no_whole_one(serve, arguments, finish):
    """Whatever reason is given: vLLM says `tool_calls` of what ran out of tokens, too."""

    def script(body):
        call = part("shout", arguments, index=0, id="1")
        if body.get("stream"):
            return stream(call_event(call, finish=finish))
        choice = {"message": {"tool_calls": [call]}, "finish_reason": finish}
        return Reply(raw=json.dumps({"choices": [choice]}).encode())

    model, _ = serve(script)
    with pytest.warns(CutOffCallWarning, match="max_tokens"):
        answers = ways(model.bind_tools([shout]), "go")
    for way, message in answers.items():
        assert not message.tool_calls, way
        assert message.invalid_tool_calls[0]["args"].startswith(arguments)


@pytest.mark.parametrize("behind", ["", " ", "</tool_call>", "\n```"])
def test_what_a_server_leaves_behind_a_call_spoils_none(serve, behind, recwarn):
    """Nor does a line break within a text of its arguments."""
    call = part("shout", '{"text": "a\nb"}' + behind, index=0, id="1")
    model, _ = serve(stream(call_event(call), STOP))
    message = model.bind_tools([shout]).invoke("go")
    assert called(message) == [("shout", {"text": "a\nb"})]
    assert not recwarn.list


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.none() | st.text(max_size=3)),
    st.integers(1, 4),
    st.integers(0, 2),
)
def test_arguments_arrive_as_they_were_sent(arguments, cut, times):
    """However they are cut: null within an object is a value. JSON in a text is JSON."""
    plain = text = json.dumps(arguments)
    for _ in range(times):
        text = json.dumps(text)
    answer = Answer(streamed=True)
    parts = [text[i : i + cut] for i in range(0, len(text), cut)]
    events = [call_event(part("f" if not i else None, p, index=0)) for i, p in enumerate(parts)]
    data = b"".join(b"data: " + json.dumps(e).encode() + b"\n" for e in [*events, STOP])
    deltas = [*answer.feed(data), *answer.end()]
    assert "".join(c["args"] or "" for d in deltas for c in d.calls) == plain
