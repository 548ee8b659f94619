"""Tools as the server takes them."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Union

from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_car_vllm.errors import ConfigurationError

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool  # a model without tools need not import it

Tool = Union[dict[str, Any], type, Callable[..., Any], "BaseTool"]
ToolChoice = str | bool | dict[str, Any] | None

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def openai_tools(tools: Sequence[Tool], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Return tools in the server's form.

    Raises:
        ConfigurationError: A name is not one the server takes (vllm-mlx 0.6.0: letters, digits,
            `_` and `-`, at most 64).
    """
    converted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    for name in map(tool_name, converted):
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"`{name}` is no tool name the server takes",
                hint="use letters, digits, `_` and `-`, at most 64 of them",
            )
    return converted


def tool_name(tool: dict[str, Any]) -> str:
    """Return the name of a tool in the server's form, empty where it has none."""
    return str((tool.get("function") or {}).get("name") or "")


def normalized_choice(choice: ToolChoice, names: Sequence[str]) -> str | dict[str, Any] | None:
    """Return a tool choice as `auto`, `none`, `required` or a named function.

    Raises:
        ConfigurationError: It names no bound tool.
    """
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        return "required"
    if choice in ("auto", "none"):
        return str(choice)
    name = choice if isinstance(choice, str) else _chosen(choice)
    if name not in names:
        raise ConfigurationError(
            f"`tool_choice` names `{name}`, which is not bound",
            hint=f"bound are {', '.join(f'`{n}`' for n in names) or 'no tools'}",
        )
    return {"type": "function", "function": {"name": name}}


def _chosen(choice: dict[str, Any]) -> str:
    """Return the name in OpenAI's or Anthropic's form of a choice."""
    function = choice.get("function")
    named = function if isinstance(function, dict) else choice
    return str(named.get("name") or "")
