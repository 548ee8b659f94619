"""Turns in an order that a model's chat template takes.

Some templates raise for a system message that is not the first, or for a conversation that no user
began; the server makes a failure of that. What such a template would refuse goes out as what it
takes, in its place, so that the prefix cache holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, Any]

_SYSTEM_ROLES = ("system", "developer")
_BEGINNING = "(The conversation begins.)"


def order_turns(messages: Sequence[Message], order: str | None) -> list[Message]:
    """Return the messages as a template takes them that wants the user to begin.

    A later system message becomes a user's. Where no user's message comes first, the last of the
    leading system messages becomes one; what follows an answer never changes what went before it.

    Args:
        messages: The conversation in the server's form.
        order: What the template wants: `user-first`, `alternating`, where an answer at the
            beginning needs a user's message before it, or None for any order.
    """
    if order is None:
        return list(messages)
    head = next((n for n, m in enumerate(messages) if not _is_system(m)), len(messages))
    leading = list(messages[:head])
    turns = [_as_user(m) if _is_system(m) else m for m in messages[head:]]
    if turns and turns[0].get("role") == "user":
        return [*leading, *turns]
    if leading:
        return [*leading[:-1], _as_user(leading[-1]), *turns]
    if order == "alternating" or not any(turn.get("role") == "user" for turn in turns):
        return [{"role": "user", "content": _BEGINNING}, *turns]
    return turns


def _is_system(message: Mapping[str, Any]) -> bool:
    return message.get("role") in _SYSTEM_ROLES


def _as_user(message: Message) -> Message:
    return {**message, "role": "user"}
