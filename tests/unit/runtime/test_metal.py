"""Metal's figure for the memory of a Mac: asked once, kept, and asked again when it may differ."""

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import psutil
import pytest

from langchain_car_vllm.runtime import metal
from langchain_car_vllm.runtime.metal import known_working_set, working_set_limit
from langchain_car_vllm.runtime.metal_question import learn_working_set

GIB = 2**30


class Mac:
    """A machine that looks like a Mac: an install whose MLX answers, a kernel with a limit."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._log = root / "asked"
        environment = root / "env"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self._mlx = environment / "lib" / version / "site-packages" / "mlx"
        self._mlx.mkdir(parents=True)
        self.binary = environment / "bin" / "vllm-mlx"
        self.binary.parent.mkdir()
        real, python = Path(sys.executable).resolve(), self.binary.with_name("python")
        python.symlink_to(real)
        (environment / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
        self.binary.write_text(f"#!{python}\n")
        # A supervisor is given where its own packages lie, which may hold an MLX as well.
        (root / "others" / "mlx").mkdir(parents=True)
        (root / "others" / "mlx" / "__init__.py").write_text("raise ImportError('another Python')")
        monkeypatch.setenv("PYTHONPATH", str(root / "others"))
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        self.limit(0)
        self.answers(11 * GIB)

    def answers(self, figure: int) -> None:
        # An answer that is rewritten within a second would be read from stale bytecode.
        shutil.rmtree(self._mlx / "__pycache__", ignore_errors=True)
        (self._mlx / "__init__.py").touch()
        (self._mlx / "core.py").write_text(
            f"open({str(self._log)!r}, 'a').write('x')\n"
            f"def device_info(): return {{'max_recommended_working_set_size': {figure}}}\n"
        )

    def breaks(self) -> None:
        shutil.rmtree(self._mlx / "__pycache__", ignore_errors=True)
        (self._mlx / "__init__.py").touch()
        (self._mlx / "core.py").write_text(
            f"open({str(self._log)!r}, 'a').write('x')\nraise ImportError('no Metal device')"
        )

    def limit(self, megabytes: int) -> None:
        self._monkeypatch.setattr(metal, "_wired_limit_mb", lambda: megabytes)

    def updated(self) -> None:
        real = os.uname()
        newer = os.uname_result((*real[:2], "99.0", *real[3:]))
        self._monkeypatch.setattr(os, "uname", lambda: newer)

    def moved(self, memory: int) -> None:
        whole = psutil.virtual_memory()
        self._monkeypatch.setattr(psutil, "virtual_memory", lambda: whole._replace(total=memory))

    @property
    def asked(self) -> int:
        return len(self._log.read_text()) if self._log.exists() else 0


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    return Mac(tmp_path, monkeypatch)


def test_it_is_asked_once(mac: Mac):
    """Every later start and every reader has what was kept."""
    assert known_working_set() is None
    for _ in range(3):
        learn_working_set(mac.binary)
    assert mac.asked == 1
    assert known_working_set() == 11 * GIB


def test_the_smaller_of_share_and_figure_counts(mac: Mac):
    """Metal may give less than the share, or more."""
    learn_working_set(mac.binary)
    assert working_set_limit(16 * GIB, 12 * GIB) == 11 * GIB
    assert working_set_limit(16 * GIB, 10 * GIB) == 10 * GIB


@pytest.mark.parametrize(
    ("memory", "share"), [(8, 2 / 3), (24, 2 / 3), (32, 2 / 3), (36, 3 / 4), (128, 3 / 4)]
)
def test_before_it_is_asked_a_rule_holds(mac: Mac, memory: int, share: float):
    """Two thirds up to 32 GB, three quarters above."""
    total = memory * GIB
    assert working_set_limit(total, total * 3 // 4) == pytest.approx(total * share)


def test_a_limit_that_the_user_raised_counts(mac: Mac):
    """`iogpu.wired_limit_mb` moves Metal's own figure, which then counts alone."""
    learn_working_set(mac.binary)
    mac.limit(14_000)
    assert known_working_set() is None
    mac.answers(14_000 * 2**20)
    learn_working_set(mac.binary)
    assert working_set_limit(16 * GIB, 12 * GIB) == 14_000 * 2**20
    assert mac.asked == 2


