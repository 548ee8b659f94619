"""What of a folder is the managed environment's, and who else may put something into it.

A variable may name a folder that holds more, or that is not the user's alone.
"""

import os
import shlex
from contextlib import suppress
from pathlib import Path

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime.marker import MARKER
from langchain_car_vllm.support.backups import TAG
from langchain_car_vllm.support.file_presence import entries_of
from langchain_car_vllm.support.replaced_files import draft_name
from langchain_car_vllm.support.strict_modes import Exposure, find_exposure

OF_ITS_OWN = "set CAR_VLLM_MLX_RUNTIME to another folder, or move away what is there"
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


def find_runtime_exposure(root: Path) -> Exposure | None:
    """Return where others may put code into the managed environment, None where nobody may."""
    with suppress(OSError):
        sites = [version / "site-packages" for version in entries_of(root / "lib", "python*")]
        for folder in (root, root / "bin", *sites):
            if (folder == root or os.path.lexists(folder)) and (found := find_exposure(folder)):
                return found
    return None


def check_own_runtime(root: Path) -> None:
    """Refuse to run what others may have put into the managed environment.

    Raises:
        ProvisionError: They may; names the folder.
    """
    if (exposure := find_runtime_exposure(root)) is None:
        return
    hint = "set CAR_VLLM_MLX_RUNTIME to a folder of your own"
    if not exposure.is_foreign:
        place = exposure.place
        closed = (
            f"-R go-w {shlex.quote(str(root))}"
            if place.is_relative_to(root)
            else (f"go-w {shlex.quote(str(place))}")
        )
        hint = f"run `chmod {closed}`, or {hint}"
    raise ProvisionError("find", str(exposure), hint=hint)


def removable_parts(root: Path) -> list[Path]:
    """Return what a removal of the environment takes: the folder, or its own parts among others.

    A link to a folder elsewhere goes by itself.
    """
    if os.path.islink(root) or _PARTS.issuperset(os.listdir(root)):  # noqa: PTH114, PTH208
        return [root]
    return [root / name for name in sorted(_PARTS.intersection(os.listdir(root)))]  # noqa: PTH208
