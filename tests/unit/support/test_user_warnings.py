"""Warnings point at the program that they are about."""

import asyncio
import warnings
from contextlib import suppress

import pytest

from langchain_car_vllm import ChatVllmMlx, errors
from langchain_car_vllm.support.user_warnings import warn_user

NOBODY = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0}


def _invoke() -> None:
    with suppress(errors.ConnectionFailedError):
        ChatVllmMlx(**NOBODY).invoke("hi", n=2)


async def _ainvoke() -> None:
    with suppress(errors.ConnectionFailedError):
        await ChatVllmMlx(**NOBODY).ainvoke("hi", n=2)


@pytest.mark.parametrize("call", [_invoke, lambda: asyncio.run(_ainvoke())])
def test_the_line_is_one_of_the_program(call, socket_enabled: None):
    """Not one of this package or of LangChain, which stand between the two."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert [w.filename for w in caught if "ignores `n`" in str(w.message)] == [__file__]


def test_a_thread_without_a_caller_is_warned_too():
    """What no line of the program leads to is still said."""
    with pytest.warns(UserWarning, match="beware"):
        asyncio.run(asyncio.to_thread(warn_user, "beware"))


def test_a_warning_gives_a_terminal_no_orders():
    """What tools and servers wrote stands in warnings."""
    with pytest.warns(UserWarning, match="the file") as caught:
        warn_user("the file \x1b]52;c;aGk=\x07 is not sent")
    assert str(caught[0].message) == r"the file \x1b]52;c;aGk=\x07 is not sent"
