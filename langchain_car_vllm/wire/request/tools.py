"""Tools as the server takes them."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Union

from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import PydanticUserError

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
    try:
        converted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    except (TypeError, ValueError, NameError, PydanticUserError) as error:
        raise ConfigurationError(
            f"there is something among the tools that is none: {error}",
            hint="give functions, pydantic classes, TypedDicts, LangChain tools or JSON schemas",
        ) from error
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


def normalize_choice(choice: ToolChoice, names: Sequence[str]) -> str | dict[str, Any] | None:
    """Return a tool choice as `auto`, `none`, `required` or a named function.

    Raises:
        ConfigurationError: It names no bound tool, or forces a call where none is bound.
    """
    if choice is None or choice is False:
        return None
    name = _choice_name(choice) if isinstance(choice, dict) else choice
    if name in ("auto", "none"):
        return str(name)
    if name is True or name in ("any", "required"):
        if not names:
            raise ConfigurationError("`tool_choice` forces a call, but no tool is bound")
        return "required"
    if name not in names:
        raise ConfigurationError(
            f"`tool_choice` names `{name}`, which is not bound",
            hint=f"bound are {', '.join(f'`{n}`' for n in names) or 'no tools'}",
        )
    return {"type": "function", "function": {"name": name}}


def _choice_name(choice: dict[str, Any]) -> str:
    """Return the word or the name in OpenAI's or Anthropic's form of a choice."""
    function = choice.get("function")
    named = function if isinstance(function, dict) else choice
    return str(named.get("name") or choice.get("type") or "")
