"""Limits, certificates and MLX, as `doctor` sees them."""

import resource
import sys

import pytest
from unit.cli.conftest import runtime_that_says

from langchain_car_vllm.cli import install_checks, runtime_checks
from langchain_car_vllm.cli.findings import Finding, Warned
from langchain_car_vllm.runtime.host import Host
from langchain_car_vllm.server import wakefulness


@pytest.mark.parametrize("release", [(26, 0, 1), (26, 1), (26, 0)])
def test_a_macos_that_mlx_does_not_fit(release):
    """The newest wheel is for 26.2; older ones of that line are warned about."""
    with pytest.raises(Warned, match=r"26\.2"):
        install_checks.check_release(Host("darwin", "arm64", release))


@pytest.mark.parametrize("release", [(14, 0), (15, 7), (26, 2), (27, 0), ()])
def test_a_macos_that_mlx_fits(release):
    """Every other version passes, and one that is unknown."""
    install_checks.check_release(Host("darwin", "arm64", release))


def test_a_low_hard_limit_is_warned_about(monkeypatch):
    """A soft limit of 256, as macOS has it, is well; a hard one is told with its cure."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert "256" in runtime_checks.check_files()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    with pytest.raises(Warned, match="512"):
        runtime_checks.check_files()


def test_certificates_that_are_not_there(monkeypatch, tmp_path):
    """A file that SSL_CERT_FILE names in vain is a failure."""
    assert runtime_checks.check_certificates()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(Finding, match=r"none\.pem"):
        runtime_checks.check_certificates()


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_mac_that_is_kept_awake(tmp_path, monkeypatch, is_kept):
    """macOS itself is asked who keeps it awake, during and after."""
    awake = tmp_path / "awake"
    kind = "PreventUserIdleSystemSleep" if is_kept else "PreventUserIdleDisplaySleep"
    programs = {
        "caffeinate": f"echo $$ > {awake}; exec sleep 60",
        # It hears of the end of a program a moment later.
        "pmset": f"kill -0 $(cat {awake}) || {{ [ -e {awake}-no-more ] && exit; }}\n"
        f"kill -0 $(cat {awake}) || touch {awake}-no-more\n"
        f'echo "   pid $(cat {awake})(caffeinate): [0x1] 00:00:01 {kind} named: x"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(wakefulness, "PLATFORM", "darwin")
    monkeypatch.setattr(wakefulness, "PROGRAM", str(tmp_path / "caffeinate"))
    monkeypatch.setattr(runtime_checks, "_PMSET", str(tmp_path / "pmset"))
    monkeypatch.setattr(runtime_checks, "_PATIENCE", 5.0 if is_kept else 0.3)
    if is_kept:
        assert "no longer" in runtime_checks.check_sleep()
    else:
        with pytest.raises(Warned, match="fall asleep"):
            runtime_checks.check_sleep()
    monkeypatch.setattr(wakefulness, "PLATFORM", "linux")
    assert "not kept awake" in runtime_checks.check_sleep()


def test_mlx_on_a_gpu(tmp_path, monkeypatch):
    """The figure of Metal is told where the operation is right; a budget above it is a warning."""
    said = '{"total": 262144.0, "metal": true, "working_set": 11453251584}'
    runtime_that_says(tmp_path, monkeypatch, f"echo '{said}'")
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "11.4")
    assert "11.5 GB" in runtime_checks.check_mlx()
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "12")
    with pytest.raises(Warned, match=r"more than the 11\.5 GB") as caught:
        runtime_checks.check_mlx()
    assert "CAR_VLLM_MLX_MEMORY_GB=11.4 or less" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'ImportError: Unable to load libmlx' >&2; exit 1", "libmlx"),
        ("""echo '{"total": 1.0, "metal": true, "working_set": 1}'""", "wrongly"),
    ],
)
def test_mlx_that_does_not_work(tmp_path, monkeypatch, script, reason):
    """What fails, and what computes wrongly, fails the check."""
    runtime_that_says(tmp_path, monkeypatch, script)
    with pytest.raises(Finding, match=reason):
        runtime_checks.check_mlx()


def test_this_python_has_no_mlx(tmp_path, monkeypatch):
    """A Python without MLX is found out by trying, not by looking."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "vllm-mlx").write_text(f"#!{sys.executable}\n")
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(folder / "vllm-mlx"))
    with pytest.raises(Finding, match="mlx"):
        runtime_checks.check_mlx()


@pytest.mark.parametrize("scheme", ["http://", "HTTP://", ""])
@pytest.mark.parametrize("password", ["secret", "secret/secret", "secret@secret", "secret?#"])
def test_proxies_are_told_without_passwords(monkeypatch, scheme, password):
    """What is in the environment counts, and no password reaches a terminal."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert "no proxy" in runtime_checks.check_proxies()
    monkeypatch.setenv("HTTPS_PROXY", f"{scheme}me:{password}@proxy.example:3128")
    said = runtime_checks.check_proxies()
    assert "proxy.example:3128" in said
    assert "secret" not in said


@pytest.mark.parametrize("code", [0, 1])
def test_what_a_socks_proxy_needs_is_tried(tmp_path, monkeypatch, code):
    """An install without it could download nothing."""
    runtime_that_says(tmp_path, monkeypatch, f"exit {code}")
    monkeypatch.setenv("ALL_PROXY", "socks5h://me:secret@proxy.example:1080")
    if code == 0:
        assert "proxy.example:1080" in runtime_checks.check_proxies()
        return
    with pytest.raises(Warned, match="socksio") as caught:
        runtime_checks.check_proxies()
    assert "install --upgrade" in (caught.value.hint or "")
