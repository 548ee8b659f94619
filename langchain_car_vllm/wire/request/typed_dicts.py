"""TypedDicts as pydantic classes, so that their annotations mean what they say.

LangChain's converter goes through pydantic's version 1, which loses `Optional` and refuses
`NotRequired`; pydantic itself refuses `typing.TypedDict` before Python 3.12.
"""

import inspect
import re
from collections.abc import Mapping
from types import UnionType
from typing import (
    Annotated,
    Any,
    ForwardRef,
    Literal,
    NotRequired,
    Required,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import typing_extensions
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

_MARKS = (Required, NotRequired, typing_extensions.ReadOnly)
_ARGUMENT = re.compile(r"^\s+\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.+)$")
_SECTION = re.compile(r"^\s*(?:Args|Arguments|Attributes):\s*$")


def is_typed_dict(schema: Any) -> bool:
    """Whether something is a TypedDict, a generic one with its arguments included."""
    kind = get_origin(schema) or schema
    return is_typeddict(kind) or typing_extensions.is_typeddict(kind)


def typed_dict_model(schema: Any) -> type[BaseModel]:
    """Return a pydantic class whose JSON schema is that of a TypedDict.

    Raises:
        NameError: An annotation names what does not exist.
        PydanticUserError: An annotation is nothing that JSON has.
    """
    converter = _Converter()
    model = converter.convert(schema)
    converter.complete()
    return model


class _Converter:
    """Turns TypedDicts into classes, each once, also those that refer to themselves."""

    def __init__(self) -> None:
        self._names: dict[Any, str] = {}
        self._models: dict[str, type[BaseModel]] = {}

    def convert(self, kind: Any) -> type[BaseModel]:
        """Return the class for a TypedDict, which may not be complete yet."""
        origin = get_origin(kind) or kind
        types = dict(zip(getattr(origin, "__parameters__", ()), get_args(kind), strict=False))
        key = self._names[kind] = f"Model{len(self._names)}"
        descriptions = _argument_descriptions(origin)
        hints = get_type_hints(origin, include_extras=True)  # inherited ones first
        fields: dict[str, Any] = {}
        for number, (name, hint) in enumerate(hints.items()):
            required, bare = _without_marks(hint, required=name in origin.__required_keys__)
            bare, given = _without_description(bare)
            more: dict[str, Any] = {"description": descriptions.get(name), **given}
            if more.get("default", ...) is ...:
                more.pop("default", None)
                more |= {} if required else {"default_factory": dict}
            fields[f"field_{number}"] = (self._type(bare, types), Field(alias=name, **more))
        model = create_model(
            _title(kind, origin),
            __config__=_config(origin),
            __doc__=inspect.getdoc(origin) if origin.__doc__ else None,
            **fields,
        )
        self._models[key] = model
        return model

    def complete(self) -> None:
        """Resolve what the classes say of each other."""
        for model in self._models.values():
            model.model_rebuild(force=True, _types_namespace=self._models)

    def _type(self, hint: Any, types: Mapping[Any, Any]) -> Any:
        """Return an annotation with classes in the place of TypedDicts."""
        if isinstance(hint, TypeVar):
            return self._type(types.get(hint, hint.__bound__ or Any), {})
        if is_typed_dict(hint):
            return ForwardRef(self._names.get(hint) or self._name(self._fill(hint, types)))
        args, origin = get_args(hint), get_origin(hint)
        if not args:
            return hint
        if origin is Annotated:
            return Annotated[(self._type(args[0], types), *args[1:])]
        return _replace_arguments(hint, tuple(self._type(arg, types) for arg in args))

    def _fill(self, hint: Any, types: Mapping[Any, Any]) -> Any:
        args = get_args(hint)
        if not args or not any(arg in types for arg in args if isinstance(arg, TypeVar)):
            return hint
        return get_origin(hint)[tuple(types.get(arg, arg) for arg in args)]

    def _name(self, kind: Any) -> str:
        if kind not in self._names:
            self.convert(kind)
        return self._names[kind]


def _replace_arguments(hint: Any, args: tuple[Any, ...]) -> Any:
    """Return a generic type with other arguments."""
    origin = get_origin(hint)
    if args == get_args(hint) or origin is Literal:
        return hint
    if origin in (Union, UnionType):
        return Union[args]  # noqa: UP007 - of as many as there are
    return hint.copy_with(args) if hasattr(hint, "copy_with") else origin[args]


def _without_marks(hint: Any, *, required: bool) -> tuple[bool, Any]:
    """Return whether a key is required, and its annotation without the words that say so."""
    while True:
        origin = get_origin(hint)
        if origin is Annotated and get_origin(get_args(hint)[0]) in _MARKS:
            inner, *rest = get_args(hint)
            required = _is_required(get_origin(inner), required=required)
            hint = Annotated[(get_args(inner)[0], *rest)]
        elif origin in _MARKS:
            required = _is_required(origin, required=required)
            hint = get_args(hint)[0]
        else:
            return required, hint


def _is_required(mark: Any, *, required: bool) -> bool:
    return True if mark is Required else False if mark is NotRequired else required


def _without_description(hint: Any) -> tuple[Any, dict[str, Any]]:
    """Return an annotation without LangChain's default and description, and these."""
    if get_origin(hint) is not Annotated:
        return hint, {}
    inner, *rest = get_args(hint)
    if any(isinstance(part, FieldInfo) or not _is_plain(part) for part in rest):
        return hint, {}
    if len(rest) == 1 and isinstance(rest[0], str):
        return inner, {"description": rest[0]}
    return inner, dict(zip(("default", "description"), rest, strict=False))


def _is_plain(part: Any) -> bool:
    return part is ... or part is None or isinstance(part, str | int | float | list | dict)


def _argument_descriptions(kind: Any) -> dict[str, str]:
    """Return what a docstring in Google's style says of the keys."""
    found: dict[str, str] = {}
    inside = False
    for line in (inspect.getdoc(kind) or "").splitlines() if kind.__doc__ else ():
        if _SECTION.match(line):
            inside = True
        elif inside and (entry := _ARGUMENT.match(line)):
            found[entry[1]] = entry[2].strip()
    return found


def _title(kind: Any, origin: Any) -> str:
    args = ", ".join(getattr(arg, "__name__", str(arg)) for arg in get_args(kind))
    return f"{origin.__name__}[{args}]" if args else str(origin.__name__)


def _config(kind: Any) -> ConfigDict:
    given: ConfigDict = getattr(kind, "__pydantic_config__", None) or ConfigDict()
    return ConfigDict(**{**given, "defer_build": True})
