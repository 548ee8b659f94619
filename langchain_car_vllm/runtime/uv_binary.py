"""Finding a `uv` that works."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import uv

from langchain_car_vllm import environment, paths
from langchain_car_vllm.errors import UvMissingError
from langchain_car_vllm.runtime.commands import clean_environment
from langchain_car_vllm.support.programs import ask_program

# Since then `uv venv` does not ask before it replaces an environment.
_MINIMUM = (0, 8)
_PATIENCE = 20.0


def find_uv() -> Path:
    """Return the first `uv` that runs and is at least 0.8.

    Looked at, in this order: `CAR_UV`, PATH, the `uv` package, `~/.local/bin`, `~/.cargo/bin`.

    Raises:
        UvMissingError: There is none; names the places.
    """
    searched = []
    for place, candidate in _candidates():
        searched.append(place)
        if candidate is not None and _works(candidate):
            return candidate
    raise UvMissingError(tuple(searched))


def _candidates() -> Iterator[tuple[str, Path | None]]:
    if value := environment.CAR_UV.read():
        yield f"CAR_UV={value}", Path(value).absolute()
    on_path = environment.find_program("uv")
    yield environment.PATH.name, Path(on_path) if on_path else None
    yield "the `uv` package", _packaged_uv()
    if home := paths.home():
        yield "~/.local/bin", home / ".local" / "bin" / "uv"
        yield "~/.cargo/bin", home / ".cargo" / "bin" / "uv"


def _packaged_uv() -> Path | None:
    try:
        return Path(uv.find_uv_bin())
    except FileNotFoundError:
        return None


def _works(candidate: Path) -> bool:
    """Return whether a candidate answers with a version that is new enough.

    A shim of pyenv, or a binary for another processor, is a file as well but does not answer.
    """
    if not os.path.isfile(candidate):  # noqa: PTH113
        return False
    variables = {n: v for n, v in clean_environment().items() if not n.startswith("UV_")}
    answer = ask_program([candidate, "--version"], _PATIENCE, variables)
    if answer is None:
        return False
    found = re.match(r"uv (\d+)\.(\d+)", answer.stdout)
    numbers = tuple(map(int, found.groups())) if found else ()
    return answer.returncode == 0 and numbers >= _MINIMUM
