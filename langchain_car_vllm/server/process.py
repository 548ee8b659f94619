"""Processes: who they are, whether they live, and how they are ended."""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from langchain_car_vllm.errors import ServerError
from langchain_car_vllm.runtime.mac import ask_kernel, platform_uuid

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that can be told from a later one with the same number.

    Creation times do not help: they move with the wall clock.

    Attributes:
        pid: Process id, also its group where it leads one.
        tag: A random text that stands on its command line and on no other's.
    """

    pid: int
    tag: str

    def find(self) -> psutil.Process | None:
        """Return the live process, or None when it is gone, a zombie or somebody else."""
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if self.tag in process.cmdline() else None
        except psutil.Error:
            return None

    def wake(self) -> None:
        """Let the process go on where somebody has suspended it."""
        with suppress(psutil.Error):
            process = self.find()
            if process is not None and process.status() == psutil.STATUS_STOPPED:
                process.resume()


@cache
def host_name() -> str:
    """Return the machine's name."""
    return socket.gethostname()


@cache
def machine_id(platform: str = sys.platform) -> str:
    """Return what tells this machine from every other, whatever name its network gives it.

    Empty where nobody may ask, in a sandbox or for a moment; that says nothing about the machine.
    """
    if platform == "darwin":
        return platform_uuid() or ""
    try:
        return Path("/etc/machine-id").read_text(encoding="ascii").strip() or host_name()
    except (FileNotFoundError, UnicodeDecodeError):
        return host_name()
    except OSError:  # too many files are open, for instance
        return ""


@cache
def boot_id(platform: str = sys.platform) -> str:
    """Return what tells this boot of the machine from every other, empty where nobody may ask."""
    if platform == "darwin":
        return ask_kernel("kern.bootsessionuuid").values.get("kern.bootsessionuuid", "")
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def is_this_boot(noted: str) -> bool:
    """Tell whether a boot that was noted may be this one: one that is unknown may be."""
    return noted == boot_id() or not noted or not boot_id()


def is_this_machine(noted: str, noted_host: str) -> bool:
    """Tell whether a machine that was noted is this one; without an id the name decides."""
    if noted and machine_id():
        return noted == machine_id()
    return noted_host == host_name()


def namespace(kind: str) -> str | None:
    """Return which `net` or `pid` namespace this process lives in, None where there are none.

    Containers on one machine share its boot, but neither ports nor process ids.
    """
    try:
        return os.readlink(f"/proc/self/ns/{kind}")  # noqa: PTH115 - each request asks
    except OSError:
        return None


def group_members(group: int) -> Iterator[psutil.Process]:
    """Yield the live processes of a group, in a sandbox its leader; zombies count as gone."""
    processes: list[psutil.Process] = []
    try:
        processes += psutil.process_iter()
    except OSError:
        with suppress(psutil.Error):
            processes.append(psutil.Process(group))
    for process in processes:
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def descendants() -> list[psutil.Process]:
    """Return the processes that this one and its children have started, none in a sandbox."""
    try:
        return psutil.Process().children(recursive=True)
    except (psutil.Error, OSError):
        return []


def has_ended(pid: int) -> bool:
    """Tell whether a child of this process has ended, and leave it to be reaped."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # in a sandbox, which lets nobody see who listens, either
        return False


def send_signal(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process, which may have ended.

    Raises:
        ServerError: This program may not.
    """
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied as error:
        raise ServerError(
            f"this program may not signal process {process.pid}",
            hint="a sandbox may forbid it: run `car-vllm stop` in a terminal outside of it",
        ) from error


def kill_group(group: int, grace: float) -> bool:
    """Kill a group that is known to be ours and wait until nobody of it lives."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
    return wait_until_group_gone(group, grace)


def wait_until_group_gone(group: int, grace: float) -> bool:
    """Wait up to `grace` seconds for the last member of a group."""
    deadline = time.monotonic() + grace
    while _may_have_members(group) and any(True for _ in group_members(group)):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _may_have_members(group: int) -> bool:
    """Ask the kernel, which costs less than a look at all processes; zombies count as well."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so where only zombies are left
        return True
    return True


def reap_orphans(pid: int) -> bool:
    """Reap orphans that the kernel gave to this process because it is the first of a container.

    Args:
        pid: Of a process that has ended or is about to, and of the group that it may lead.

    Returns:
        Whether none of them is left.
    """
    return os.getpid() != 1 or all([_reap(pid), _reap(-pid)])


def reap_group(group: int) -> None:
    """Reap the zombies of a group that are children of this process, by adoption or birth."""
    _reap(-group)


def _reap(pid: int) -> bool:
    """Reap a child, or a group of them, and tell whether none is left."""
    try:
        while os.waitpid(pid, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def adopt_orphans(platform: str = sys.platform) -> None:
    """Have Linux give orphans of this process's children to it instead of the first process.

    In a container that one is a program which does not reap them.
    """
    if platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def is_suspended(pid: int) -> bool:
    """Tell whether somebody has suspended a process, as Ctrl-Z does."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False
