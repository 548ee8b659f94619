"""Tools as the server takes them."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_function, convert_to_openai_tool
from langchain_core.utils.json_schema import dereference_refs
from pydantic import BaseModel, PydanticUserError

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.json_objects import copy_json
from langchain_car_vllm.support.printable import format_value
from langchain_car_vllm.support.process_state import KeptProperty, import_whole
from langchain_car_vllm.wire.request.schema import (
    FIELDS_HINT,
    JsonGenerator,
    Schema,
    inline_root,
    is_bare_type,
    is_dataclass,
    is_recursive,
    json_schema,
    reason_of,
    refuse_enum,
)
from langchain_car_vllm.wire.request.typed_dicts import is_typed_dict

# LangChain's tools are runnables; to name their class would import it for models without tools.
Tool = dict[str, Any] | type | Callable[..., Any] | Runnable[Any, Any]
ToolChoice = str | bool | dict[str, Any] | None

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FOREIGN = re.compile(r"[^A-Za-z0-9_-]+")
_WORDS = {"auto": "auto", "none": "none", "any": "required", "required": "required"}
_MOST_OF_A_NAME, _DIGITS = 57, 6
# What says what a tool takes: OpenAI's form, Anthropic's, MCP's, Bedrock's and a JSON schema.
_DESCRIBED = {
    *("function", "parameters", "input_schema", "inputSchema", "toolSpec"),
    *("properties", "title", "$ref"),
}
# What may stand beside it, as in MCP's tools.
_ABOUT = ("annotations", "outputSchema", "_meta", "meta", "execution", "cache_control", "extras")
_UNDESCRIBED = (
    *(KeyError, TypeError, ValueError, NameError, AttributeError, RecursionError),
    PydanticUserError,
)


class PreparedTool(dict[str, Any]):
    """A tool in OpenAI's form that was converted before, as all that are bound.

    With twenty of them, to convert and write them anew would be a tenth of a warm call.
    """

    @KeptProperty
    def size(self) -> int:
        """How many bytes it is sent in, about.

        Raises:
            TypeError: It holds what JSON cannot.
            ValueError: The same.
        """
        return len(json.dumps(self, ensure_ascii=False).encode(errors="surrogatepass"))


def openai_tools(tools: Sequence[Tool], *, strict: bool | None = None) -> list[PreparedTool]:
    """Return tools in OpenAI's form, under the names that the user gave them.

    Raises:
        ConfigurationError: There is something among them that is not a tool, or not one that runs
            here.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        raise ConfigurationError(
            f"a list of tools is expected, not a value of type `{type(tools).__name__}`",
            hint="put it in a list: `bind_tools([tool])`",
        )
    converted: list[PreparedTool] = []
    for tool in tools:
        if isinstance(tool, PreparedTool):
            converted.append(tool)
            continue
        _check_runs_here(tool)
        if how := _how_to_make_one(tool):
            raise ConfigurationError(
                f"a value of type `{type(tool).__name__}` is not a tool", hint=how
            )
        try:
            converted.append(PreparedTool(_convert(tool, strict=strict)))
        except ConfigurationError:
            raise
        except _UNDESCRIBED as error:
            raise ConfigurationError(
                f"{_told(tool)} cannot be described: {reason_of(error)}",
                hint=FIELDS_HINT
                if callable(tool) or hasattr(tool, "tool_call_schema")
                else "give functions, pydantic classes, TypedDicts, LangChain tools or JSON "
                "schemas, with all definitions under `$defs` at the root",
            ) from error
    for tool in converted:
        _check_form(tool)
    return converted


def _check_runs_here(tool: Any) -> None:
    """Refuse what another provider's servers run, under whatever name: nothing says what it takes.

    Raises:
        ConfigurationError: It is such a tool.
    """
    if not isinstance(tool, Mapping) or not _DESCRIBED.isdisjoint(tool):
        return
    kind = tool.get("type")
    if kind is None and len(tool) == 1 and all(isinstance(v, Mapping) for v in tool.values()):
        kind = next(iter(tool))  # as Gemini and Bedrock write theirs
    if isinstance(kind, str) and kind not in ("function", "object"):
        raise ConfigurationError(
            f"`{kind}` is a tool of another provider's servers, which does not exist here",
            hint="bind a function that does the same",
        )


def _told(tool: Any) -> str:
    """Return what a tool is called in an error: there may be many of them."""
    if isinstance(tool, Mapping):
        function = tool.get("function")
        name = (function if isinstance(function, Mapping) else tool).get("name")
    else:
        name = getattr(tool, "name", None) or getattr(tool, "__name__", None)
    return f"the tool `{name}`" if isinstance(name, str) else "a tool"


def _how_to_make_one(given: Any) -> str | None:
    """Return how a tool is made of what is none yet, None for anything else."""
    if isinstance(given, type | Mapping) or hasattr(given, "tool_call_schema"):
        return None
    if isinstance(given, Runnable):
        return "make one of it: `.as_tool(name=..., description=...)`"
    if hasattr(given, "get_tools"):
        return "bind what it holds: `bind_tools(toolkit.get_tools())`"
    is_nameless = callable(given) and not hasattr(given, "__name__")
    return "write a function that calls it" if is_nameless else None


