"""A program that talks to more addresses than connections are kept to."""

import asyncio

import psutil
import pytest
from fakes.reply import Reply

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.wire.transport.connection_pools import Address, Pools

MANY = [Address(f"http://127.0.0.1:{port}/v1", None) for port in range(1, 70)]


def connections_to(model: ChatVllmMlx) -> int:
    """Return how many connections of this process lead to a model's server."""
    port = int(str(model.base_url).split(":")[2].split("/")[0])
    found = psutil.Process().net_connections("tcp4")
    return sum(bool(each.raddr) and each.raddr.port == port for each in found)


def use(addresses: list[Address]) -> None:
    """Talk to others."""
    for address in addresses:
        with Pools(address).borrow():
            pass


def test_who_comes_back_after_many_others_is_answered(serve):
    """In the middle of an answer, too; what others came after keeps no connection."""
    model, _ = serve(Reply(text="one two three four"))
    assert model.invoke("hi").text
    stream = model.stream("hi")
    first = next(stream).text
    use(MANY)
    assert first + "".join(chunk.text for chunk in stream) == "one two three four"
    assert connections_to(model) == 0
    assert model.invoke("hi").text == model.invoke("hi").text == "one two three four"


def test_who_comes_back_on_an_event_loop_is_answered(serve):
    """The same where requests are made on an event loop."""
    model, _ = serve(Reply(text="one two three four"))

    async def run() -> None:
        assert (await model.ainvoke("hi")).text
        stream = model.astream("hi")
        first = (await anext(stream)).text
        for address in MANY:
            async with Pools(address).aborrow():
                pass
        assert first + "".join([chunk.text async for chunk in stream]) == "one two three four"
        assert connections_to(model) == 0
        assert (await model.ainvoke("hi")).text == "one two three four"

    asyncio.run(run())


@pytest.mark.parametrize("others", [0, len(MANY)])
def test_tokens_are_counted_for_who_comes_back(serve, others: int):
    """Counting goes through the same connections."""
    model, _ = serve(Reply(text="one"))
    model.invoke("hi")
    known = model.get_num_tokens("one two three")
    use(MANY[:others])
    assert model.get_num_tokens("one two three") == known
