"""A mend: what it changes in which module, and how it finds out that it may."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Mend(NamedTuple):
    """A change to a module of the server's own installation.

    Attributes:
        name: Names it in the log and in `mends.json` beside it.
        module: The module that is changed once it has been imported.
        tested: The versions it was tested with.
        apply: Changes the module. It returns why nothing is to be done, else None, and raises
            `UnknownCodeError` before it has changed anything where the code is not what it mends.
        needed_for: What is wrong or unsafe without it, as the subject of a sentence: the import
            then fails instead. Empty where the server may run as it was published.
    """

    name: str
    module: str
    tested: str
    apply: Callable[[Any], "str | None"]
    needed_for: str = ""


def mend(name: str, module: str, tested: str, *, needed_for: str = "") -> "Callable[..., Mend]":
    """Make a mend of the function that applies it, whose docstring says what it is for."""
    return lambda apply: Mend(name, module, tested, apply, needed_for)


class UnknownCodeError(Exception):
    """The module does not hold the code that a mend was written for."""


def find(owner: Any, name: str, *parameters: str) -> Any:
    """Return a function or class of a module.

    Args:
        owner: The module or class.
        name: What to look for.
        parameters: Names of parameters that it must have.

    Raises:
        UnknownCodeError: It is missing, or takes other parameters.
    """
    found = getattr(owner, name, None)
    place = f"{getattr(owner, '__name__', owner)}.{name}"
    if found is None:
        raise UnknownCodeError(f"there is no {place}")
    try:
        known = inspect.signature(found).parameters
    except (TypeError, ValueError) as error:
        raise UnknownCodeError(f"{place} has no signature") from error
    missing = [parameter for parameter in parameters if parameter not in known]
    if missing:
        raise UnknownCodeError(f"{place} takes no {', '.join(missing)}")
    return found


def find_names(function: Any, *names: str) -> None:
    """Make sure that a function, or one inside of it, uses attributes of some names.

    Raises:
        UnknownCodeError: It does not.
    """
    level, known = [function.__code__], set()
    while level:
        code = level.pop()
        known.update(code.co_names)
        level += [inner for inner in code.co_consts if inspect.iscode(inner)]
    missing = [name for name in names if name not in known]
    if missing:
        raise UnknownCodeError(f"{function.__qualname__} uses no {', '.join(missing)}")


def tell_that_it_stepped_aside(name: str, error: Exception) -> None:
    """Say in the log that a mend met what it does not know while the server ran."""
    text = f"car-vllm: the mend `{name}` stepped aside: {type(error).__name__}: {error}"
    print(text, file=sys.stderr, flush=True)
