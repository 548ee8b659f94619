import pytest

from langchain_car_vllm.errors import UnsupportedPlatformError
from langchain_car_vllm.runtime.host import Host, check_host, current_host, mac_host


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


@pytest.mark.parametrize(
    ("sysctl", "host"),
    [
        ("hw.optional.arm64: 1\nkern.osproductversion: 15.1\n", Host("darwin", "arm64", (15, 1))),
        ("kern.osproductversion: 14.7.2\n", Host("darwin", "x86_64", (14, 7, 2))),
        ("hw.optional.arm64: 1\n", Host("darwin", "arm64")),
        ("", Host("darwin", "x86_64")),
    ],
)
def test_the_kernel_tells_the_truth_under_rosetta(sysctl, host):
    """On a Mac the kernel is asked, since a translated Python does not know its processor."""
    assert mac_host(sysctl) == host


def test_this_machine_is_known():
    """The machine that runs the tests is one that can run the server."""
    check_host(current_host())


def test_a_sandbox_without_sysctl(monkeypatch):
    """Where the kernel cannot be asked, Python's own word counts."""

    def refuse(*_args, **_kwargs):
        raise PermissionError

    monkeypatch.setattr("subprocess.run", refuse)
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.2", ("", "", ""), "arm64"))
    assert current_host() == Host("darwin", "arm64", (15, 2))
