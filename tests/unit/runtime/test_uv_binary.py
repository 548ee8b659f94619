from pathlib import Path

import pytest
import uv

from langchain_car_vllm.errors import UvMissingError
from langchain_car_vllm.runtime.uv_binary import find_uv


def write_uv(path, says="uv 0.9.0", code=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_package(monkeypatch):
    def missing():
        raise FileNotFoundError

    monkeypatch.setattr("uv.find_uv_bin", missing)


def test_the_package_brings_uv_along():
    """uv is a dependency, so that it is never missing by default."""
    assert find_uv() == Path(uv.find_uv_bin())


def test_the_order_of_places(home, tmp_path, monkeypatch):
    """`CAR_UV` leads, then PATH, then the package."""
    on_path = write_uv(tmp_path / "bin" / "uv")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/usr/bin:/bin")
    assert find_uv() == on_path
    own = write_uv(tmp_path / "own" / "my-uv")
    monkeypatch.setenv("CAR_UV", str(own))
    assert find_uv() == own


@pytest.mark.usefixtures("no_package")
@pytest.mark.parametrize("place", [".local/bin", ".cargo/bin"])
def test_the_usual_folders_are_looked_at(home, place):
    """Where uv's own installers put it is found without PATH."""
    found = write_uv(home / place / "uv")
    assert find_uv() == found


@pytest.mark.parametrize(
    ("says", "code"),
    [("uv 0.4.30", 0), ("uv 0.13.9", 127), ("pyenv: uv: command not found", 0), ("", 0)],
)
def test_what_does_not_answer_is_passed_over(home, tmp_path, monkeypatch, says, code):
    """A shim that fails, or a uv that is too old, gives way to the next one."""
    broken = write_uv(tmp_path / "bin" / "uv", says, code)
    monkeypatch.setenv("PATH", f"{broken.parent}:/usr/bin:/bin")
    assert find_uv() == Path(uv.find_uv_bin())


def test_a_binary_for_another_machine_is_passed_over(tmp_path, monkeypatch):
    """A file that the system cannot run is no uv."""
    wrong = tmp_path / "uv"
    wrong.write_bytes(b"\x00\x01")
    wrong.chmod(0o755)
    monkeypatch.setenv("CAR_UV", str(wrong))
    assert find_uv() == Path(uv.find_uv_bin())


@pytest.mark.usefixtures("no_package")
def test_all_places_are_named(monkeypatch):
    """Without any uv the error lists where it was looked for."""
    monkeypatch.setenv("CAR_UV", "/no/such/uv")
    with pytest.raises(UvMissingError) as caught:
        find_uv()
    for place in ("CAR_UV=/no/such/uv", "PATH", "the `uv` package", "~/.local/bin", "~/.cargo/bin"):
        assert place in str(caught.value)


def test_a_uv_path_is_absolute(tmp_path, monkeypatch):
    """A relative `CAR_UV` counts from the current directory."""
    write_uv(tmp_path / "uv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAR_UV", "uv")
    assert find_uv() == tmp_path / "uv"