def test_a_limit_counts_before_metal_is_asked(mac: Mac):
    """No rule takes the place of what the user set, up or down."""
    for megabytes in (14_000, 6_000):
        mac.limit(megabytes)
        assert working_set_limit(16 * GIB, 12 * GIB) == megabytes * 2**20
    mac.limit(10**9)
    assert working_set_limit(16 * GIB, 12 * GIB) == 16 * GIB


def test_another_macos_is_asked_anew(mac: Mac):
    """An update may move the figure, so what was kept no longer counts."""
    learn_working_set(mac.binary)
    mac.updated()
    assert known_working_set() is None
    learn_working_set(mac.binary)
    assert mac.asked == 2


def test_another_mac_is_asked_anew(mac: Mac):
    """What came with a home to a new Mac speaks of the old one's memory."""
    learn_working_set(mac.binary)
    mac.moved(64 * GIB)
    assert known_working_set() is None
    assert working_set_limit(64 * GIB, 48 * GIB) == 48 * GIB
    mac.answers(50 * GIB)
    learn_working_set(mac.binary)
    assert known_working_set() == 50 * GIB
    assert mac.asked == 2


def test_no_answer_changes_nothing(mac: Mac):
    """Without a Metal device, or with a broken install, the rule goes on to hold."""
    mac.breaks()
    learn_working_set(mac.binary)
    learn_working_set(mac.binary.with_name("missing"))
    assert known_working_set() is None
    assert working_set_limit(64 * GIB, 48 * GIB) == 48 * GIB


def test_a_metal_that_does_not_answer_is_left_alone_for_a_while(mac: Mac, home: Path):
    """Each plan would wait for it; what another install told meanwhile is kept."""
    learn_working_set(mac.binary)
    other = mac.binary.with_name("vllm-mlx-of-another-name")
    shutil.copy(mac.binary, other)
    mac.breaks()
    for _ in range(3):
        learn_working_set(other)
    assert mac.asked == 2
    assert known_working_set() == 11 * GIB
    mac.updated()
    learn_working_set(other)
    assert mac.asked == 3
    for days in (1, -1):
        file = home / ".car" / "run" / "metal.json"
        kept = json.loads(file.read_text())
        kept["unanswered"]["at"] -= days * 86_400
        file.write_text(json.dumps(kept))
        learn_working_set(other)
    assert mac.asked == 5


@pytest.mark.parametrize(
    "kept",
    [
        *("", "[]", "{}", json.dumps({"bytes": "many"})),
        *(json.dumps({"unanswered": found}) for found in (None, [], {}, {"at": "x"}, "x")),
    ],
)
def test_a_damaged_note_is_none(mac: Mac, home: Path, kept: str):
    """What cannot be read is asked again."""
    file = home / ".car" / "run" / "metal.json"
    file.parent.mkdir(parents=True)
    file.write_text(kept)
    assert known_working_set() is None
    learn_working_set(mac.binary)
    assert known_working_set() == 11 * GIB


def test_elsewhere_nobody_is_asked(tmp_path: Path):
    """Linux has no Metal: the share counts."""
    learn_working_set(tmp_path / "vllm-mlx")
    assert known_working_set() is None
    assert working_set_limit(16 * GIB, 12 * GIB) == 12 * GIB


def test_what_lies_in_the_current_folder_is_not_asked(
    mac: Mac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A clone that holds a folder called `mlx` runs nothing of it in the user's name."""
    clone = tmp_path / "clone"
    (clone / "mlx").mkdir(parents=True)
    (clone / "mlx" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(clone)
    learn_working_set(mac.binary)
    assert not (tmp_path / "ran").exists()
    assert known_working_set() == 11 * GIB
