"""What stands in tool results and earlier turns never ends a thread; only the last message may."""

import base64
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from fakes.reply import Reply
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.content import create_plaintext_block

from langchain_car_vllm import UnsentContentWarning
from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.request.messages import to_server_messages

URL = "http://127.0.0.1:9/v1"
DATA = base64.b64encode(b"x" * 68).decode()
BLOCKS: dict[str, dict[str, Any]] = {
    "picture": {"type": "image", "base64": DATA, "mime_type": "image/png"},
    "openai picture": {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{DATA}"},
    },
    "pdf": {"type": "file", "base64": DATA, "mime_type": "application/pdf", "filename": "a.pdf"},
    "link": {"type": "file", "url": "file:///tmp/a.txt", "name": "a", "mime_type": "text/plain"},
    "remote picture": {"type": "image", "url": "http://127.0.0.1:9/a.png"},
    "local picture": {"type": "image", "url": "file:///etc/passwd"},
    "sound": {"type": "audio", "base64": DATA, "mime_type": "audio/wav"},
    "blob": {"type": "resource", "resource": {"uri": "file:///a", "blob": DATA * 99}},
    "plain text far away": {"type": "text-plain", "url": "https://example.org/a.txt"},
}
LINES = {
    "picture": "[image, image/png, 68 bytes; this model takes no image]",
    "openai picture": "[image, image/png, 68 bytes; this model takes no image]",
    "pdf": "[file a.pdf, application/pdf, 68 bytes; not attached]",
    "link": "[file a, text/plain, file:///tmp/a.txt; not attached]",
}


def thread(block: dict[str, Any]) -> list[BaseMessage]:
    """Return a conversation whose tool gave a block back."""
    return [
        HumanMessage("look"),
        AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}]),
        ToolMessage([{"type": "text", "text": "here"}, block], tool_call_id="1"),
    ]


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "json", "json": {"é": [1, None]}}, '{"é": [1, null]}'),
        ({"type": "json", "json": {"at": Path("/a")}}, '{"at": "/a"}'),
        ({"type": "document", "source": {"type": "text", "data": "moons"}}, "moons"),
        (
            {"type": "document", "source": {"type": "text", "data": "moons"}, "title": "Mars"},
            "Mars\nmoons",
        ),
        (
            {"type": "text-plain", "text": "moons", "title": "Mars", "context": "a draft"},
            "Mars\na draft\nmoons",
        ),
        ({"type": "text-plain", "base64": "bW9vbnM=", "title": "Mars"}, "Mars\nmoons"),
        (
            {
                "type": "search_result",
                "title": "Mars",
                "source": "https://example.org",
                "content": [{"type": "text", "text": "two moons"}],
            },
            "Mars\nhttps://example.org\ntwo moons",
        ),
    ],
)
def test_data_in_a_tools_result_is_read_by_the_model(serve, block, text):
    """LangChain keeps such blocks of a tool as they are; nothing of them is left out."""
    model, dialect = serve(Reply(text="ok"))
    assert model.invoke(thread(block)).text == "ok"
    assert model.invoke([HumanMessage([block])]).text == "ok"
    assert dialect.requests[0]["messages"][2]["content"] == f"here\n{text}"
    assert dialect.requests[1]["messages"][0]["content"] == text


