"""What macOS says of itself, asked of its own tools; a sandbox may forbid any of them to answer."""

import re
from typing import NamedTuple

from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.support.programs import ask_program

_PATIENCE = 10.0
# With it in the environment the kernel calls every macOS 10.16.
_COMPATIBLE = "SYSTEM_VERSION_COMPAT"


class KernelAnswer(NamedTuple):
    """What `sysctl` printed.

    Attributes:
        values: By name; a name that this kernel does not know is missing.
        is_complete: Whether it was allowed to answer. If not, what is missing means nothing.
    """

    values: dict[str, str]
    is_complete: bool


def ask_kernel(*names: str) -> KernelAnswer:
    """Return kernel variables, such as `hw.optional.arm64`."""
    code, said = _run("/usr/sbin/sysctl", "-i", *names)
    values = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
    return KernelAnswer(values, is_complete=code == 0 and bool(values))


def platform_uuid() -> str | None:
    """Return what tells this Mac from every other, None where nobody may ask."""
    _, said = _run("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
    found = re.search(r'"IOPlatformUUID" = "([^"]+)"', said)
    return found[1] if found else None


def _run(*command: str) -> tuple[int, str]:
    environment = {
        name: value for name, value in inherited_environment().items() if name != _COMPATIBLE
    }
    done = ask_program(command, _PATIENCE, environment)
    return (done.returncode, done.stdout) if done else (1, "")
