"""What is installed: the hash-locked set of the package, or a requirement of the user's."""

import hashlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.environment import CAR_VLLM_MLX_SPEC
from langchain_car_vllm.errors import ProvisionError

LOCK = Path(__file__).parent / "requirements.lock"

# Into an environment that somebody else made, only what is needed goes, unlocked.
_UNLOCKED = "vllm-mlx>=0.6,<0.7"
# On Linux `mlx` alone has no back end.
_LINUX_BACK_END = "mlx[cpu]"

# Installed, the sets measure 1135 and 390 MB; with room for bytecode and for what uv unpacks.
# What is not locked brings torch on Linux.
_NEEDED_MB = {"darwin": 1800, "linux": 700}
_UNLOCKED_MB = {"darwin": 1800, "linux": 6000}

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;\s*(.+?))?\s*\\?$", re.MULTILINE)


class Requirements(NamedTuple):
    """What an installation is asked for.

    Attributes:
        name: Identifies it in the marker.
        arguments: Given to `uv pip install`.
        is_locked: Whether every version is known beforehand.
    """

    name: str
    arguments: tuple[str, ...]
    is_locked: bool


def wanted_requirements(*, ours: bool, system: str = sys.platform) -> Requirements:
    """Return what to install: `CAR_VLLM_MLX_SPEC`, else the locked set.

    Args:
        ours: Whether this package made the environment; into another's the locked set would force
            versions that its maker did not choose.
        system: What it is for, as `sys.platform` says.

    Raises:
        ProvisionError: The list of the locked set is gone.
    """
    spec = CAR_VLLM_MLX_SPEC.read()
    if spec is None and ours:
        digest = hashlib.sha256(_read_lock()).hexdigest()[:16]
        return Requirements(
            f"lock {digest}",
            ("--no-deps", "--require-hashes", "--requirement", str(LOCK)),
            is_locked=True,
        )
    wanted = [spec or _UNLOCKED]
    if system == "linux":
        wanted.append(_LINUX_BACK_END)
    return Requirements(" ".join(wanted), tuple(wanted), is_locked=False)


def needed_mb(*, system: str = sys.platform, is_locked: bool = True) -> int:
    """Return the disk space in MB that an installation needs at most."""
    known = _NEEDED_MB if is_locked else _UNLOCKED_MB
    return known.get(system, max(known.values()))


def locked_versions(environment: dict[str, str]) -> dict[str, str]:
    """Return the versions of the locked set by normalized name.

    Args:
        environment: The markers of the Python that it is installed for, such as
            `python_full_version`, `sys_platform` and `platform_machine`.
    """
    from packaging.markers import Marker  # noqa: PLC0415 - most supervisors install nothing

    return {
        normalize_name(name): version
        for name, version, condition in _PIN.findall(_read_lock().decode())
        if not condition or Marker(condition).evaluate(environment)
    }


def _read_lock() -> bytes:
    try:
        return LOCK.read_bytes()
    except OSError as error:
        raise ProvisionError(
            "lock",
            f"`{LOCK}`: {error.strerror}",
            hint="this package was removed or upgraded while the program was running: restart it",
        ) from error


def normalize_name(name: str) -> str:
    """Return a distribution's name in the form that compares."""
    return re.sub(r"[-_.]+", "-", name).lower()
