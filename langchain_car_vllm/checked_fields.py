"""Settings that are checked however they are set: in a constructor, a copy or an assignment."""

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, PrivateAttr, ValidationError

from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models.ids import written
from langchain_car_vllm.setting_checks import (
    EXAMPLE,
    check_texts,
    configuration_error,
    encoding_error,
)
from langchain_car_vllm.wire.request import parameters

# What is known of a model follows from them.
_OF_PROFILE = frozenset({"model", "base_url"})


class CheckedFields(BaseModel):
    """A configuration whose faults are this package's errors, told where they are made."""

    # What is only inherited from is never validated by, and its schema takes milliseconds to build.
    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        defer_build=True,
        hide_input_in_errors=True,  # pydantic's own errors, as of `model_validate`, show all of it
    )

    _has_unread_files: bool = PrivateAttr(default=False)
    _is_checked: bool = PrivateAttr(default=False)

    def __init__(self, model: str | os.PathLike[str] | None = None, /, **given: Any) -> None:
        if model is not None:
            if "model" in given:
                raise ConfigurationError("`model` is named twice", hint="name it once")
            given["model"] = model
        for name in ("model", "adapter", "draft"):
            if isinstance(given.get(name), os.PathLike):
                given[name] = written(given[name])
        check_texts(given)
        parameters.check_names(given, _argument_names(type(self)))
        if "model" not in given and type(self).model_fields["model"].is_required():
            raise ConfigurationError("`model` is missing", hint=EXAMPLE)
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise configuration_error(error) from None
        except UnicodeEncodeError:
            raise encoding_error("a setting") from None
        self._is_checked = True

    def model_post_init(self, context: Any, /) -> None:
        """Let LangChain do what it does with each model: pydantic's own would end the chain."""
        super().model_post_init(context)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; what is changed in it is checked as in a constructor."""
        copied = super().model_copy(deep=deep)
        if update:
            given = {k: v for k, v in vars(copied).items() if k in type(self).model_fields}
            copied._is_checked = False  # noqa: SLF001
            named = {_names_of(type(self), k)[0]: v for k, v in {**given, **update}.items()}
            CheckedFields.__init__(copied, **named)
            copied.__pydantic_fields_set__ = self.model_fields_set | update.keys()
        return copied

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field, and what follows from it, as a constructor would; or leave all as it was."""
        names = _checked_names(type(self))
        if not (name in names and getattr(self, "_is_checked", False)):
            if _is_known(type(self), name):
                self._set_unchecked(name, value)
            return
        update = {name: value}
        if "validate_model_on_init" in names:
            update.setdefault("validate_model_on_init", False)  # an assignment asks nobody
        checked = self.model_copy(update=update)
        for changed in names & ({name, "profile"} if name in _OF_PROFILE else {name}):
            self._set_unchecked(changed, getattr(checked, changed))
        if name in _OF_PROFILE:
            self._has_unread_files = checked._has_unread_files  # noqa: SLF001

    def _set_unchecked(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)


def _names_of(cls: type[CheckedFields], field: str) -> list[str]:
    """Return what a constructor calls a field: subclasses may have other names for theirs."""
    found = cls.model_fields[field].validation_alias if field in cls.model_fields else None
    choices = found.choices if isinstance(found, AliasChoices) else [found]
    return [*(name for name in choices if isinstance(name, str)), field]


@lru_cache
def _argument_names(cls: type[CheckedFields]) -> frozenset[str]:
    """Return all that a constructor takes."""
    return frozenset(name for field in cls.model_fields for name in _names_of(cls, field))


@lru_cache
def _checked_names(cls: type[CheckedFields]) -> frozenset[str]:
    """Return the fields that are this package's; LangChain sees to its own."""
    bases = [base for base in cls.__mro__ if issubclass(base, BaseModel)]
    theirs = {n for base in bases if not issubclass(base, CheckedFields) for n in base.model_fields}
    ours = {name for base in bases if _is_ours_alone(base) for name in base.model_fields}
    return frozenset(cls.model_fields.keys() - (theirs - ours - {"profile"}))


def _is_ours_alone(cls: type[BaseModel]) -> bool:
    """Return whether a class has nothing of LangChain's."""
    bases = (base for base in cls.__mro__ if base not in (BaseModel, object))
    return all(issubclass(base, CheckedFields) for base in bases)


def _is_known(cls: type[CheckedFields], name: str) -> bool:
    """Return whether an attribute can be set, False for a parameter that the server ignores.

    Raises:
        ConfigurationError: It is none; the right one is in the hint.
    """
    if name.startswith("_") or name in cls.model_fields or hasattr(cls, name):
        return True
    parameters.check_names([name], cls.model_fields)
    return False
