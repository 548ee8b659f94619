"""Structured output with the raw message beside it."""

import pickle

from fakes.objects import Joke, saying
from fakes.reply import Reply

from langchain_car_vllm.wire.errors import StructuredOutputError


def test_the_raw_message_streams_before_the_object(serve):
    """Part by part, then the object; the sum is what `invoke` gives."""
    text = '{"setup": "Why?", "punchline": "So."}'
    model, _ = serve(Reply(text=text, pieces=[text[:14], text[14:25], text[25:]]))
    chain = model.with_structured_output(Joke, include_raw=True)
    parts = list(chain.stream("go"))
    kinds = ["raw" if "raw" in part else "parsed" for part in parts]
    assert kinds == ["raw"] * (len(kinds) - 1) + ["parsed"]
    assert len(kinds) >= 4
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = chain.invoke("go")
    assert total["parsed"] == whole["parsed"] == Joke(setup="Why?", punchline="So.")
    assert total["raw"].text == whole["raw"].text
    assert total["parsing_error"] is whole["parsing_error"] is None


async def test_the_raw_message_streams_without_blocking_too(serve):
    """The asynchronous side gives the same."""
    model, _ = serve(saying({"setup": "Why?"}, finish="length"))
    chain = model.with_structured_output(Joke, include_raw=True)
    parts = [part async for part in chain.astream("go")]
    assert "".join(part["raw"].text for part in parts[:-1]) == '{"setup": "Why?"}'
    assert isinstance(parts[-1]["parsing_error"], StructuredOutputError)
    assert isinstance((await chain.ainvoke("go"))["parsing_error"], StructuredOutputError)


def test_a_chain_with_the_raw_message_can_be_pickled(serve):
    """To be sent to another process, as every other chain."""
    model, _ = serve(saying({"setup": "a", "punchline": "b"}))
    chain = pickle.loads(pickle.dumps(model.with_structured_output(Joke, include_raw=True)))
    assert chain.invoke("go")["parsed"] == Joke(setup="a", punchline="b")
