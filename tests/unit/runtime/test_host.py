import subprocess
import sys
from pathlib import Path

import pytest

from langchain_car_vllm.errors import UnsupportedPlatformError
from langchain_car_vllm.runtime.host import Host, check_host, current_host, glibc_release, mac_host
from langchain_car_vllm.runtime.mac import KernelAnswer, ask_kernel, platform_uuid
from langchain_car_vllm.server import process
from langchain_car_vllm.server.process import boot_id, host_name, machine_id


@pytest.mark.parametrize(
    "host",
    [
        Host("darwin", "arm64", (14, 0)),
        Host("darwin", "arm64", (26, 1)),
        Host("darwin", "arm64"),
        Host("linux", "x86_64", (2, 35)),
        Host("linux", "aarch64", (2, 39)),
    ],
)
def test_supported_machines_pass(host):
    """Apple silicon with macOS 14 and Linux with glibc 2.35 can run it."""
    check_host(host)


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (Host("win32", "AMD64"), "not on `win32`"),
        (Host("freebsd14", "amd64"), "not on `freebsd14`"),
        (Host("darwin", "x86_64", (14, 5)), "Intel"),
        (Host("darwin", "arm64", (13, 6, 1)), "macOS 13.6.1"),
        (Host("linux", "riscv64", (2, 39)), "riscv64"),
        (Host("linux", "x86_64"), "glibc"),
        (Host("linux", "x86_64", (2, 31)), "2.31"),
    ],
)
def test_other_machines_are_refused(host, reason):
    """Any other machine is refused with the reason and what to do instead."""
    with pytest.raises(UnsupportedPlatformError, match=reason) as caught:
        check_host(host)
    assert "base_url" in caught.value.hint


ARM = "Darwin Kernel Version 25.1.0: root:xnu-12377.41.6~2/RELEASE_ARM64_T6000"
INTEL = "Darwin Kernel Version 23.6.0: root:xnu-10063.141.1~2/RELEASE_X86_64"
DENIED = KernelAnswer({}, is_complete=False)


def answer(**values):
    names = {"arm": "hw.optional.arm64", "macos": "kern.osproductversion"}
    return KernelAnswer({names[name]: value for name, value in values.items()}, is_complete=True)


@pytest.mark.parametrize(
    ("machine", "kernel", "said", "host"),
    [
        ("arm64", ARM, answer(arm="1", macos="15.1"), Host("darwin", "arm64", (15, 1))),
        ("x86_64", ARM, answer(arm="1", macos="15.1"), Host("darwin", "arm64", (15, 1))),
        ("x86_64", "", answer(arm="1", macos="26.2"), Host("darwin", "arm64", (26, 2))),
        ("x86_64", INTEL, answer(macos="14.7.2"), Host("darwin", "x86_64", (14, 7, 2))),
        ("arm64", ARM, DENIED, Host("darwin", "arm64", (14, 5))),
        ("x86_64", ARM, DENIED, Host("darwin", "arm64", (14, 5))),
        ("x86_64", INTEL, DENIED, Host("darwin", "x86_64", (14, 5))),
        ("x86_64", "", DENIED, Host("darwin", "", (14, 5))),
        (
            "x86_64",
            "",
            answer(macos="15.0")._replace(is_complete=False),
            Host("darwin", "", (15, 0)),
        ),
    ],
)
def test_a_mac_is_known_by_whoever_answers(machine, kernel, said, host):
    """Rosetta hides the processor, a sandbox the kernel; neither makes the Mac an Intel one."""
    assert mac_host(machine, kernel, "14.5", said) == host
    if host.machine != "x86_64":
        check_host(host)


@pytest.mark.parametrize("name", ["10.16", "16.0", "16.3.1"])
def test_the_name_for_old_programs_is_no_version(name):
    """To an old Python every macOS is 10.16, or 16 from 26 on, which says nothing."""
    assert mac_host("arm64", ARM, name, DENIED).release == ()


@pytest.mark.parametrize(
    ("library", "version", "release"),
    [("glibc", "2.36", (2, 36)), ("musl", "1.2.5", ()), ("", "", ()), ("libc", "", ())],
)
def test_another_library_of_c_is_not_an_old_glibc(library, version, release):
    """Python 3.14 tells musl by its name; 1.2.5 is no version of glibc."""
    assert glibc_release(library, version) == release


def test_this_machine_is_known():
    """The machine that runs the tests is one that can run the server."""
    check_host(current_host())


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Put programs in the place of the system's own."""

    def write(**scripts):
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / name).chmod(0o755)
        run = subprocess.run
        monkeypatch.setattr(
            subprocess, "run", lambda c, **k: run([tmp_path / Path(c[0]).name, *c[1:]], **k)
        )

    return write


def test_the_kernel_is_asked_without_the_name_for_old_programs(tools, monkeypatch):
    """A variable of the user's that has the kernel lie does not reach the question."""
    monkeypatch.setenv("SYSTEM_VERSION_COMPAT", "1")
    tools(sysctl='echo "kern.osproductversion: ${SYSTEM_VERSION_COMPAT:-26.1}"')
    assert ask_kernel("kern.osproductversion").values == {"kern.osproductversion": "26.1"}


@pytest.mark.parametrize(
    "script", ["exit 1", "echo 'operation not permitted' >&2; exit 1", "exit 0"]
)
def test_a_denied_question_is_no_answer(tools, script):
    """A tool that runs, says nothing and fails, as under a sandbox, has not said no."""
    tools(sysctl=script, ioreg=script)
    assert ask_kernel("hw.optional.arm64") == DENIED
    assert platform_uuid() is None


def test_the_ids_of_a_mac(tools):
    """The machine and the boot are read from what the tools print."""
    tools(
        ioreg="""echo '  "IOPlatformUUID" = "A1-B2"'""",
        sysctl="echo 'kern.bootsessionuuid: C3-D4'",
    )
    assert machine_id.__wrapped__("darwin") == "A1-B2"
    assert boot_id.__wrapped__("darwin") == "C3-D4"


def test_ids_that_nobody_may_ask_for_exclude_nothing(tools, monkeypatch):
    """Without ids a state may be of this boot, and the machine's name decides."""
    tools(ioreg="exit 1", sysctl="exit 1")
    assert machine_id.__wrapped__("darwin") == boot_id.__wrapped__("darwin") == ""
    monkeypatch.setattr(process, "machine_id", lambda: "")
    monkeypatch.setattr(process, "boot_id", lambda: "")
    assert process.is_this_boot("any")
    assert process.is_this_machine("any", host_name())
    assert not process.is_this_machine("any", "another")


def test_a_program_with_too_many_open_files_is_on_no_other_machine():
    """What it could not ask for once is not taken for the answer."""
    code = """
import os, resource
from langchain_car_vllm.server import process
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
opened = []
try:
    while True:
        opened.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    process.machine_id()
for descriptor in opened:
    os.close(descriptor)
print(process.is_this_machine("A1-B2", process.host_name()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
