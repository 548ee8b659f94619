"""Panics of macOS and the mends of the launcher, as `doctor` sees them."""

import os
import platform
import sys
import time
from pathlib import Path

import pytest
from unit.cli.conftest import runtime_that_says

from langchain_car_vllm.cli import runtime_checks
from langchain_car_vllm.cli.findings import Finding, Warned

PANIC = (
    '{{"bug_type":"210"}}\n{{"panicString":"panic(cpu 3 caller 0xfffffe): \\"completeMemory() '
    'prepare count underflow\\" @{place}.cpp:550\\nPanicked task 0xfffffe: pid 812: {task}"}}'
)


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of reports of a machine that looks like a Mac."""
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(runtime_checks, "_REPORTS", tmp_path / "reports")
    return tmp_path / "reports"


def write(folder: Path, name: str, place: str, task: str, days: float = 1) -> None:
    folder.mkdir(exist_ok=True)
    report = folder / name
    report.write_text(PANIC.format(place=place, task=task))
    then = time.time() - days * 86_400
    os.utime(report, (then, then))


def test_panics_of_the_gpu_under_python_are_told(reports: Path):
    """Recent ones that name both, with what to do."""
    write(reports, "panic-full-1.panic", "IOGPUMemory", "Python", days=2)
    write(reports, "panic-full-2.panic", "IOGPUMemory", "python3.12")
    write(reports / "Retired", "panic-full-0.panic", "IOGPUMemory", "Python", days=3)
    with pytest.raises(Warned, match=r"panicked 3 times.*panic-full-2\.panic") as caught:
        runtime_checks.check_panics()
    assert "CAR_VLLM_MLX_WIRED=0" in (caught.value.hint or "")


def test_other_panics_are_not_ours(reports: Path):
    """Old ones, other drivers, other programs, other files, and no folder at all."""
    assert "none in the last 30 days" in runtime_checks.check_panics()
    write(reports, "old.panic", "IOGPUMemory", "Python", days=40)
    write(reports, "driver.panic", "AppleANE", "Python")
    write(reports, "program.panic", "IOGPUMemory", "WindowServer")
    write(reports, "report.ips", "IOGPUMemory", "Python")
    (reports / "folder.panic").mkdir()
    assert "1 reports cannot be read" in runtime_checks.check_panics()


def test_elsewhere_there_are_none():
    """On Linux nothing is looked for."""
    assert "macOS" in runtime_checks.check_panics()


def test_mends_are_listed_with_what_becomes_of_them(tmp_path, monkeypatch):
    """By the launcher itself, here under a Python that has none of the modules."""
    runtime_that_says(tmp_path, monkeypatch, f'exec {sys.executable} "$@"')
    told = runtime_checks.check_mends()
    assert "`batch-processors` not imported" in told
    assert "`memory-limits` not imported" in told


def test_a_mend_that_steps_aside_is_a_warning(tmp_path, monkeypatch):
    """With the reason; the others are listed all the same."""
    said = (
        '{"a": {"state": "applied", "detail": ""}, '
        '"b": {"state": "stepped aside", "detail": "there is no x"}}'
    )
    runtime_that_says(tmp_path, monkeypatch, f"echo '{said}'; echo noise >&2")
    with pytest.raises(Warned, match=r"`a` applies, `b` stepped aside \(there is no x\)"):
        runtime_checks.check_mends()


def test_a_runtime_that_cannot_be_looked_at(tmp_path, monkeypatch):
    """Its Python fails: that is a failure with a cure; without a runtime it is a warning."""
    runtime_that_says(tmp_path, monkeypatch, "echo broken >&2; exit 3")
    with pytest.raises(Finding, match="broken"):
        runtime_checks.check_mends()
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Warned, match="no runtime"):
        runtime_checks.check_mends()
