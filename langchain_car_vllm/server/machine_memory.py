"""The memory that this process may use: the machine's, or less in a container."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from langchain_car_vllm.errors import ConfigurationError

_MEMBERSHIP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def machine_memory() -> int:
    """Return the bytes that programs here can have together.

    Raises:
        ConfigurationError: A sandbox lets nobody ask.
    """
    try:
        total = int(psutil.virtual_memory().total)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigurationError(
            f"the system does not report how much memory this machine has: {error}",
            hint="set CAR_VLLM_MLX_MEMORY_GB to what models may take",
        ) from error
    limit = container_limit()
    return total if limit is None else min(total, limit)


def container_limit(membership: Path = _MEMBERSHIP, groups: Path = _GROUPS) -> int | None:
    """Return the memory limit of this process's control group, None where there is none.

    Each group above it limits it, too. A container may see its own group as the root. Beyond
    `memory.high` a program is not ended but slowed down until it hardly moves.

    Args:
        membership: What tells the groups of this process.
        groups: Where the groups are mounted.
    """
    limits = [limit for file in _limit_files(membership, groups) if (limit := _limit(file))]
    return min(limits, default=None)


def _limit_files(membership: Path, groups: Path) -> Iterator[Path]:
    for line in _text(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not path.startswith("/"):
            continue
        names: tuple[str, ...]
        if not controllers:  # version 2
            root, names = groups, ("memory.max", "memory.high")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes",)
        else:
            continue
        for part in (Path(path), *Path(path).parents):
            if ".." not in part.parts:
                yield from (root / part.relative_to("/") / name for name in names)


def _limit(file: Path) -> int | None:
    """Return a limit; `max`, and numbers beyond any machine, stand for none."""
    text = _text(file).strip()
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 60 else None


def _text(file: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8")
    return ""