ROWS: list[dict[str, Any]] = [
    {"name": "Bob", "age": 3},
    {"title": "Mars", "url": "https://example.org", "snippet": "two moons"},
    {"type": "file", "name": "a.txt", "size": 3},
    {"type": "text", "label": "Name"},
    {"type": "image", "width": 3},
    {"type": "image", "text": "A moon."},
    {"type": ["string", "null"], "name": "moon"},
    {"type": {"of": "moon"}},
    {"type": "hologram", "deep": {"er": [1]}},
    {"title": "火星", "text": "火星には衛星が二つある。" * 999},
    {"lines": ["x" * 1999] * 200},
]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_in_a_tools_result_is_read_by_the_model(serve, row):
    """A tool gives back dictionaries as data, whatever words stand in them; nothing is left out."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke(thread(row))
    content = dialect.requests[0]["messages"][2]["content"]
    assert json.loads(content.removeprefix("here\n")) == row


@given(
    st.dictionaries(
        st.sampled_from(["type", "text", "url", "data", "source", "name", "json", "content"]),
        st.recursive(
            st.none() | st.integers() | st.floats() | st.sampled_from(["image", "file", "text"]),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_dictionary_in_a_tools_result_ends_a_thread(row):
    """Whatever it holds, it becomes a text that can be sent."""
    endpoint = Endpoint(URL, None, "m")
    (result,) = to_server_messages([ToolMessage([row], tool_call_id="1")], endpoint)
    assert isinstance(result.content, str)


@pytest.mark.parametrize("kind", [HumanMessage, SystemMessage])
def test_half_a_character_of_an_earlier_turn_ends_no_thread(serve, kind):
    """In the last message it is an error, which a checkpointer keeps; the next one is answered."""
    model, dialect = serve(Reply(text="ok"))
    begun = [kind("a\ud83d")]
    if kind is HumanMessage:
        with pytest.raises(InvalidRequestError):
            model.invoke(begun)
    model.invoke([*begun, HumanMessage("go")])
    assert dialect.requests[0]["messages"][0]["content"] == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("name", "multimodal"),
    [(name, sees) for name in BLOCKS for sees in (False, True) if not (sees and "pic" in name)],
)
def test_a_tools_result_goes_out_as_a_line_of_text(serve, name, multimodal):
    """At once, in every later turn, with the same bytes, and with one warning each time."""
    model, dialect = serve(Reply(text="ok"), dialect={"multimodal": multimodal}, model="m")
    begun = thread(BLOCKS[name])
    for messages in (begun, [*begun, AIMessage("ok"), HumanMessage("What is 2+2?")]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert model.invoke(messages).text == "ok"
        assert [w.category for w in caught].count(UnsentContentWarning) == 1
    one, two = (body["messages"] for body in dialect.requests)
    assert two[: len(one)] == one
    content = one[2]["content"]
    assert content.startswith("here\n[")
    assert DATA not in json.dumps(one)
    if line := LINES.get(name):
        assert content == f"here\n{line}"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["picture", "remote picture", "local picture"])
def test_a_picture_that_cannot_be_read_is_a_line_of_text(serve, name):
    """A model that sees gets the line, too; no file is opened and no address asked."""
    model, dialect = serve(Reply(text="ok"), dialect={"multimodal": True})
    model.invoke(thread(BLOCKS[name]))
    assert "; not attached]" in dialect.requests[0]["messages"][2]["content"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", BLOCKS)
def test_only_the_users_last_message_is_refused(serve, name):
    """It can be written anew; one before it cannot."""
    model, dialect = serve(Reply(text="ok"))
    with pytest.raises(InvalidRequestError):
        model.invoke([HumanMessage([BLOCKS[name]])])
    assert dialect.requests == []
    model.invoke([HumanMessage([BLOCKS[name]]), AIMessage("no"), HumanMessage("2+2?")])
    assert dialect.requests[0]["messages"][0]["content"].startswith("[")


@pytest.mark.parametrize(
    ("block", "said", "hint"),
    [
        (BLOCKS["pdf"], "a block of type `file`", "loader"),
        ({"type": "document", "source": {"type": "url", "url": URL}}, "`document`", "loader"),
        ({"type": "input_file", "file_id": "f"}, "`input_file`", "loader"),
        ({"type": "reasoning", "reasoning": "x"}, "`reasoning`", "a model takes text"),
        ({"image": "a.png"}, "a block without a `type`", "a model takes text"),
        (
            {"type": "non_standard", "value": {"a": 1}},
            "a block without a `type`",
            "a model takes text",
        ),
        ({}, "a block without a `type`", "a model takes text"),
    ],
    ids=str,
)
def test_what_is_refused_is_named_with_what_to_do(serve, block, said, hint):
    """Of a file, the model can read the text."""
    model, _ = serve()
    with pytest.raises(InvalidRequestError) as caught:
        model.invoke([HumanMessage([block])])
    assert said in caught.value.message
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("kind", "said"), [("image", "an image"), ("audio", "audio"), ("video", "a video")]
)
def test_a_medium_that_is_only_named_is_told_what_it_should_be(serve, kind, said):
    """Text names no file."""
    model, _ = serve(dialect={"multimodal": True})
    with pytest.raises(InvalidRequestError, match=f"is not an address of {said}\n") as caught:
        model.invoke([HumanMessage([{"type": kind, "url": "moon.bin"}])])
    assert "`Path`" in (caught.value.hint or "")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_answer_with_a_picture_and_a_strange_role_are_no_end_either(serve):
    """Other models made them, and the thread goes on here."""
    model, dialect = serve(Reply(text="ok"))
    model.invoke([ChatMessage("go", role="human"), ChatMessage("on", role="ai"), HumanMessage("?")])
    roles = [message["role"] for message in dialect.requests.pop()["messages"]]
    assert roles == ["user", "assistant", "user"]
    model.invoke(
        [
            ChatMessage(role="critic", content="Hm."),
            AIMessage([{"type": "text", "text": "See: "}, BLOCKS["picture"]]),
            HumanMessage("2+2?"),
        ]
    )
    first, second, _ = dialect.requests[0]["messages"]
    assert first == {"role": "user", "content": "Hm."}
    assert second["content"] == f"See: {LINES['picture']}"


@pytest.mark.filterwarnings("ignore::langchain_car_vllm.UnsentContentWarning")
@pytest.mark.parametrize("role", ["assistant", "tool"])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_another_speaker_wrote_is_not_the_users(serve, role, name):
    """A `ChatMessage` of a tool or a model names nothing that is fetched, and ends no thread."""
    model, dialect = serve(Reply("Yes."))
    model.invoke(
        [
            HumanMessage("look"),
            ChatMessage(role=role, content=[{"type": "text", "text": "here"}, BLOCKS[name]]),
        ]
    )
    (request,) = dialect.requests
    assert [message["role"] for message in request["messages"]] == ["user", role]
    assert "here" in request["messages"][1]["content"]


@pytest.mark.parametrize("content", ["b\udcff.txt", [{"type": "text", "text": "b\udcff.txt"}]])
def test_half_a_character_of_a_tool_or_a_model_ends_no_thread(serve, content):
    """Names of files may hold what UTF-8 has no bytes for; pairs are joined, halves replaced."""
    model, dialect = serve(Reply("Yes."))
    model.invoke(
        [
            HumanMessage("look"),
            AIMessage("a\ud83d\ude00", additional_kwargs={"reasoning_content": "\ud83d"}),
            ToolMessage(content, tool_call_id="1"),
        ]
    )
    (request,) = dialect.requests
    said = [message["content"] for message in request["messages"]]
    assert said == ["look", "a\N{GRINNING FACE}", "b\N{REPLACEMENT CHARACTER}.txt"]


def test_plain_text_is_sent_however_it_is_packed(serve):
    """As text, encoded, in a data: address or as a text file; far away it is a typed error."""
    encoded = base64.b64encode("Grüße".encode()).decode()
    blocks = [
        create_plaintext_block(text="Grüße"),
        create_plaintext_block(base64=encoded),
        {"type": "text-plain", "text": None, "base64": encoded},
        {"type": "text-plain", "text": "", "base64": encoded, "mime_type": "text/plain"},
        {"type": "text-plain", "url": f"data:text/plain;base64,{encoded}"},
        {"type": "file", "base64": encoded, "mime_type": "text/markdown"},
        {"type": "file", "base64": encoded, "mime_type": "application/json; charset=utf-8"},
        {"type": "file", "base64": encoded, "mime_type": "application/vnd.api+json"},
        {"type": "text", "text": "Grüße"},
        {"type": "file", "source_type": "text", "text": "Grüße", "mime_type": "text/plain"},
    ]
    model, dialect = serve(Reply(text="ok"))
    for block in blocks:
        model.invoke([HumanMessage([block])])
    assert {body["messages"][0]["content"] for body in dialect.requests} == {"Grüße"}
    away = create_plaintext_block(url="https://example.org/a")
    for block in (away, {**away, "text": ""}, {"type": "text"}):
        with pytest.raises(InvalidRequestError):
            model.invoke([HumanMessage([block])])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(DATA),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["type", "url", "base64", "data", "source", "image_url", "text", "name"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
blocks = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            ["text", "image", "image_url", "audio", "file", "text-plain", "video", "x"]
        )
    },
    optional=dict.fromkeys(["url", "base64", "image_url", "source", "text", "mime_type"], anything),
)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.lists(blocks, min_size=1, max_size=3), st.sampled_from([(), ("image",), None]))
def test_no_block_of_a_tool_ends_a_thread(content, media):
    """Whatever it holds, the server gets texts and media, and nothing is opened or fetched."""
    endpoint = Endpoint(
        base_url="http://127.0.0.1:9/v1", api_key=None, served_model="m", media=media
    )
    result = ToolMessage(content, tool_call_id="1")
    sent = to_server_messages([HumanMessage("a"), result, SystemMessage("b")], endpoint)
    assert isinstance(sent[1].content, str)
    json.dumps([message.content for message in sent])


def test_a_path_is_no_way_into_a_tools_result(serve, tmp_path: Path):
    """A tool's text names no file of this machine."""
    file = tmp_path / "secret.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\nsecret")
    model, dialect = serve(Reply(text="ok"), dialect={"multimodal": True})
    with pytest.warns(UnsentContentWarning):
        model.invoke(thread({"type": "image", "url": file.as_uri()}))
    assert "secret" not in dialect.requests[0]["messages"][2]["content"].replace(file.name, "")


