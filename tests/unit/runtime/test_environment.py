import sys
from pathlib import Path

import pytest

from langchain_car_vllm.errors import ProvisionError
from langchain_car_vllm.runtime import ensure_runtime
from langchain_car_vllm.runtime.requirements import LOCK, locked_versions
from langchain_car_vllm.runtime.virtual_environment import Python, forget_unreadable, former_python

MAC = {"sys_platform": "darwin", "platform_machine": "arm64"}
INTEL_MAC = {"sys_platform": "darwin", "platform_machine": "x86_64"}
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64"}
ARM_LINUX = {"sys_platform": "linux", "platform_machine": "aarch64"}


@pytest.mark.parametrize(
    ("version", "markers", "supported"),
    [
        ((3, 9), MAC, False),
        ((3, 10), MAC, True),
        ((3, 13), MAC, True),
        ((3, 14), MAC, True),
        ((3, 15), MAC, False),
        ((3, 12), INTEL_MAC, False),
        ((3, 11), LINUX, True),
        ((3, 11), ARM_LINUX, True),
        ((3, 9), LINUX, False),
    ],
)
def test_which_pythons_are_supported(version, markers, supported):
    """Apple's own Python 3.9 and an Intel Python under Rosetta are never used."""
    assert Python(version, Path("/site"), markers).is_supported is supported


@pytest.mark.parametrize(
    ("content", "version"),
    [
        ("home = /usr/bin\nversion_info = 3.12.4\n", "3.12"),
        ("version = 3.11.7\n", "3.11"),
        ("version_info = 3.9.6\n", None),
        ("version_info = 3.14.0\n", "3.14"),
        ("version_info = 3.15.0\n", None),
        ("home = /usr/bin\n", None),
        ("version_info = strange\n", None),
        (None, None),
    ],
)
def test_the_former_python_is_asked_for_again(tmp_path, content, version):
    """An environment whose Python is gone gets one of the version that its packages are for."""
    if content is not None:
        (tmp_path / "pyvenv.cfg").write_text(content)
    assert former_python(tmp_path) == version


def test_an_environment_of_an_unsupported_python_is_left_alone(fake_uv, managed, monkeypatch):
    """Where CAR's environment has a Python that is too old, the error says what to do."""
    ensure_runtime()
    (managed / ".langchain-car-vllm.json").unlink()
    (managed / "bin" / "vllm-mlx").unlink()
    newer = (sys.version_info[0], sys.version_info[1] + 1)
    monkeypatch.setattr("langchain_car_vllm.runtime.virtual_environment.OLDEST_PYTHON", newer)
    calls = len(fake_uv.calls)
    with pytest.raises(ProvisionError, match="vllm-mlx needs") as caught:
        ensure_runtime()
    assert caught.value.step == "venv"
    assert f"move `{managed}` away" in caught.value.hint
    assert len(fake_uv.calls) == calls


@pytest.mark.parametrize("machine", [MAC, LINUX, ARM_LINUX])
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_names_the_same_server_for_all(machine, python):
    """On every machine and Python the locked set holds the server and a back end for it."""
    markers = machine | {
        "python_full_version": f"{python}.0",
        "python_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    versions = locked_versions(markers)
    assert versions["vllm-mlx"].startswith("0.6.")
    assert versions["mlx-vlm"] == "0.6.12"
    assert ("mlx-cpu" in versions) is (machine["sys_platform"] == "linux")
    assert ("torch" in versions) is (machine is MAC)
    assert "gradio" not in versions


def test_every_pin_of_the_lock_has_hashes():
    """No distribution is installed whose bytes are not known beforehand."""
    lines = LOCK.read_text().splitlines()
    pins = [number for number, line in enumerate(lines) if "==" in line and line[0] != " "]
    assert len(pins) > 70
    assert all(lines[number + 1].startswith("    --hash=sha256:") for number in pins)


def test_metadata_that_no_installer_can_read_is_forgotten(tmp_path):
    """A killed uv leaves folders without METADATA, and half a RECORD, over which the next trips."""
    whole = "a/__init__.py,sha256=x,1\na-1.dist-info/METADATA,,\n"
    records = {"whole": whole, "none": None, "empty": "", "half": whole + "a/b.py,sha2"}
    for name, record in records.items():
        metadata = tmp_path / f"{name}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Name: a\n")
        if record is not None:
            (metadata / "RECORD").write_text(record)
    (tmp_path / "begun-1.dist-info").mkdir()
    (tmp_path / "begun-1.dist-info" / "RECORD").write_text(whole)
    forget_unreadable(Python((3, 11), tmp_path, LINUX))
    assert [path.name for path in tmp_path.glob("*-1.dist-info")] == ["whole-1.dist-info"]