def _convert(tool: Any, *, strict: bool | None) -> dict[str, Any]:
    if is_typed_dict(tool) or is_dataclass(tool):
        tool = {"description": "", **json_schema(tool)}
    if isinstance(tool, Mapping):
        tool = _in_openais_form(tool)
        if strict and "name" in tool and not {"parameters", "input_schema"} & tool.keys():
            tool = {**tool, "parameters": {"type": "object", "properties": {}}}
    refuse_enum(tool)
    if is_bare_type(tool):
        raise TypeError(f"`{format_value(tool)}` is a type without parameter names")
    import_whole("langchain_core.tools")  # the conversion looks whether it is one of these
    found = convert_to_openai_tool(tool, strict=strict)
    if isinstance(tool, Mapping):
        found = copy_json(found)  # whoever gave it may go on to change it
    function = found["function"]
    if function.get("parameters", ...) is None:
        del function["parameters"]  # the server's parsers look into what is there
    _mend_parameters(function, tool, strict=strict)
    return found


def _in_openais_form(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool of MCP, or of OpenAI's newer API, in the form that LangChain knows."""
    function = tool.get("function")
    if function is not None and not isinstance(function, Mapping):
        raise TypeError(f"`function` must be a dictionary, not `{format_value(function)}`")
    strange = [] if _DESCRIBED & tool.keys() else _strange_words(tool)
    if strange:
        raise TypeError(f"its parameters belong under `parameters`, not `{strange[0]}`")
    if "inputSchema" in tool and "input_schema" not in tool:
        tool = {**tool, "input_schema": tool["inputSchema"]}
    if tool.get("type") == "function" and "name" in tool and function is None:
        return {key: value for key, value in tool.items() if key != "type"}
    is_schema = not {"name", "function", "toolSpec"} & tool.keys()
    return _schema_as_tool(tool) if is_schema and {"title", "$ref"} & tool.keys() else tool


def _strange_words(tool: Mapping[str, Any]) -> list[str]:
    """Return what else a tool without parameters may say of them, which would be left out."""
    found = [word for word, value in tool.items() if isinstance(value, Mapping) and value]
    return [word for word in found if word not in _ABOUT]


def _schema_as_tool(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a JSON schema as a tool of its title, whatever words it says with what it takes.

    LangChain (1.8) leaves out what has no `properties` of its own, such as a union.
    """
    found = {**inline_root(schema), **{k: v for k, v in schema.items() if k == "title"}}
    if "title" not in found:
        return schema
    tool = {"name": found.pop("title")}
    if "description" in found:
        tool["description"] = found.pop("description")
    return {**tool, "parameters": found} if found else tool


def _mend_parameters(function: dict[str, Any], tool: Any, *, strict: bool | None) -> None:
    """Put back what LangChain's conversion (1.8) loses of what a tool takes.

    It takes all references out, and leaves nothing of one that leads back to itself. A decimal may
    be a text there, as pydantic takes it, so that any text would do.
    """
    parameters = function.get("parameters")
    text = str(parameters)
    if not parameters or not ("{}" in text or "anyOf" in text):
        return
    ours = _parameters_of(tool)
    if ours is None:
        return
    if is_recursive(ours):
        told = ("title", "description")
        whole = {k: v for k, v in inline_root(ours).items() if k not in told}
        mended = convert_to_openai_function({**function, "parameters": whole}, strict=strict)
        function["parameters"] = mended["parameters"]
    else:
        function["parameters"] = _merge_numbers(parameters, dereference_refs(ours))


def _parameters_of(tool: Any) -> Schema | None:
    """Return the JSON schema of what a tool of Python's takes, None for another tool."""
    model = tool if isinstance(tool, type) else getattr(tool, "tool_call_schema", None)
    if model is None and callable(tool):
        from langchain_core.tools import create_schema_from_function  # noqa: PLC0415 - see `Tool`

        model = create_schema_from_function(
            tool.__name__, tool, filter_args=(), parse_docstring=True, include_injected=False
        )
    if isinstance(model, type) and issubclass(model, BaseModel):
        return model.model_json_schema(schema_generator=JsonGenerator)
    return model if isinstance(model, dict) else None


def _merge_numbers(schema: Any, ours: Any) -> Any:
    """Return a schema with ours where it has a decimal."""
    if isinstance(schema, Mapping) and isinstance(ours, Mapping):
        options, fewer = schema.get("anyOf"), ours.get("anyOf", [ours])
        if options and len(fewer) < len(options):
            return {k: v for k, v in ours.items() if k != "title"}
        return {k: _merge_numbers(v, ours[k]) if k in ours else v for k, v in schema.items()}
    if isinstance(schema, list) and isinstance(ours, list) and len(schema) == len(ours):
        return [_merge_numbers(*pair) for pair in zip(schema, ours, strict=True)]
    return schema


def _check_form(tool: dict[str, Any]) -> None:
    """Refuse a tool that has no name, or whose arguments are not those of an object."""
    if not (name := tool_name(tool)):
        raise ConfigurationError(
            "there is a tool without a name", hint="give it a `name`, or a JSON schema a `title`"
        )
    parameters = tool["function"].get("parameters")
    kind = parameters.get("type", "object") if isinstance(parameters, Mapping) else None
    if parameters is not None and "object" not in (kind if isinstance(kind, list) else [kind]):
        raise ConfigurationError(
            f"`{name}` does not take an object, but the arguments of a call are always one",
            hint="make what it takes a field of a class; `json_schema` answers with any value",
        )


def tool_name(tool: Mapping[str, Any]) -> str:
    """Return the name of a tool in OpenAI's form, empty where it has none."""
    return str((tool.get("function") or {}).get("name") or "")


def server_name(name: str) -> str:
    """Return the name under which a tool goes out.

    The server takes letters, digits, `_` and `-`, at most 64 of them (vllm-mlx 0.6.0); MCP servers
    send dots, and LangChain anything. The same name always gives the same alias, whatever else is
    bound, so that the history's bytes stay.
    """
    if _NAME.fullmatch(name):
        return name
    legal = _FOREIGN.sub("_", name)[:_MOST_OF_A_NAME].strip("_") or "tool"
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return f"{legal}_{digest[:_DIGITS]}"


def server_tools(tools: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tools under the names that the server takes."""
    return [_server_tool(tool) for tool in tools]


def _server_tool(tool: dict[str, Any]) -> dict[str, Any]:
    name = tool_name(tool)
    alias = server_name(name)
    return tool if alias == name else {**tool, "function": {**tool["function"], "name": alias}}


def size_of_tools(tools: Iterable[Any]) -> int:
    """Return in how many bytes tools are sent, about; 0 where JSON cannot hold them."""
    try:
        return sum((t if isinstance(t, PreparedTool) else PreparedTool(t)).size for t in tools)
    except (TypeError, ValueError, RecursionError):
        return 0


def tool_aliases(tools: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the user's names of the tools that go out under another one, by that one."""
    names = [tool_name(tool) for tool in tools]
    return {server_name(name): name for name in names if server_name(name) != name}


def takes_no_arguments(tool: Mapping[str, Any]) -> bool:
    """Whether a tool can be called without any arguments."""
    parameters: Schema = (tool.get("function") or {}).get("parameters") or {}
    return not parameters.get("required")


def normalize_choice(choice: ToolChoice, names: Sequence[str]) -> str | dict[str, Any] | None:
    """Return a tool choice as `auto`, `none`, `required` or a named function.

    Raises:
        ConfigurationError: It names no bound tool, or forces a call where none is bound.
    """
    if choice is None or choice is False:
        return None
    said, is_name = _read_choice(choice)
    word = None if is_name else _word_of(said, names)
    if word == "required" and not names:
        raise ConfigurationError("`tool_choice` forces a call, but no tool is bound")
    if word is not None:
        return word
    if not isinstance(said, str) or (isinstance(choice, dict) and not is_name):
        raise ConfigurationError(
            f"`tool_choice` cannot be `{format_value(choice)}`",
            hint='use "auto", "none", "any" or the name of a tool',
        )
    if said not in names:
        raise ConfigurationError(
            f"`tool_choice` names `{said}`, which is not bound",
            hint=f"the bound tools are {', '.join(f'`{n}`' for n in names) or 'no tools'}",
        )
    return named_choice(said)


def forbids_parallel_calls(choice: Any) -> bool:
    """Whether a choice in Anthropic's form says that there must be one call at most."""
    return isinstance(choice, Mapping) and choice.get("disable_parallel_tool_use") is True


def named_choice(name: str) -> dict[str, Any]:
    """Return the choice of one tool, also of one whose name is a word such as `any`."""
    return {"type": "function", "function": {"name": name}}


def _read_choice(choice: Any) -> tuple[Any, bool]:
    """Return what a choice says in any provider's form, and whether that is a tool's name."""
    if not isinstance(choice, dict):
        return choice, False
    function = choice.get("function")
    name = (function if isinstance(function, dict) else choice).get("name")
    if name is not None:
        return name, True
    kind, inner = next(iter(choice.items()), (None, None))
    if len(choice) == 1 and isinstance(inner, dict):  # as Bedrock writes it
        return (inner.get("name"), True) if kind == "tool" else (kind, False)
    return choice.get("type"), False


def _word_of(said: Any, names: Sequence[str]) -> str | None:
    """Return the word for a choice that names no tool; Gemini and Cohere write them in capitals."""
    if said is True:
        return "required"
    if not isinstance(said, str):
        return None
    return _WORDS.get(said) or (None if said in names else _WORDS.get(said.lower()))
