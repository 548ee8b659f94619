"""`recommend` for machines of every size."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import psutil
import pytest
from unit.cli.conftest import Cli
from unit.cli.model_folders import download

from langchain_car_vllm.models import parse_model_id
from langchain_car_vllm.runtime import metal


@pytest.mark.parametrize("task", ["chat", "agent", "code", "vision", "embed"])
@pytest.mark.parametrize("gigabytes", [5.7, 24.0, 96.0])
def test_what_is_recommended_fits(cli_here: Cli, task: str, gigabytes: float):
    """Each is an id, fits the budget, and a larger machine is offered at least as many."""
    done = cli_here("recommend", "--task", task, "--json", CAR_VLLM_MLX_MEMORY_GB=str(gigabytes))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found
    for entry in found:
        assert parse_model_id(entry["model"])
        assert entry["memory_bytes"] <= gigabytes * 1e9


def test_it_says_what_it_does_not_know(cli_here: Cli):
    """The table is for a person, and honest about speed and quality."""
    done = cli_here("recommend", CAR_VLLM_MLX_MEMORY_GB="24")
    assert done.stdout.startswith("MODEL")
    assert "how fast and how good" in done.stderr


@pytest.mark.parametrize(("gigabytes", "fits"), [("5.7", False), ("11.5", True)])
def test_what_does_not_fit_by_the_page_is_not_recommended(
    cli_here: Cli, gigabytes: str, fits: bool
):
    """Qwen3-8B fits a Mac of 16 GB and not one of 8 GB, as `docs/memory.md` has it."""
    done = cli_here("recommend", "--json", CAR_VLLM_MLX_MEMORY_GB=gigabytes)
    models = [entry["model"] for entry in json.loads(done.stdout)]
    assert ("mlx-community/Qwen3-8B-4bit" in models) is fits
    assert "mlx-community/Qwen3-4B-4bit" in models


def test_a_copy_that_cannot_be_served_is_told(cli_here: Cli, cache: Path):
    """One damaged model on this machine does not keep the others from being recommended."""
    damaged = "mlx-community/Qwen3-4B-4bit"
    (download(cache, damaged) / "model.safetensors").write_bytes(b"cut off")
    done = cli_here("recommend", "--json", CAR_VLLM_MLX_MEMORY_GB="24")
    found = {entry["model"]: entry for entry in json.loads(done.stdout)}
    assert found[damaged]["download_bytes"]
    assert found[damaged]["estimated"]
    assert "mlx-community/Qwen3-8B-4bit" in found
    assert f"`{damaged}` cannot be served" in done.stderr


def test_a_copy_that_may_not_be_read_is_not_said_to_be_damaged(
    cli_here: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is well, and its removal would be a loss."""
    private = "mlx-community/Qwen3-4B-4bit"
    branch, opened = download(cache, private).parents[1] / "refs" / "main", os.open

    def refuse(path: Any, *arguments: Any, **keywords: Any) -> int:
        if str(path) == str(branch):
            raise PermissionError(1, "Operation not permitted", str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    done = cli_here("recommend", "--json", CAR_VLLM_MLX_MEMORY_GB="24")
    assert f"`{branch}` may not be read" in done.stderr
    assert "car-vllm rm" not in done.stderr


def test_nothing_fits(cli_here: Cli):
    """A machine that is too small is told the numbers; a program gets an empty list as well."""
    for words in ([], ["--json"]):
        done = cli_here("recommend", "--task", "agent", *words, CAR_VLLM_MLX_MEMORY_GB="1")
        assert done.returncode == 1
        assert "the smallest needs" in done.stderr
        assert done.stdout.strip() == ("[]" if words else "")


@pytest.mark.parametrize(("memory", "place"), [(32, -1), (48, 0)])
def test_what_would_be_wired_comes_last(
    cli_here: Cli, monkeypatch: pytest.MonkeyPatch, memory: int, place: int
):
    """Macs have panicked with that, so it is no first choice, and `plan` says it as well."""
    whole = psutil.virtual_memory()._replace(total=memory * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: whole)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(metal, "_wired_limit_mb", lambda: 0)
    large, is_wired = "vllm-mlx/qwen3.6-35b-a3b:4bit", place == -1
    found = json.loads(cli_here("recommend", "--json").stdout)
    assert found[place]["model"] == large
    assert [entry["model"] for entry in found if entry["wired"]] == [large] * is_wired
    told = cli_here("recommend")
    assert ("wired" in told.stdout) is is_wired
    assert ("panicked" in told.stderr) is is_wired
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plan = cli_here("plan", large)
    assert ("panicked" in plan.stdout) is is_wired
    assert ("one at a time" in plan.stdout) is is_wired