def test_a_call_that_holds_itself_is_a_typed_error(serve):
    """No request can hold it; looking through it comes to an end."""
    model, dialect = serve(Reply(text="ok"))
    args: dict[str, Any] = {}
    args["self"] = [args]
    call = {"name": "look", "args": args, "id": "1"}
    with pytest.raises(InvalidRequestError):
        model.invoke([HumanMessage("go"), AIMessage("", tool_calls=[call])])
    assert dialect.requests == []


KINDS, SOURCES = ("image", "audio", "file"), ("url", "base64", "id", "text", "x", None)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_former_block_that_lacks_its_content_is_a_typed_error(serve, kind, source):
    """LangChain looks for it and fails; in a tool's result it ended the thread."""
    block = {"type": kind, "source_type": source, "mime_type": "image/png"}
    model, dialect = serve(Reply(text="ok"))
    with pytest.raises(InvalidRequestError):
        model.invoke([HumanMessage([block])])
    model.invoke(thread(block))
    assert kind in dialect.requests[0]["messages"][2]["content"]


def test_former_blocks_hold_what_todays_do(serve):
    """A picture by its bytes or its address, and a text however it is called."""
    encoded = base64.b64encode(b"moons").decode()
    model, dialect = serve(Reply(text="ok"))
    for more in ({"data": encoded}, {"data": encoded, "id": "1", "filename": "a.txt"}):
        block = {"type": "file", "source_type": "base64", "mime_type": "text/plain", **more}
        model.invoke([HumanMessage([block])])
    for key in ("text", "url"):
        model.invoke([HumanMessage([{"type": "file", "source_type": "text", key: "moons"}])])
    assert {body["messages"][0]["content"] for body in dialect.requests} == {"moons"}
