"""The conversation on its way out.

The same message always becomes the same bytes, whatever follows it, so that the server's prefix
cache holds from turn to turn.
"""

from collections.abc import Sequence
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

from langchain_car_vllm.wire.errors import InvalidRequestError

_ROLES = ("system", "developer", "user", "assistant", "tool")
_NOT_SENT = ("reasoning", "thinking", "redacted_thinking", "tool_use", "tool_call")


def prepared(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages in the forms the server takes, contents as one text where they are text.

    Raises:
        InvalidRequestError: There is no message, or one that no server could take.
    """
    if not messages:
        raise InvalidRequestError("there is no message to answer")
    return [_prepared(message) for message in messages]


def _prepared(message: BaseMessage) -> BaseMessage:
    if isinstance(message, FunctionMessage):
        return ToolMessage(content=message.content, tool_call_id=message.name)
    if isinstance(message, ChatMessage) and message.role not in _ROLES:
        raise InvalidRequestError(
            f"no chat template knows the role `{message.role}`",
            hint=f"use one of {', '.join(_ROLES)}",
        )
    if not isinstance(
        message, HumanMessage | AIMessage | SystemMessage | ToolMessage | ChatMessage
    ):
        raise InvalidRequestError(f"a {type(message).__name__} cannot be sent to a model")
    if isinstance(message.content, str):
        return message
    content = flattened(message.content, joint="" if isinstance(message, AIMessage) else "\n")
    return message.model_copy(update={"content": content})


def flattened(content: Sequence[Any], joint: str) -> str | list[str | dict[str, Any]]:
    """Return text blocks as one string, and other content without what is never sent.

    Args:
        content: Blocks, or plain strings among them.
        joint: What stands between two texts. The server itself puts a line break between the
            parts of a message, whereas an answer's parts belong together.
    """
    blocks = [b for b in content if not (isinstance(b, dict) and b.get("type") in _NOT_SENT)]
    texts = [_text(block) for block in blocks]
    if all(text is not None for text in texts):
        return joint.join(text for text in texts if text)
    return blocks


def _text(block: Any) -> str | None:
    if isinstance(block, str):
        return block
    if isinstance(block, dict) and block.get("type") == "text":
        return str(block.get("text") or "")
    return None
