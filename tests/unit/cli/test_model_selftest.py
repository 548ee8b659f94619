"""The page that `doctor --selftest --model` ends with."""

import getpass
import os
import socket
import sys
from pathlib import Path

import pytest
from faults.support import Fake
from unit.cli.conftest import Cli

from langchain_car_vllm.cli.model_selftest import masked, model_selftests, report_lines
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


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("prefill 900 tokens/s", "prefill 900 tokens/s"),
        ("`~/.car/run/x` cannot be read, see {home}/log", "`<path>` cannot be read, see <path>"),
        ("`{home}/Application Support/x` ran on `{host}`", "`<path>` ran on `<name>`"),
        ("`chmod go-w '{home}/My Models'`", "`chmod go-w '<path>'`"),
        ("`{home}/Ann's Mac/x` belongs to {user}", "`<path>` belongs to <name>"),
        ("denied: '{home}/My Models'", "denied: '<path>'"),
        ("downloads go through `http://proxy.lan:80`", "downloads go through `http:<path>`"),
    ],
)
def test_paths_and_names_are_masked(home, said, shown):
    """Those of the machine and of its user, in quotes with spaces in them too."""
    names = {"home": home, "host": socket.gethostname(), "user": getpass.getuser()}
    assert masked(said.format_map(names)) == shown


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_nothing_that_is_printed_for_an_issue_tells_a_path_or_name(
    cli: Cli, fake: Fake, home: Path, more: tuple[str, ...]
):
    """A user pastes all of it: not the page alone, hints too."""
    (home / "link").symlink_to(home / "gone")
    variables = {"UV_OFFLINE": "1", "HF_HOME": str(home / "link"), "SSL_CERT_FILE": f"{home}/none"}
    done = cli("doctor", "--selftest", "--model", *more, **variables)
    assert done.returncode == 1
    assert "<path>" in done.stdout
    for secret in (str(home), str(fake.binary), socket.gethostname()):
        assert secret not in done.stdout


def test_the_page_tells_versions_the_machine_and_the_rows():
    """A step that had nothing to say has no colon."""
    rows = [("simple rates", "ok", "decode 13.0 tokens/s"), ("disk", "ok", "")]
    page = "\n".join(report_lines(rows))
    assert "langchain-car-vllm" in page
    assert "memory" in page
    assert "ok       simple rates: decode 13.0 tokens/s\n" in page
    assert "ok       disk\n" in page


def test_the_page_names_what_is_installed(home, write_install):
    """The server and the three packages whose versions decide."""
    write_install({"vllm_mlx": "0.6.0", "mlx": "0.32.4", "mlx_lm": "0.31.3", "mlx_vlm": "0.6.12"})
    page = "\n".join(report_lines([]))
    assert "vllm-mlx 0.6.0, mlx 0.32.4, mlx-lm 0.31.3, mlx-vlm 0.6.12\n" in page


def test_the_model_belongs_to_the_selftest(cli: Cli):
    """`--model` alone is wrong usage."""
    done = cli("doctor", "--model")
    assert done.returncode == 2
    assert "it only works with --selftest" in done.stderr
