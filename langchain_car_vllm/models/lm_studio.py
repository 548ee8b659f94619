"""Where LM Studio keeps its models."""

import os
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
    base = paths.home()
    if base is None:
        return []
    pointed = _absolute(read_text(base / _POINTER), base)
    homes = [*([pointed] if pointed else []), *(base / name for name in _HOMES)]
    folders: list[Path] = []
    for home in homes:
        settings = read_object(home / "settings.json") or {}
        moved = _absolute(settings.get("downloadsFolder"), base)
        folders += [*([moved] if moved else []), home / "models"]
    return list(dict.fromkeys(folders))


def _absolute(text: object, home: Path) -> Path | None:
    """Return the folder that a setting names, None where it names none."""
    if not isinstance(text, str) or "\0" in text:
        return None
    written = text.strip()
    if written == "~" or written.startswith("~/"):
        written = f"{home}{written[1:]}"
    return Path(os.path.normpath(written)) if written.startswith("/") else None
