"""Which installation is used: one that exists, the managed one, or one that CAR made."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from unit.runtime.provisioning import make_foreign, missing_uv

from langchain_car_vllm.cli import install_checks
from langchain_car_vllm.cli.findings import Finding
from langchain_car_vllm.errors import RuntimeMissingError
from langchain_car_vllm.runtime import (
    VllmRuntime,
    ensure_runtime,
    import_verdicts,
    install_runtime,
    resolve_existing,
)
from langchain_car_vllm.runtime.locate import binary_passed_over, binary_to_launch
from langchain_car_vllm.runtime.marker import read_marker, write_marker
from langchain_car_vllm.runtime.runtime import warn_about_what_is_passed_over
from langchain_car_vllm.runtime.versions import version_warning, warn_about


def test_an_existing_install_wins(fake_uv, home, write_binary):
    """Nothing is installed where a usable `vllm-mlx` is."""
    binary = write_binary(home / ".local", "0.4.1")
    assert ensure_runtime() == VllmRuntime(binary, "0.4.1")
    assert fake_uv.calls == []
    assert not (home / ".car" / "visual-runtime").exists()


def test_an_older_install_is_warned_about_once(fake_uv, home, write_binary, caplog):
    """A version that works but lacks something is used, and said so once per process."""
    write_binary(home / ".local", "0.4.0")
    warn_about.cache_clear()
    used = ensure_runtime().server
    ensure_runtime()
    assert [record.message for record in caplog.records] == [version_warning("0.4.0", used)]
    assert str(used) in caplog.text


@pytest.fixture
def tested(fake_uv):
    """A complete managed install of the tested set."""
    server = ensure_runtime().server
    warn_about_what_is_passed_over.cache_clear()
    return server


@pytest.mark.parametrize("older", ["0.3.0", "0.4.1", "0.5.9"])
def test_the_tested_set_wins_over_an_older_minor(tested, home, write_binary, caplog, older):
    """An old install that is found first is passed over, which is said once with its name."""
    binary = write_binary(home / ".local", older)
    assert resolve_existing() == binary
    assert ensure_runtime() == ensure_runtime() == VllmRuntime(tested, "0.6.0")
    assert [str(binary) in record.message for record in caplog.records] == [True]


BREAKS = """#!/bin/sh
echo "$@" >> "$0.log"
echo "ModuleNotFoundError: No module named 'mlx_lm'"
exit 1
"""


def break_python(binary):
    """Have an install's Python fail to import, and return what it notes its runs in."""
    python = binary.parent / "python"
    python.unlink()
    python.write_text(BREAKS)
    python.chmod(0o755)
    return python.with_name("python.log")


def test_a_broken_install_of_somebody_elses_is_passed_over(
    fake_uv, home, managed, write_binary, caplog
):
    """First on PATH, of the tested version, and without a package that it needs."""
    broken = write_binary(home / ".local", "0.6.0")
    log = break_python(broken)
    warn_about_what_is_passed_over.cache_clear()
    assert (
        ensure_runtime() == ensure_runtime() == VllmRuntime(managed / "bin" / "vllm-mlx", "0.6.0")
    )
    assert resolve_existing() == broken
    [record] = caplog.records
    assert str(broken) in record.message
    assert "No module named 'mlx_lm'" in record.message
    assert len(log.read_text().splitlines()) == 1


def test_another_install_on_path_wins_over_a_broken_one(
    fake_uv, home, tmp_path, write_binary, monkeypatch
):
    """The next that works is used, and nothing is installed."""
    break_python(write_binary(home / ".local", "0.6.0"))
    other = write_binary(tmp_path / "other", "0.6.1")
    monkeypatch.setenv("UV_TOOL_BIN_DIR", str(other.parent))
    assert ensure_runtime() == VllmRuntime(other, "0.6.1")
    assert fake_uv.calls == []


def test_a_broken_install_is_tried_again_once_it_changed(fake_uv, home, managed, write_binary):
    """A package that was added, by whatever tool, may have mended it."""
    binary = write_binary(home / ".local", "0.6.0")
    log = break_python(binary)
    assert ensure_runtime().server != binary
    (binary.parent / "python").write_text("#!/bin/sh\n")
    next(binary.parents[1].glob("lib/python*/site-packages")).joinpath("mlx_lm").mkdir()
    assert ensure_runtime().server == binary
    assert len(log.read_text().splitlines()) == 1


