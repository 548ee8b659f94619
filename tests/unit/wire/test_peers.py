"""What users of other packages write: usage switched off, names of providers, foreign arguments."""

import pytest
from fakes.reply import Reply
from langchain_core.messages import HumanMessage

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.errors import ConfigurationError


def test_a_stream_without_usage_has_none(serve):
    """As with other packages: the call says so, and no chunk has any."""
    model, _ = serve(Reply(text="hello there"))
    assert not any(chunk.usage_metadata for chunk in model.stream("go", stream_usage=False))
    assert any(chunk.usage_metadata for chunk in model.stream("go", stream_usage=True))


async def test_an_asynchronous_stream_without_usage_has_none(serve):
    """The other side does the same."""
    model, _ = serve(Reply(text="hello there"))
    chunks = [chunk async for chunk in model.astream("go", stream_usage=False)]
    assert not any(chunk.usage_metadata for chunk in chunks)


@pytest.mark.parametrize(
    ("name", "right"), [("stream_usage", "bind"), ("reasoning_effort", "reasoning=")]
)
def test_what_belongs_elsewhere_is_said_to(name, right):
    """Not that it goes into `extra_body`."""
    with pytest.raises(ConfigurationError) as caught:
        ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1", **{name: "low"})
    assert right in (caught.value.hint or "")


def test_token_ids_are_refused_with_what_to_use():
    """LangChain's own way would ask for another package and another model's tokenizer."""
    with pytest.raises(ConfigurationError) as caught:
        ChatVllmMlx(model="m", base_url="http://127.0.0.1:9/v1").get_token_ids("hello")
    assert "get_num_tokens" in (caught.value.hint or "")


def test_a_function_of_the_users_own_counts_tokens():
    """It was passed over in silence."""
    model = ChatVllmMlx(
        model="m", base_url="http://127.0.0.1:9/v1", custom_get_token_ids=lambda _: [7] * 11
    )
    assert model.get_token_ids("hello") == [7] * 11
    assert model.get_num_tokens("hello") == 11
    assert model.get_num_tokens_from_messages([HumanMessage("a"), HumanMessage("b")]) == 22
