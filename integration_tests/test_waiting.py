"""Waiting honestly on the real server."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.progress import Progress

_ENDLESS = {"28": 100}  # A comma of SmolLM2's, which the answer then consists of.


def test_a_request_behind_another_says_that_it_waits(chat: Callable[..., ChatVllmMlx]):
    """On the engine that answers one at a time, and its answer begins once the other has ended."""
    heard: list[Progress] = []
    busy = chat(engine="simple", max_tokens=1900).stream("Say hi.", logit_bias=_ENDLESS)
    next(busy)

    def listen(progress: Progress) -> None:
        heard.append(progress)
        if progress.stage == "queued" and "waiting" in progress.detail:
            busy.close()

    waiting = chat(engine="simple", max_tokens=4, on_progress=listen)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(lambda: "".join(chunk.text for chunk in waiting.stream("Say hi.")))
        assert answer.result(timeout=50)
    stages = [progress.stage for progress in heard]
    assert stages[:2] == ["ready", "queued"]
    assert stages[-1] == "generating"
    waiting.unload(force=True)