def mend_elsewhere(home: Path, binary: Path) -> Callable[[], None]:
    """Have an install fail until something is mended that nothing of its own folder tells of."""
    python = binary.parent / "python"
    python.unlink()
    said = "ImportError: libopenblas.so.0: cannot open shared object file"
    told = f"echo 'Traceback:'; echo '{said}'"
    python.write_text(f"#!/bin/sh\ntest -e {home}/mended && exit 0\n{told}\nexit 1\n")
    python.chmod(0o755)
    return (home / "mended").touch


def test_a_failure_runs_out(fake_uv, home, managed, write_binary, monkeypatch):
    """A library of the system was installed since; a success lasts."""
    binary = write_binary(home / ".local", "0.6.0")
    mend = mend_elsewhere(home, binary)
    assert ensure_runtime().server != binary
    mend()
    verdicts = home / ".car" / "run" / "tested-installs.json"
    for minutes, server in ((0, managed / "bin" / "vllm-mlx"), (10, binary), (10, binary)):
        monkeypatch.setattr(import_verdicts, "_known", {})  # as in another program
        kept = json.loads(verdicts.read_text())
        kept[str(binary)]["at"] -= 60 * minutes
        verdicts.write_text(json.dumps(kept))
        assert ensure_runtime().server == server
    assert kept[str(binary)]["failure"] == ""


@pytest.mark.parametrize("ask", [install_runtime, install_checks._runtime])
def test_who_asks_has_a_failed_install_tried_at_once(fake_uv, home, write_binary, ask):
    """`car-vllm install` and `doctor` believe no failure of before."""
    binary = write_binary(home / ".local", "0.6.0")
    mend = mend_elsewhere(home, binary)
    assert ensure_runtime().server != binary
    mend()
    assert ensure_runtime().server != binary
    with suppress(Finding):
        ask()
    assert ensure_runtime().server == binary_to_launch() == binary
    assert binary_passed_over() is None


@pytest.mark.parametrize(
    "ending",
    [
        "kill -9 $$",
        "echo MemoryError >&2; exit 1",
        "echo 'ImportError: dlopen(core.so): Too many open files' >&2; exit 1",
        "echo 'RuntimeError: No Metal device available' >&2; exit 1",
    ],
)
def test_a_failure_of_the_moment_is_not_remembered(
    fake_uv, home, write_binary, monkeypatch, ending
):
    """Another program, with memory or outside a sandbox, tries the install itself."""
    binary = write_binary(home / ".local", "0.6.0")
    python = binary.parent / "python"
    python.unlink()
    python.write_text(f"#!/bin/sh\ntest -e {home}/mended && exit 0\n{ending}\n")
    python.chmod(0o755)
    assert ensure_runtime().server == ensure_runtime().server != binary
    (home / "mended").touch()
    monkeypatch.setattr(import_verdicts, "_known", {})  # as in another program
    assert ensure_runtime().server == binary


def test_a_broken_install_is_tried_again_by_another_system(
    fake_uv, home, managed, write_binary, monkeypatch
):
    """An update of macOS, or a new Mac, may run what the former could not."""
    binary = write_binary(home / ".local", "0.6.0")
    log = break_python(binary)
    newer = os.uname_result((*os.uname()[:2], "99.0", *os.uname()[3:]))
    for _ in range(2):
        assert ensure_runtime().server == managed / "bin" / "vllm-mlx"
    monkeypatch.setattr(os, "uname", lambda: newer)
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"
    assert len(log.read_text().splitlines()) == 2


def test_a_broken_install_is_named_where_installing_is_off(fake_uv, home, write_binary):
    """There is one, and it does not work."""
    broken = write_binary(home / ".local", "0.6.0")
    break_python(broken)
    with pytest.raises(RuntimeMissingError, match=f"`{broken}` does not work"):
        ensure_runtime(auto_install=False)
    assert fake_uv.calls == []


def test_verdicts_hold_where_they_cannot_be_kept(fake_uv, home, managed, write_binary, tmp_path):
    """A file that holds nonsense, or a folder in its place, costs a test and nothing more."""
    break_python(write_binary(home / ".local", "0.6.0"))
    verdicts = home / ".car" / "run" / "tested-installs.json"
    verdicts.parent.mkdir(parents=True)
    verdicts.write_text('{"x": [1], "y": {"stamp": 3}}')
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"
    verdicts.unlink()
    verdicts.mkdir()
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"


@pytest.mark.parametrize("version", ["0.6.0", "0.6.3", "0.7.0", "1.0"])
def test_an_install_of_the_tested_minor_or_newer_wins(tested, home, write_binary, version):
    """What is not older is used where it is found."""
    binary = write_binary(home / ".local", version)
    assert ensure_runtime() == VllmRuntime(binary, version)


