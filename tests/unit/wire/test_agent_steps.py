"""Tools together with a schema for the last answer, as agents send them."""

from typing import Any, ClassVar

import pytest
from fakes.objects import LOOK, Joke, saying
from fakes.reply import Reply, helpful

from langchain_car_vllm.wire.errors import StructuredOutputError
from langchain_car_vllm.wire.request.schema import json_schema


class TestAgentStep:
    """Tools with a `response_format`, as `create_agent` sends them."""

    FORM: ClassVar = {
        "type": "json_schema",
        "json_schema": {"name": "Joke", "schema": json_schema(Joke)},
    }

    def test_a_tool_step_is_plain_tool_calling(self, serve):
        """The server refuses tools with a `response_format`, so it never sees both."""
        model, dialect = serve()
        model.invoke("go", tools=[LOOK])
        step = model.invoke("go", tools=[LOOK], response_format=self.FORM)
        assert dialect.bodies[0] == dialect.bodies[1]
        assert len(dialect.requests) == 2
        assert [call["name"] for call in step.tool_calls] == ["look"]

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_last_step_ends_in_json(self, serve, streamed):
        """The draft is held back and followed by one constrained request without tools."""
        draft = Reply(text="It is a joke about a moon.", thought="moon")
        model, dialect = serve(lambda body: helpful(body) if "response_format" in body else draft)
        given: dict[str, Any] = {"tools": [LOOK], "response_format": self.FORM}
        if streamed:
            chunks = list(model.stream("go", **given))
            text = "".join(chunk.text for chunk in chunks)
            message = chunks[-1]
        else:
            message = model.invoke("go", **given)
            text = message.text
        assert Joke.model_validate_json(text)
        assert message.response_metadata["structured_output_method"] == "grammar"
        assert len(dialect.requests) == 2
        second = dialect.requests[1]
        assert "tools" not in second
        assert second["messages"][:1] == dialect.requests[0]["messages"]
        assert second["messages"][1]["content"] == draft.text
        assert second["messages"][1]["reasoning_content"] == "moon"

    def test_a_draft_that_fits_needs_no_second_request(self, serve):
        """A capable model may answer in JSON by itself."""
        model, dialect = serve(saying({"setup": "a", "punchline": "b"}))
        message = model.invoke("go", tools=[LOOK], response_format=self.FORM)
        assert Joke.model_validate_json(message.text)
        assert len(dialect.requests) == 1

    def test_nothing_of_a_cut_off_object_is_streamed(self, serve):
        """It is judged before it goes out."""
        cut = saying({"setup": "a", "punchline": "b"}, finish="length")
        model, _ = serve(lambda body: cut if "response_format" in body else Reply(text="draft"))
        seen = []
        with pytest.raises(StructuredOutputError, match="max_tokens"):
            seen.extend(model.stream("go", tools=[LOOK], response_format=self.FORM))
        assert seen == []

    def test_a_cut_off_object_is_an_error(self, serve):
        """An agent never ends in half an object."""
        cut = saying({"setup": "a", "punchline": "b"}, finish="length")
        model, _ = serve(lambda body: cut if "response_format" in body else Reply(text="draft"))
        with pytest.raises(StructuredOutputError, match="max_tokens"):
            model.invoke("go", tools=[LOOK], response_format=self.FORM)
