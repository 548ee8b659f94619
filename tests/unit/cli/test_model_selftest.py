"""The page that `doctor --selftest --model` ends with."""

import getpass
import os
import socket
import sys

import pytest
from unit.cli.conftest import Cli

from langchain_car_vllm.cli.model_selftest import model_selftests, report_lines
from langchain_car_vllm.paths import car_home, managed_root


@pytest.fixture
def write_install(tmp_path, monkeypatch):
    """Return a function that makes an install with packages of given versions."""

    def write(versions):
        root = tmp_path / "install"
        site = root / "lib" / "python3.12" / "site-packages"
        site.mkdir(parents=True)
        (root / "bin").mkdir()
        (root / "bin" / "python").symlink_to(sys.executable)
        binary = root / "bin" / "vllm-mlx"
        binary.write_text(f"#!{root}/bin/python\n")
        for name, version in versions.items():
            metadata = site / f"{name}-{version}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(binary))

    return write


def test_the_runtime_is_the_one_that_is_there(tmp_path, monkeypatch):
    """It is not installed once more where CAR_HOME holds it, since there is no home."""
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("CAR_HOME", str(tmp_path / "car"))
    before = managed_root()
    with model_selftests() as steps:
        assert steps
        assert car_home() != tmp_path / "car"
        assert managed_root() == before
    assert "CAR_VLLM_MLX_RUNTIME" not in os.environ


def test_the_page_tells_no_path(home):
    """Versions, machine and rows are on it; a path in an error is not."""
    rows = [
        ("simple rates", "ok", "prefill 900 tokens/s, decode 13.0 tokens/s"),
        ("simple stop", "failed", f"`{home}/.car/run/x` cannot be read, see {home}/log"),
        ("servers", "warning", f"`{home}/Application Support/x` ran on `{socket.gethostname()}`"),
        ("home", "failed", f"`~/.car` belongs to {getpass.getuser()}"),
        ("disk", "ok", ""),
    ]
    page = "\n".join(report_lines(rows))
    assert "langchain-car-vllm" in page
    assert "memory" in page
    assert "ok       simple rates: prefill 900 tokens/s, decode 13.0 tokens/s\n" in page
    assert "failed   simple stop: `<path>` cannot be read, see <path>\n" in page
    assert "ok       disk\n" in page
    assert "warning  servers: `<path>` ran on `<name>`\n" in page
    assert "failed   home: `<path>` belongs to <name>\n" in page
    assert str(home) not in page


def test_the_page_names_what_is_installed(home, write_install):
    """The server and the three packages whose versions decide."""
    write_install({"vllm_mlx": "0.6.0", "mlx": "0.32.4", "mlx_lm": "0.31.3", "mlx_vlm": "0.6.12"})
    page = "\n".join(report_lines([]))
    assert "vllm-mlx 0.6.0, mlx 0.32.4, mlx-lm 0.31.3, mlx-vlm 0.6.12\n" in page


def test_the_model_belongs_to_the_selftest(cli: Cli):
    """`--model` alone is wrong usage."""
    done = cli("doctor", "--model")
    assert done.returncode == 2
    assert "it belongs to --selftest" in done.stderr