def test_the_override_wins_over_the_tested_set(tested, home, write_binary, monkeypatch):
    """`CAR_VLLM_MLX_BIN` is used, whatever its version."""
    binary = write_binary(home / ".local", "0.4.1")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(binary))
    assert ensure_runtime() == VllmRuntime(binary, "0.4.1")


def test_an_unfinished_managed_install_wins_over_nobody(tested, home, managed, write_binary):
    """While the managed install is not complete, the older one is used."""
    binary = write_binary(home / ".local", "0.4.1")
    write_marker(managed, read_marker(managed)._replace(state="installing"))
    assert ensure_runtime() == VllmRuntime(binary, "0.4.1")


def test_a_too_old_install_is_passed_over(fake_uv, home, write_binary, managed):
    """A `vllm-mlx` below 0.3.0 leads to an installation of our own, and is left alone."""
    old = write_binary(home / ".local", "0.2.9")
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"
    assert old.exists()


def test_an_override_is_never_tested(fake_uv, tmp_path, monkeypatch):
    """`CAR_VLLM_MLX_BIN` is taken as it is, with no version where it has none."""
    (tmp_path / "mine").touch()
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(tmp_path / "mine"))
    assert ensure_runtime() == VllmRuntime(tmp_path / "mine", None)
    assert fake_uv.calls == []


def test_auto_install_false_uses_what_is_there(fake_uv):
    """With a runtime there, `auto_install=False` changes nothing."""
    runtime = ensure_runtime()
    assert ensure_runtime(auto_install=False) == runtime


def test_an_install_of_cars_is_tested_once(fake_uv, managed):
    """A `vllm-mlx` that CAR installed is tested, marked, and from then on used at once."""
    make_foreign(managed, fake_uv, version="0.5.0")
    assert read_marker(managed) is None
    assert ensure_runtime() == VllmRuntime(managed / "bin" / "vllm-mlx", "0.5.0")
    assert fake_uv.calls == []
    marker = read_marker(managed)
    assert (marker.state, marker.ours, marker.version) == ("complete", False, "0.5.0")


@pytest.mark.parametrize("obstacle", ["disk", "uv"])
def test_a_test_of_what_is_there_needs_nothing(fake_uv, managed, monkeypatch, obstacle):
    """What CAR installed is used on a full disk and without uv: nothing is to be installed."""
    make_foreign(managed, fake_uv, version="0.5.0")
    if obstacle == "disk":
        monkeypatch.setattr("langchain_car_vllm.runtime.provision.needed_mb", lambda **_: 10**12)
    else:
        monkeypatch.delenv("CAR_UV")
        monkeypatch.setattr("uv.find_uv_bin", missing_uv)
    assert ensure_runtime().version == "0.5.0"


def test_a_folder_that_takes_no_mark_is_tested_each_time(fake_uv, managed):
    """Somebody else's install works although nothing can be written down beside it."""
    make_foreign(managed, fake_uv, version="0.6.0")
    obstacle = managed / ".langchain-car-vllm.json"
    obstacle.mkdir()
    (obstacle / "file").touch()
    assert ensure_runtime().server == (managed / "bin" / "vllm-mlx").resolve()


def test_cars_packages_survive(fake_uv, managed):
    """Into an environment that CAR made only `vllm-mlx` goes, and the rest stays."""
    site = make_foreign(managed, fake_uv, version=None)
    ensure_runtime()
    assert (site / "car_speech" / "__init__.py").exists()
    assert fake_uv.commands == ["pip"]
    assert "vllm-mlx>=0.6,<0.7" in fake_uv.calls[0]
    assert "--require-hashes" not in fake_uv.calls[0]
    assert not read_marker(managed).ours


def test_a_broken_install_of_cars_is_mended(fake_uv, managed):
    """A `vllm-mlx` that cannot be imported is installed anew."""
    site = make_foreign(managed, fake_uv, version="0.5.0")
    (site / "vllm_mlx" / "server.py").unlink()
    assert ensure_runtime().server == managed / "bin" / "vllm-mlx"
    assert fake_uv.commands == ["pip"]


def test_a_broken_install_is_refused_where_installing_is_off(fake_uv, managed):
    """Where nothing may be installed, a `vllm-mlx` that does not work is an error."""
    site = make_foreign(managed, fake_uv, version="0.5.0")
    (site / "vllm_mlx" / "server.py").unlink()
    with pytest.raises(RuntimeMissingError, match="does not work"):
        ensure_runtime(auto_install=False)
    assert fake_uv.calls == []
