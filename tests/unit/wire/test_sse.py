"""Server-sent events are read as the specification has them."""

import json

import pytest

from langchain_car_vllm.wire.answer.sse import EventReader

EVENT = {"id": "1", "choices": [{"delta": {"content": "a\\nb"}, "index": 0}], "n": {}}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_of_several_lines_are_read(end: str, size: int):
    """As the specification has them; blank lines between those of one line are not needed."""
    written = json.dumps(EVENT, indent=1).splitlines()
    lines = [*(f"data: {line}" for line in written), "", ": heartbeat", 'data: {"n": 2}']
    lines += ['data: {"n": 3}', "", *(f"data:{line}" for line in written), "", "data: [DONE]"]
    raw = end.join(lines).encode()
    reader = EventReader()
    found = [p for n in range(0, len(raw), size) for p in reader.feed(raw[n : n + size])]
    found += reader.end()
    assert found.pop() == b"[DONE]"
    assert [json.loads(payload) for payload in found] == [EVENT, {"n": 2}, {"n": 3}, EVENT]


def test_a_last_event_of_several_lines_needs_no_end():
    """The stream is over: there is nothing to wait for; what is held is counted."""
    reader = EventReader()
    assert reader.feed(b'data: {"n":\ndata: 1') == []
    assert reader.held == len(b'{"n":') + len(b"data: 1")
    assert reader.end() == [b'{"n":\n1']


def test_a_long_event_in_small_parts_is_read_at_once():
    """The time it takes grows with its length, not with the square of it."""
    reader = EventReader()
    found: list[bytes] = []
    for _ in range(1_000_000):
        found += reader.feed(b"x")
    assert reader.feed(b"\ndata: 1\nda") == [b"1"]
    assert found == []
    assert reader.feed(b"ta: 2") == []
    assert reader.end() == [b"2"]
