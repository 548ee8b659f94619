"""The conversation on its way out.

The same message always becomes the same bytes, whatever follows it, so that the server's prefix
cache holds from turn to turn.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_car_vllm.endpoint import Endpoint
from langchain_car_vllm.support.printable import encodable, encodable_value
from langchain_car_vllm.support.user_warnings import UnsentContentWarning, warn_user
from langchain_car_vllm.wire.errors import InvalidRequestError
from langchain_car_vllm.wire.reasoning import REASONING, is_thought, reasoning_of
from langchain_car_vllm.wire.request.media import Medium, kind_of, read_medium
from langchain_car_vllm.wire.request.media_access import MediaAccess
from langchain_car_vllm.wire.request.placeholders import (
    data_text,
    file_text,
    has_content,
    is_inline,
    placeholder,
    row_text,
)
from langchain_car_vllm.wire.request.provider_blocks import (
    call_in,
    is_call,
    is_leftover,
    is_sealed,
    plain_block,
    plain_medium,
    written_calls,
)
from langchain_car_vllm.wire.request.tools import server_name

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("text", "text-plain", "input_text", "output_text")
_FILES = ("file", "input_file", "document", "media")
_DOCUMENTS = ("text-plain", "document")
_OF_A_RESULT = ("type", "tool_use_id", "is_error", "cache_control")
_TAKEN = (HumanMessage, AIMessage, SystemMessage, ToolMessage, ChatMessage)
_PUBLIC = MediaAccess()
Content = str | list[str | dict[str, Any]]


def holds_media(messages: Iterable[BaseMessage]) -> bool:
    """Whether a conversation holds anything but text, which takes reading."""
    return any(
        isinstance(block, dict) and kind_of(block) is not None
        for message in messages
        if isinstance(message.content, list)
        for part in _with_results_apart(message)
        for block in part.content
    )


def to_server_messages(
    messages: Sequence[BaseMessage], endpoint: Endpoint, access: MediaAccess = _PUBLIC
) -> list[BaseMessage]:
    """Return the messages in the forms the server takes, contents as one text where they are text.

    Media in tool results follow in a user message of their own: the batched engine shows the model
    nothing of them otherwise (vllm-mlx 0.6.0). What cannot be sent is refused in the user's last
    message alone; elsewhere nobody could take it back, so a line of text stands for it.

    Raises:
        InvalidRequestError: There is no message, or one that this server could not take.
    """
    if not messages:
        raise InvalidRequestError("there is no message to answer")
    outgoing = _Outgoing(endpoint, access)
    found: list[BaseMessage] = []
    shown: list[str | dict[str, Any]] = []
    messages = [part for message in messages for part in _with_results_apart(message)]
    newest = _newest_of_user(messages)
    for place, message in enumerate(messages):
        if shown and not isinstance(message, ToolMessage | FunctionMessage):
            found.append(HumanMessage(content=shown))
            shown = []
        ready = outgoing.message(message, is_old=place < newest)
        if isinstance(ready, ToolMessage) and isinstance(ready.content, list):
            texts = [b for b in ready.content if _text(b) is not None]
            if pictures := [b for b in ready.content if _text(b) is None]:
                shown += [{"type": "text", "text": f"Result of {ready.tool_call_id}:"}, *pictures]
            ready = ready.model_copy(update={"content": _join(texts, "\n")})
        found.append(ready)
    if shown:
        found.append(HumanMessage(content=shown))
    outgoing.warn()
    return found


def _newest_of_user(messages: Sequence[BaseMessage]) -> int:
    """Return the place of the user's last message, -1 where there is none."""
    places = [
        place
        for place, message in enumerate(messages)
        if isinstance(message, HumanMessage)
        or (isinstance(message, ChatMessage) and message.role in ("user", "human"))
    ]
    return places[-1] if places else -1


