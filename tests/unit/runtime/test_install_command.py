import os
import subprocess
import sys

import pytest


@pytest.fixture
def car_vllm():
    def run(*arguments):
        code = "from langchain_car_vllm.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ.copy(),
        )

    return run


def test_install_prints_where_the_runtime_is(fake_uv, managed, car_vllm, monkeypatch):
    """The command installs, whatever forbids doing so unasked, and prints the binary alone."""
    monkeypatch.setenv("CAR_VLLM_MLX_AUTO_INSTALL", "0")
    ended = car_vllm("install")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{managed / 'bin' / 'vllm-mlx'}\n"
    assert "vllm-mlx 0.6.0" in ended.stderr
    assert fake_uv.commands == ["venv", "pip"]


def test_install_finds_what_is_there(fake_uv, home, write_binary, car_vllm):
    """An install that is there is printed and left alone."""
    binary = write_binary(home / ".local", "0.5.0")
    ended = car_vllm("install")
    assert ended.stdout == f"{binary}\n"
    assert fake_uv.calls == []


def test_upgrade_says_when_another_install_comes_first(
    fake_uv, home, managed, write_binary, car_vllm
):
    """An upgrade of the managed runtime does not help where an older one is found before it."""
    binary = write_binary(home / ".local", "0.4.1")
    ended = car_vllm("install", "--upgrade")
    assert ended.stdout == f"{managed / 'bin' / 'vllm-mlx'}\n"
    assert f"hint: `{binary}` is found before it" in ended.stderr


def test_a_failed_install_is_one_sentence(fake_uv, car_vllm):
    """A failure is an error and a hint on standard error, and no traceback."""
    fake_uv.set(fail="pip", says="error: No space left on device (os error 28)")
    ended = car_vllm("install")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: provisioning step `pip-install` failed")
    assert "hint: free some disk space" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_pull_of_a_local_model_prints_it(fake_uv, tmp_path, car_vllm):
    """A model that is on this machine needs no download."""
    (tmp_path / "config.json").write_text("{}")
    ended = car_vllm("pull", str(tmp_path))
    assert ended.stdout == f"{tmp_path}\n"
    assert fake_uv.calls == []


def test_pull_of_an_unknown_model_installs_nothing(fake_uv, car_vllm):
    """A misspelt id is told before anything is done."""
    ended = car_vllm("pull", "vllm-mlx/gemma-4-12b")
    assert ended.returncode == 1
    assert "did you mean `vllm-mlx/gemma-4-12b-it`" in ended.stderr
    assert fake_uv.calls == []


def test_pull_respects_offline(fake_uv, car_vllm, monkeypatch):
    """With `HF_HUB_OFFLINE` set nothing is fetched, and the error says so."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ended = car_vllm("pull", "org/tiny")
    assert ended.returncode == 1
    assert "HF_HUB_OFFLINE forbids the download" in ended.stderr
