"""The chunks of a stream: how they are made, and which is the last."""

import copy
import pickle

import pytest
from fakes.reply import Reply
from langchain_core.messages import AIMessageChunk
from langchain_core.outputs import ChatGenerationChunk

from langchain_car_vllm.wire.answer.reader import Delta
from langchain_car_vllm.wire.answer.result import to_chunk


def test_the_last_chunk_says_so_and_no_empty_one_comes_before(serve):
    """A stream has its texts and one closing chunk, nothing else."""
    model, _ = serve(Reply(text="one two"))
    chunks = list(model.stream("hi"))
    assert [chunk.content for chunk in chunks] == ["one ", "two", ""]
    assert [chunk.chunk_position for chunk in chunks] == [None, None, "last"]


@pytest.mark.parametrize("delta", [Delta("text"), Delta(thought="thought"), Delta("both", "of")])
def test_a_chunk_made_fast_is_one_made_by_the_book(delta):
    """Copied from a pattern, it equals the validated one and shares nothing with others."""
    chunk, other = to_chunk(delta), to_chunk(delta)
    kwargs = {"reasoning_content": delta.thought} if delta.thought else {}
    message = AIMessageChunk(
        content=delta.text,
        additional_kwargs=kwargs,
        response_metadata={"model_provider": "vllm_mlx"},
    )
    assert chunk == ChatGenerationChunk(message=message)
    assert chunk.text == delta.text
    for name, value in vars(chunk.message).items():
        if isinstance(value, list | dict):
            assert value is not getattr(other.message, name), name


def test_a_chunk_made_fast_can_be_used_like_any_other():
    """It takes new attributes, copies, pickles and merges."""
    chunk = to_chunk(Delta("one"))
    chunk.message.id, chunk.message.note = "run-1", "mine"
    for same in (pickle.loads(pickle.dumps(chunk)), copy.deepcopy(chunk)):
        assert same == chunk
        assert same.message.note == "mine"
    assert not hasattr(to_chunk(Delta("two")).message, "note")
    assert (chunk + to_chunk(Delta("two"))).text == "onetwo"
    unset = to_chunk(Delta("three")).message.model_dump(exclude_unset=True)
    assert unset["content"] == "three"