class _Outgoing:
    """Turns the messages of one request, in order."""

    def __init__(self, endpoint: Endpoint, access: MediaAccess) -> None:
        self._endpoint = endpoint
        self._access = access
        self._images = 0
        self._unsent: list[str] = []

    def warn(self) -> None:
        """Warn once of all that went out as a line of text or not at all."""
        if self._unsent:
            warn_user(
                "tool results or earlier turns contain something that cannot be sent; the model "
                f"reads a line of text in its place at most: {self._unsent[0]}",
                UnsentContentWarning,
            )

    def message(self, message: BaseMessage, *, is_old: bool) -> BaseMessage:
        """Return one message as the server takes it.

        Args:
            message: The message.
            is_old: Whether the user has written another one since.
        """
        message = _by_role(message)
        if isinstance(message, ChatMessage) and message.role not in _ROLES:
            if is_old:
                message = HumanMessage(message.content)
                return self.message(message, is_old=True)
            raise InvalidRequestError(
                f"no chat template knows the role `{message.role}`",
                hint=f"use one of {', '.join(_ROLES)}",
            )
        if not isinstance(message, _TAKEN):
            raise InvalidRequestError(f"a {type(message).__name__} cannot be sent to a model")
        if isinstance(message, AIMessage):
            return self._answer(message)
        is_result = isinstance(message, ToolMessage)
        if isinstance(message.content, str):
            return _encodable_copy(message) if is_result or is_old else message
        parts = [
            part
            for block in message.content
            for part in self._parts(block, is_old=is_old, is_result=is_result)
        ]
        # The server itself puts a line break between the texts of a message.
        is_text = all(part["type"] == "text" for part in parts)
        content: Content = _join(parts, "\n") if is_text else [*parts]
        return message.model_copy(update={"content": content})

    def _parts(self, block: Any, *, is_old: bool, is_result: bool) -> list[dict[str, Any]]:
        text = _text(block)
        if text is None and is_result:
            text = row_text(block)
        if text is not None:
            return [{"type": "text", "text": encodable(text) if is_result or is_old else text}]
        # What a tool only names is not read, unless the user allows it.
        if not is_result or is_inline(block) or self._access.fetching:
            try:
                return self._medium(block, is_own=not is_result)
            except InvalidRequestError:
                if not (is_old or is_result):
                    raise
        return [{"type": "text", "text": self._placeholder(block)}]

    def _medium(self, block: Any, *, is_own: bool) -> list[dict[str, Any]]:
        kind = kind_of(block) if isinstance(block, dict) else None
        if kind is None:
            raise _refusal(block)
        self._check_taken(kind)
        medium = read_medium(block, self._access, is_own=is_own)
        return [*self._label(medium), medium.block()]

    def _placeholder(self, block: Any) -> str:
        kind = kind_of(block) if isinstance(block, dict) else None
        media = self._endpoint.media
        blind = kind is not None and media is not None and kind not in media
        line = placeholder(block, f"this model takes no {kind}" if blind else "not attached")
        self._unsent.append(line)
        return line

    def _check_taken(self, kind: str) -> None:
        """Refuse what the server would drop in silence."""
        media = self._endpoint.media
        if media is not None and kind not in media:
            takes = ", ".join(("text", *media))
            raise InvalidRequestError(
                f"`{self._endpoint.served_model}` takes no {kind}",
                hint=f"it takes {takes}; choose another model",
            )

    def _label(self, medium: Medium) -> list[dict[str, Any]]:
        """Name every image after the first by its content.

        The batched engine caches by the set of images, so two in another order would get the first
        order's answer if the text were the same (vllm-mlx 0.6.0).
        """
        if medium.kind != "image":
            return []
        self._images += 1
        if self._images == 1:
            return []
        digest = hashlib.sha256(medium.data).hexdigest()[:8]
        return [{"type": "text", "text": f"Image {self._images} ({digest}):"}]

    def _answer(self, message: AIMessage) -> AIMessage:
        """Return an earlier answer: its text, its calls and its reasoning, whoever gave it."""
        content = message.content if isinstance(message.content, list) else [message.content]
        thought = reasoning_of(message)
        calls = message.tool_calls or written_calls(message)
        told = bool(message.tool_calls or message.invalid_tool_calls)
        text = "".join(self._said(block) for block in content if not (told and is_call(block)))
        return AIMessage(
            content=encodable(text or _said_beside(message)),
            tool_calls=[
                {**call, "name": server_name(call["name"]), "args": encodable_value(call["args"])}
                for call in calls
            ],
            invalid_tool_calls=[
                {
                    **call,
                    "name": server_name(call["name"] or ""),
                    "args": encodable(call["args"] or ""),
                }
                for call in message.invalid_tool_calls
            ],
            additional_kwargs={REASONING: encodable(thought)} if thought else {},
        )

    def _said(self, block: Any) -> str:
        """Return a block of an answer as text, nothing for what stands beside the text.

        Files are named in a line. What another provider's servers did is left out with a warning:
        the model would take a line of ours for its own words, and go on in them.
        """
        if (text := _text(block)) is not None:
            return text
        if is_thought(block) or call_in(block) or is_leftover(block):
            return ""
        kind = kind_of(block)
        if kind is None and isinstance(block.get("text"), str):
            return str(block["text"])
        line = self._placeholder(block)
        return line if kind or block.get("type") in ("file", "document") else ""


