"""What is not the object that was asked for is told as what it is, with what to do."""

import json

import pytest
from fakes.calls import add
from fakes.reply import Reply
from pydantic import BaseModel

from langchain_car_vllm.wire.errors import StructuredOutputError


class Moon(BaseModel):
    """A moon."""

    name: str
    size: int


WHOLE = '{"name": "Io", "size": 1}'
SCHEMA = Moon.model_json_schema()


@pytest.mark.parametrize("schema", [Moon, SCHEMA], ids=["class", "schema"])
@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("Sure! Here it is.", "does not constrain its answers", "a server that does"),
        (f"Here: {WHOLE}", "does not constrain its answers", "a server that does"),
        (f"{WHOLE} is it.", "does not constrain its answers", "a server that does"),
        (WHOLE * 2, "does not constrain its answers", "a server that does"),
        (WHOLE[:-1], "not complete JSON", "raise `max_tokens`"),
        ('{"name": "Io"}', "size", "include_raw"),
        ('{"name": "Io", "size": "big"}', "size", "include_raw"),
        ("[]", "does not fit", "include_raw"),
    ],
)
def test_a_misfit_is_told_as_what_it_is(serve, text, said, hint, *, method, schema):
    """Pydantic's place of a bracket is nothing that anybody can mend."""
    model, _ = serve(Reply(text=text))
    chain = model.with_structured_output(schema, method=method)
    for ask in (lambda: chain.invoke("go"), lambda: list(chain.stream("go"))):
        with pytest.raises(StructuredOutputError, match=said) as caught:
            ask()
        assert hint in (caught.value.hint or "")
        assert caught.value.llm_output


FENCED = [WHOLE, f"```json\n{WHOLE}\n```", f"```\n{WHOLE}```\n", f"\n{WHOLE}\n"]
FENCED += [f"```json {WHOLE} ```", f"~~~\n{WHOLE}\n~~~", f"````json\r\n{WHOLE}\r\n````"]


@pytest.mark.parametrize("text", FENCED)
def test_a_step_with_tools_takes_it_so_as_well(serve, text):
    """LangChain reads the content of the last step itself, which is the object alone."""
    for first in (text, "I know one."):
        model, _ = serve(lambda body, first=first: Reply(text if "tools" not in body else first))
        answer = model.bind_tools([add], response_format=Moon).invoke("go")
        assert json.loads(answer.text) == json.loads(WHOLE)


@pytest.mark.parametrize("text", FENCED)
def test_so_does_a_forced_call(serve, text):
    """The grammar's second chance, on a server that has none."""
    call = text.replace(WHOLE, json.dumps([{"name": "Moon", "arguments": json.loads(WHOLE)}]))
    model, _ = serve(Reply(call))
    found = model.with_structured_output(Moon, method="function_calling").invoke("go")
    assert found == Moon(name="Io", size=1)


@pytest.mark.parametrize("schema", [Moon, SCHEMA], ids=["class", "schema"])
@pytest.mark.parametrize("text", FENCED)
def test_what_fits_is_taken_in_a_fence_and_among_blanks(serve, text, schema):
    """As models write it that nobody constrains."""
    model, _ = serve(Reply(text=text))
    found = model.with_structured_output(schema).invoke("go")
    assert found in (Moon(name="Io", size=1), {"name": "Io", "size": 1})
