"""How much of a prompt is new to the server, as far as this process can tell."""

import pytest

from langchain_car_vllm.wire.request.read_prompts import ReadPrompts

LONG = "a long text " * 500
SYSTEM = {"role": "system", "content": LONG}
TOOLS = [{"type": "function", "function": {"name": "f", "description": LONG}}]


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def body(*messages: dict[str, object], **more: object) -> dict[str, object]:
    return {"messages": list(messages), **more}


@pytest.fixture
def read() -> ReadPrompts:
    return ReadPrompts()


def test_all_of_a_first_prompt_is_new(read: ReadPrompts):
    """Texts, tools and what stands around messages."""
    assert read.tokens_to_read(body(user("Hello"))) < 20
    assert read.tokens_to_read(body(SYSTEM, user("Hello"))) > 1000
    assert read.tokens_to_read(body(user("Hello"), tools=TOOLS)) > 1000


def test_the_next_turn_of_a_conversation_is_new_alone(read: ReadPrompts):
    """With the answer before it, and the calls and results of an agent's steps."""
    asked = [SYSTEM, user("One?")]
    read.note(body(*asked, tools=TOOLS))
    answered = [*asked, {"role": "assistant", "content": "1" * 300}]
    assert 100 < read.tokens_to_read(body(*answered, user("Two?"), tools=TOOLS)) < 200
    steps = [{"role": role, "content": "x"} for role in ("assistant", "tool") * 4]
    assert read.tokens_to_read(body(*asked, *steps, tools=TOOLS)) < 200
    assert read.tokens_to_read(body(*answered, user("Two?"))) > 1000, "other tools"


def test_a_new_conversation_knows_its_system_message(read: ReadPrompts):
    """As the server keeps it for others; another one is new."""
    read.note(body(SYSTEM, user("One?")))
    assert read.tokens_to_read(body(SYSTEM, user("Other?"))) < 50
    assert read.tokens_to_read(body(SYSTEM, *[user("and?")] * 40)) < 800
    other = {"role": "system", "content": f"{LONG}!"}
    assert read.tokens_to_read(body(other, user("Other?"))) > 1000


def test_media_are_new_again(read: ReadPrompts):
    """They wait for everybody else, whatever follows them."""
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    shown = {"role": "user", "content": [part]}
    read.note(body(shown))
    assert read.tokens_to_read(body(shown, user("And now?"))) > 1000


def test_what_is_kept_has_an_end(read: ReadPrompts):
    """Old conversations are forgotten; an empty one is nothing."""
    read.note(body())
    assert read.tokens_to_read(body()) == 0
    first = body(user(LONG))
    read.note(first)
    for number in range(2000):
        read.note(body(user(str(number))))
    assert read.tokens_to_read(body(user(LONG), user("More?"))) > 1000
    assert len(read._read) <= 1024