def _refusal(block: Any) -> InvalidRequestError:
    name = block.get("type") if isinstance(block, dict) else type(block).__name__
    return InvalidRequestError(
        f"a block {f'of type `{name}`' if name else 'without a `type`'} cannot be sent",
        hint="send its text, as a document loader reads it, or pictures of its pages"
        if name in _FILES
        else "a model takes text, images, audio and video, each in a block of its `type`",
    )


def _encodable_copy(message: BaseMessage) -> BaseMessage:
    """Return what nobody can take back as it can be sent: names of files are not all in UTF-8."""
    text = encodable(str(message.content))
    return message if text == message.content else message.model_copy(update={"content": text})


def _with_results_apart(message: BaseMessage) -> Iterator[BaseMessage]:
    """Yield a message, and before it the results of tools that some providers' form has in it."""
    if isinstance(message.content, str):
        yield message
        return
    is_result = isinstance(message, ToolMessage | FunctionMessage)
    blocks = [plain_medium(b) if is_result else plain_block(b) for b in message.content]
    blocks = [b for b in blocks if not is_sealed(b)]
    if blocks != message.content:
        message = message.model_copy(update={"content": blocks})
    if not isinstance(message, HumanMessage):
        yield message
        return
    results = [b for b in blocks if isinstance(b, dict) and b.get("type") == "tool_result"]
    for block in results:
        call = str(block.get("tool_use_id") or "")
        beside = {key: value for key, value in block.items() if key not in _OF_A_RESULT}
        given = block.get("content", beside) or ""
        parts = [given] if isinstance(given, dict) else given
        shown = [plain_medium(part) for part in parts] if isinstance(parts, list) else parts
        yield ToolMessage(shown, tool_call_id=call)
    left = [block for block in blocks if block not in results]
    if left or not results:
        yield message.model_copy(update={"content": left}) if results else message


def _by_role(message: BaseMessage) -> BaseMessage:
    """Return what a tool or a model said as such: what stands in it was not written by the user."""
    if isinstance(message, FunctionMessage):
        return ToolMessage(content=message.content, tool_call_id=message.name)
    if not isinstance(message, ChatMessage):
        return message
    if message.role == "human":
        return HumanMessage(content=message.content)
    if message.role in ("ai", "assistant", "model"):
        return AIMessage(content=message.content, additional_kwargs=message.additional_kwargs)
    if message.role == "tool":
        call = str(message.additional_kwargs.get("tool_call_id") or "")
        return ToolMessage(content=message.content, tool_call_id=call)
    return message


def _said_beside(message: AIMessage) -> str:
    """Return what OpenAI's models say beside an empty content: spoken words, or a refusal."""
    audio = message.additional_kwargs.get("audio")
    spoken = audio.get("transcript") if isinstance(audio, dict) else None
    said = (spoken, message.additional_kwargs.get("refusal"))
    return next((text for text in said if isinstance(text, str)), "")


def _join(blocks: Iterable[Any], joint: str) -> str:
    return joint.join(text for block in blocks if (text := _text(block)))


def _text(block: Any) -> str | None:
    """Return the text of a block, None for one that is not text."""
    if isinstance(block, str):
        return block
    if not isinstance(block, dict):
        return None
    kind = block.get("type")
    is_bare = block.keys() == {"text"}  # as Bedrock and Gemini write texts
    if "text" in block and (kind in _TEXTS or block.get("source_type") == "text" or is_bare):
        text = str(block["text"] or "")
        if text or not has_content(block):
            return _with_title(block, text)
    told = data_text(block)
    if told is None:
        told = file_text(block)
    return None if told is None else _with_title(block, told)


def _with_title(block: dict[str, Any], text: str) -> str:
    """Return the text of a document below what else it tells the model."""
    if block.get("type") not in _DOCUMENTS:
        return text
    parts = (block.get("title"), block.get("context"), text)
    return "\n".join(part for part in parts if isinstance(part, str) and part)
