"""What of a folder is the managed environment's: a variable may name one that holds more."""

import os
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.runtime.marker import MARKER
from langchain_car_vllm.support.backups import TAG
from langchain_car_vllm.support.replaced_files import draft_name

OF_ITS_OWN = "set CAR_VLLM_MLX_RUNTIME to a folder of its own, or move what is there away"
_PARTS = frozenset(
    {
        *("bin", "lib", "lib64", "include", "share", "etc", "pyvenv.cfg"),
        *(".gitignore", ".lock", ".DS_Store", TAG, MARKER, draft_name(MARKER)),
    }
)


def find_stranger(root: Path) -> str | None:
    """Return what of a folder keeps an environment from being made in it, None where nothing does.

    An environment that is there is added to, and what is hidden may be the system's.
    """
    with suppress(OSError):
        names = sorted(os.listdir(root))  # noqa: PTH208
        if not {"pyvenv.cfg", MARKER} & set(names):
            return next((name for name in names if not name.startswith(".")), None)
    return None


def removable_parts(root: Path) -> list[Path]:
    """Return what a removal of the environment takes: the folder, or its own parts among others.

    A link to a folder elsewhere goes by itself.
    """
    if os.path.islink(root) or _PARTS.issuperset(os.listdir(root)):  # noqa: PTH114, PTH208
        return [root]
    return [root / name for name in sorted(_PARTS.intersection(os.listdir(root)))]  # noqa: PTH208
