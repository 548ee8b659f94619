"""Where LM Studio keeps its models."""

import os
from collections.abc import Iterator
from pathlib import Path

from langchain_car_vllm import paths
from langchain_car_vllm.models.model_files import read_object, read_text

_POINTER = ".lmstudio-home-pointer"
_HOMES = (".lmstudio", ".cache/lm-studio")


def lm_studio_folders() -> list[Path]:
    """Return the folders that LM Studio keeps models in, most likely first.

    Its home may have been moved, which a file in the user's home tells, and its folder of downloads
    too, which its settings tell.
    """
    return list(dict.fromkeys(folder for folder, _ in _places(paths.home())))


def lost_folders() -> list[str]:
    """Return what to say of folders of LM Studio's that are on a disk which is not connected."""
    base = paths.home()
    lost = [
        said
        for folder, named in _places(base)
        if (said := paths.lost_disk(folder) or _said_of_missing(named, base))
    ]
    return [f"LM Studio's models cannot be listed: {said}" for said in dict.fromkeys(lost)]


def _places(base: Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield each folder of models, and the folder that was named for it."""
    if base is None:
        return
    pointed = _absolute(read_text(base / _POINTER), base)
    for home in (*([pointed] if pointed else []), *(base / name for name in _HOMES)):
        settings = read_object(home / "settings.json") or {}
        if moved := _absolute(settings.get("downloadsFolder"), base):
            yield moved, moved
        yield home / "models", home


def _said_of_missing(named: Path, base: Path | None) -> str | None:
    """Return what to say of a folder elsewhere than in the user's home that is not there."""
    is_missing = not os.path.exists(named)  # noqa: PTH110 - `Path` raises
    is_elsewhere = base is not None and not named.is_relative_to(base)
    return f"`{named}` is not there" if is_elsewhere and is_missing else None


def _absolute(text: object, home: Path) -> Path | None:
    """Return the folder that a setting names, None where it names none."""
    if not isinstance(text, str) or "\0" in text:
        return None
    written = text.strip()
    if written == "~" or written.startswith("~/"):
        written = f"{home}{written[1:]}"
    return Path(os.path.normpath(written)) if written.startswith("/") else None
