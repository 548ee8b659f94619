"""Whether this machine can run `vllm-mlx` at all, asked before a byte is downloaded."""

import platform
import sys
from typing import NamedTuple

from langchain_car_vllm.errors import UnsupportedPlatformError
from langchain_car_vllm.runtime.mac import KernelAnswer, ask_kernel

# MLX has wheels for macOS 14 and newer on Apple silicon, and for glibc 2.35 and newer on Linux.
_OLDEST_MACOS = (14, 0)
# What macOS 11 and 26 call themselves towards programs that were built for an older one.
_COMPATIBLE_MACOS = ("10.16", "16.")
_OLDEST_GLIBC = (2, 35)
_LINUX_MACHINES = ("x86_64", "aarch64", "arm64")
_ELSEWHERE = "pass `base_url` to use a vllm-mlx server on another machine"


class Host(NamedTuple):
    """A machine, as far as wheels care.

    Attributes:
        system: As `sys.platform` says: `darwin`, `linux`, ...
        machine: The processor's own architecture, also where Python runs translated by Rosetta;
            empty where nobody says.
        release: Version of macOS or of glibc, empty where unknown.
    """

    system: str
    machine: str
    release: tuple[int, ...] = ()


def current_host() -> Host:
    """Return this machine."""
    if platform.system() == "Darwin":
        return mac_host(
            platform.machine(),
            platform.version(),
            platform.mac_ver()[0],
            ask_kernel("hw.optional.arm64", "kern.osproductversion"),
        )
    return Host(sys.platform, platform.machine(), glibc_release(*platform.libc_ver()))


def glibc_release(library: str, version: str) -> tuple[int, ...]:
    """Return the version of glibc, nothing for another library of C, such as Alpine's musl.

    Args:
        library: What Python calls it; it tells musl since 3.14.
        version: Its version.
    """
    return _numbers(version) if library == "glibc" else ()


def mac_host(machine: str, kernel: str, product: str, answer: KernelAnswer) -> Host:
    """Return a Mac, as far as anybody says what it is; what nobody says is left empty.

    A Python for Intel under Rosetta calls the machine `x86_64`, and an old one calls every macOS
    10.16 or 16.0. The kernel tells the truth to both, unless a sandbox keeps it from answering.

    Args:
        machine: What Python calls the processor; `arm64` is proof.
        kernel: Its version as `uname -v` prints it, which names the processor it was built for.
        product: What Python calls the version of macOS.
        answer: To `hw.optional.arm64` and `kern.osproductversion`.
    """
    release = _numbers(answer.values.get("kern.osproductversion", ""))
    if not release and not product.startswith(_COMPATIBLE_MACOS):
        release = _numbers(product)
    is_arm = answer.values.get("hw.optional.arm64") == "1"
    if machine == "arm64" or "ARM64" in kernel or is_arm:
        return Host("darwin", "arm64", release)
    is_intel = answer.is_complete or "X86_64" in kernel
    return Host("darwin", "x86_64" if is_intel else "", release)


def is_translated(host: Host) -> bool:
    """Tell whether this Python is one for Intel that Rosetta translates."""
    return host.system == "darwin" and host.machine == "arm64" and platform.machine() == "x86_64"


def unsupported_platform(system: str = sys.platform) -> UnsupportedPlatformError:
    """Return the error for a system that is neither macOS nor Linux."""
    return UnsupportedPlatformError(
        f"vllm-mlx runs on Apple silicon and on Linux, not on `{system}`", hint=_ELSEWHERE
    )


def check_host(host: Host) -> None:
    """Refuse a machine that `vllm-mlx` has no wheels for.

    Raises:
        UnsupportedPlatformError: Says what is missing and what to do instead.
    """
    if host.system == "darwin":
        _check_mac(host)
    elif host.system == "linux":
        _check_linux(host)
    else:
        raise unsupported_platform(host.system)


def _check_mac(host: Host) -> None:
    if host.machine == "x86_64":
        raise UnsupportedPlatformError(
            "vllm-mlx needs a Mac with Apple silicon, but this one has an Intel processor",
            hint=_ELSEWHERE,
        )
    if host.release and host.release < _OLDEST_MACOS:
        raise UnsupportedPlatformError(
            f"vllm-mlx needs macOS 14 or newer, but this is macOS {_dotted_text(host.release)}",
            hint=f"update macOS, or {_ELSEWHERE}",
        )


def _check_linux(host: Host) -> None:
    if host.machine not in _LINUX_MACHINES:
        raise UnsupportedPlatformError(
            f"vllm-mlx needs an x86-64 or arm64 processor on Linux, not `{host.machine}`",
            hint=_ELSEWHERE,
        )
    if not host.release:
        raise UnsupportedPlatformError(
            "vllm-mlx needs glibc on Linux; this system (Alpine?) has none", hint=_ELSEWHERE
        )
    if host.release < _OLDEST_GLIBC:
        raise UnsupportedPlatformError(
            "vllm-mlx needs glibc 2.35 or newer on Linux, but this is "
            f"{_dotted_text(host.release)}",
            hint=f"use a newer distribution, such as Debian 12 or Ubuntu 22.04, or {_ELSEWHERE}",
        )


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else ()


def _dotted_text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
