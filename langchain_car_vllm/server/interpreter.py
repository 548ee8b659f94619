"""The Python that runs supervisors, and the environment that it gets."""

import os
import re
import sys
from collections.abc import Iterator, Mapping

from langchain_car_vllm.environment import CAR_VLLM_PYTHON, inherited_environment
from langchain_car_vllm.errors import ConfigurationError, ServerStartError

_PYTHON_NAME = re.compile(r"(?:python|pypy)[\d.]*t?(?:\.exe)?", re.IGNORECASE)
# The rest says which Python runs and what it imports, for the program that asks.
_HARMLESS = frozenset({"PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONUTF8"})
_LIBRARIES = "LD_LIBRARY_PATH"
_IMPORT_PATH = "PYTHONPATH"


def supervisor_python() -> str:
    """Return the Python that runs the supervisor.

    `sys.executable` may be a program that embeds Python, such as uWSGI or QGIS, which would open
    another window instead; then the Python beside its library is taken.

    Raises:
        ConfigurationError: The program is frozen or embedded, and CAR_VLLM_PYTHON names none.
        ServerStartError: The Python that runs the program has been removed.
    """
    if python := CAR_VLLM_PYTHON.read():
        return python
    if not getattr(sys, "frozen", False):
        for candidate in _candidates():
            if _is_named_as_python(candidate) and os.access(candidate, os.X_OK):
                return candidate
        is_there = os.path.exists(sys.executable)  # noqa: PTH110 - `Path.exists` raises
        if _is_named_as_python(sys.executable) and not is_there:
            raise removal_error(sys.executable)
    raise ConfigurationError(
        "this program has no Python of its own to run the supervisor with",
        hint="set CAR_VLLM_PYTHON to a Python that has langchain-car-vllm installed",
    )


def removal_error(path: str) -> ServerStartError:
    """Return the error for a file of this running program that is no longer there."""
    return ServerStartError(
        f"`{path}` is gone, and this program was started with it",
        hint="restart this program: its environment was removed or created again",
    )


def _is_named_as_python(path: str) -> bool:
    return bool(_PYTHON_NAME.fullmatch(os.path.basename(path)))  # noqa: PTH119


def _candidates() -> Iterator[str]:
    """Yield where this process's Python may be; none at all where it does not say who it is."""
    if sys.executable:
        yield sys.executable
        yield str(getattr(sys, "_base_executable", ""))
        version = "{}.{}".format(*sys.version_info[:2])
        for prefix in (sys.prefix, sys.base_prefix):
            yield f"{prefix}/bin/python{version}"


def supervisor_environment(inherited: Mapping[str, str], import_path: str) -> dict[str, str]:
    """Return the environment of a supervisor, without what was meant for the program that asks.

    Args:
        inherited: Of this process. A frozen program puts its own libraries before those of the
            system, and leaves what was there in `LD_LIBRARY_PATH_ORIG`.
        import_path: Where the package and what it needs lie.
    """
    environment = {
        name: value
        for name, value in inherited.items()
        if name in _HARMLESS or not name.startswith(("PYTHON", "__PYVENV_LAUNCHER__"))
    }
    former = environment.pop(f"{_LIBRARIES}_ORIG", None)
    if former is not None or getattr(sys, "frozen", False):
        environment.pop(_LIBRARIES, None)
        if former:
            environment[_LIBRARIES] = former
    return environment | {_IMPORT_PATH: import_path}


def import_path() -> dict[str, str]:
    """Return what has a child of a supervisor import what the supervisor itself was given."""
    return {_IMPORT_PATH: inherited_environment().get(_IMPORT_PATH, "")}
