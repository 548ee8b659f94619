"""`langgraph dev` with its check for blocking calls on, from a cold start of the fake server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dev_server import ASK, post, run_graph, running_dev
from faults.support import FAST, Fake

from langchain_car_vllm.server import running_servers, stop_server


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """`langgraph dev` on the application; nothing of it lives afterwards."""
    fake = Fake(tmp_path / "fake")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(fake.binary))
    try:
        with running_dev(tmp_path, str(fake.model)) as address:
            yield address
    finally:
        for directory, _ in running_servers():
            stop_server(directory, policy=FAST)


@pytest.mark.timeout(600)
def test_no_call_blocks_the_event_loop(dev: str):
    """Cold and warm, whole and streamed, on the loop and in threads; what blocks is found out."""
    found = run_graph(dev, "every_way")
    assert "messages" in found, found
    told = [message["content"].strip() for message in found["messages"]]
    assert told == ["hi", *["tok0 tok1 tok2"] * 3]
    blocked = post(dev, "/runs/wait", {"assistant_id": "blocking", "input": ASK})
    assert "locking" in blocked
    assert "nobody minded" not in blocked
    events = post(
        dev,
        "/runs/stream",
        {"assistant_id": "agent", "input": ASK, "stream_mode": ["messages-tuple", "custom"]},
    )
    assert "tok0" in events
    assert "event: error" not in events
