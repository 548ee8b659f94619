"""A prompt without a token is refused before anybody else is answered with it."""

import sys
import types
from collections import deque

import pytest

from langchain_car_vllm.server.supervisor.mends import text_prompts


class HTTPException(Exception):  # noqa: N818 - the server's name
    """What the server answers with a status."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(status_code, detail)


class Scheduler:
    """Turns prompts into tokens, and puts them into its queue."""

    def __init__(self) -> None:
        self.requests, self.waiting = {}, deque()

    def add_request(self, request):
        request.prompt_token_ids = list(request.prompt)
        self.requests[request.request_id] = request
        self.waiting.append(request)


def test_an_empty_prompt_is_refused(monkeypatch: pytest.MonkeyPatch):
    """With a 400, and nothing of it stays in the queue."""
    monkeypatch.setitem(sys.modules, "fastapi", types.SimpleNamespace(HTTPException=HTTPException))
    text_prompts._refuse_empty_prompts.apply(types.SimpleNamespace(Scheduler=Scheduler))
    scheduler = Scheduler()
    good = types.SimpleNamespace(request_id="a", prompt="Hi")
    scheduler.add_request(good)
    with pytest.raises(HTTPException) as caught:
        scheduler.add_request(types.SimpleNamespace(request_id="b", prompt=""))
    assert caught.value.args == (400, "the prompt is empty")
    assert (scheduler.requests, list(scheduler.waiting)) == ({"a": good}, [good])
