"""Answers that come whole, such as vectors and scores. Importing this module imports httpcore."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import httpcore2

from langchain_car_vllm.endpoint import Endpoint, Headers
from langchain_car_vllm.support.json_objects import read_json_object
from langchain_car_vllm.wire.answer.event_failures import failure_of
from langchain_car_vllm.wire.errors import ServerFailedError
from langchain_car_vllm.wire.transport.connection_pools import Pools, address_of
from langchain_car_vllm.wire.transport.error_mapping import map_encoding_errors, map_errors
from langchain_car_vllm.wire.transport.send import ChatRequest, aopen_stream, open_stream
from langchain_car_vllm.wire.transport.timeouts import Clock

_MOST_BYTES = 256 << 20


class WholeAnswers:
    """Asks one endpoint for answers that come in one piece.

    Args:
        endpoint: Who answers.
        headers: Sent with every request.
        timeout: Seconds a request may take, None for no limit.
    """

    def __init__(self, endpoint: Endpoint, headers: Headers, timeout: float | None) -> None:
        self.endpoint = endpoint
        self._address = address_of(endpoint, headers)
        self._pools = Pools(self._address, endpoint.is_ours)
        self._timeout = timeout

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object that answers a request, an empty one where none does.

        Raises:
            AnswerError: The server refuses or fails, with its own words.
        """
        clock = Clock(self.endpoint, self._timeout, total=True)
        build, answer = partial(self._request, path, body, clock), bytearray()
        with self._map_errors():
            with (
                self._pools.borrow() as pool,
                open_stream(pool, build, clock.deadline, end=clock.end) as parts,
            ):
                for part in parts:
                    clock.check(0)
                    _add(answer, part)
            return _read(answer)

    async def apost(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same without blocking the event loop."""
        clock = Clock(self.endpoint, self._timeout, total=True)
        build, answer = partial(self._request, path, body, clock), bytearray()
        with self._map_errors():
            async with (
                self._pools.aborrow() as pool,
                aopen_stream(pool, build, clock.deadline, end=clock.end) as parts,
            ):
                async for part in parts:
                    clock.check(0)
                    _add(answer, part)
            return _read(answer)

    def _map_errors(self) -> AbstractContextManager[None]:
        return map_errors(self.endpoint, self._timeout, sent=lambda: dict(self._address.headers))

    def _request(self, path: str, body: Mapping[str, Any], clock: Clock) -> httpcore2.Request:
        named = {"model": self.endpoint.served_model, **body}
        with map_encoding_errors(named):
            return ChatRequest(self._address, path).build(named, clock.step_timeouts)


def _add(answer: bytearray, part: bytes) -> None:
    answer += part
    if len(answer) > _MOST_BYTES:
        raise ServerFailedError(f"the answer is longer than {_MOST_BYTES >> 20} MB")


def _read(answer: bytearray) -> dict[str, Any]:
    """Return what an answer says.

    Raises:
        AnswerError: It tells of a failure, as some do with a status of success.
    """
    found = read_json_object(answer) or {}
    if (failure := failure_of(found)) is not None:
        raise failure
    return found
