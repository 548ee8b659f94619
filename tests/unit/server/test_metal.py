"""Metal's own failures: what happened, the cure, and whether it is worth repeating."""

from pathlib import Path

import pytest

from langchain_car_vllm.endpoint import Serving
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.server.command import Launch, started_with
from langchain_car_vllm.server.launch_settings import launch_settings
from langchain_car_vllm.server.memory import Memory
from langchain_car_vllm.server.spec import ServerSpec
from langchain_car_vllm.server.supervisor.diagnosis import diagnose
from langchain_car_vllm.server.supervisor.serve import LogFaults

PREFIX = "libc++abi: terminating due to uncaught exception of type std::runtime_error: "
FAILED = f"{PREFIX}[METAL] Command buffer execution failed: "
CASES = {
    "memory": (
        FAILED + "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        ("shorter prompts", "max_concurrency", "--max-kv-size", "quantisation"),
        False,
    ),
    "display": (
        FAILED + "Impacting Interactivity (0000000e:kIOGPUCommandBufferCallbackError"
        "ImpactingInteractivity)",
        ("display", "--prefill-step-size"),
        False,
    ),
    "timeout": (
        FAILED + "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
        ("too long", "--prefill-step-size"),
        False,
    ),
    "ignored": (
        FAILED + "Ignored (for causing prior/excessive GPU errors) (00000004:"
        "kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
        ("no more work", "it starts again"),
        True,
    ),
    "metallib": (
        "RuntimeError: Failed to load the default metallib. Language version 4.0 is not supported",
        ("another version of macOS", "car-vllm install --upgrade"),
        False,
    ),
    "library": (
        "RuntimeError: [metal::Device] Unable to build metal library from source",
        ("car-vllm install --upgrade",),
        False,
    ),
    "device": ("RuntimeError: No Metal device available", ("no access to a GPU",), False),
}


@pytest.mark.parametrize("case", CASES)
def test_each_failure_has_its_cure(tmp_path: Path, case: str):
    """With what to do about it; a request that the GPU's watchdog killed is not sent again."""
    text, cure, is_retryable = CASES[case]
    log = tmp_path / "server.log"
    log.write_text(f"INFO: ready\n{text}\n")
    found = diagnose(-6, log)
    assert found.hint is not None
    assert all(word in found.hint for word in cure)
    assert found.is_retryable is is_retryable
    assert found.out_of_memory is (case == "memory")


def test_other_failures_are_as_they_were(tmp_path: Path):
    """A plain abort does not come from Metal, and is retried."""
    log = tmp_path / "server.log"
    log.write_text("RuntimeError: something else\n")
    found = diagnose(-6, log)
    assert found.metal is None
    assert found.is_retryable


def test_a_living_server_whose_gpu_is_lost_is_noticed(tmp_path: Path):
    """Once, when it is written; older lines and failures of single requests say nothing."""
    log = tmp_path / "server.log"
    faults = LogFaults(log)
    assert not faults.found()
    log.write_text(CASES["ignored"][0] + "\n")
    assert LogFaults(log).found() is False, "it was there before"
    assert faults.found()
    assert not faults.found()
    with log.open("a") as file:
        file.write(CASES["memory"][0] + "\n")
    assert not faults.found()
    log.unlink()
    assert not faults.found()


def test_a_first_look_at_a_log_that_is_refused_is_the_next_ones(tmp_path: Path):
    """It would end a server that has just become ready."""
    folder = tmp_path / "run"
    folder.touch()
    faults = LogFaults(folder / "server.log")
    with pytest.raises(NotADirectoryError):
        faults.found()
    folder.unlink()
    folder.mkdir()
    (folder / "server.log").write_text(CASES["ignored"][0] + "\n")
    assert not faults.found(), "it was there before"
    with (folder / "server.log").open("a") as file:
        file.write(CASES["ignored"][0] + "\n")
    assert faults.found()


def settings(env: dict[str, str], **given: object) -> dict[str, str]:
    spec = ServerSpec(source="m", served_name="m", **given)
    memory = Memory(900, kv=100, room=10)
    launch = Launch("m", True, Serving(engine="batched", multimodal=False), memory=memory)
    launch = started_with(launch, memory)
    return launch_settings(spec, launch, env)


def test_the_launcher_is_told_what_was_set_aside():
    """And whether to wire; whoever sets limits of his own keeps them."""
    assert settings({}) == {
        "CAR_VLLM_MLX_WIRED": "auto",
        "CAR_VLLM_LAUNCH_MEMORY": "1000",
        "MLX_BUFFER_CACHE_LIMIT": str(256 * 2**20),
        "CAR_VLLM_LAUNCH_TEXT_ONLY": "1",
    }
    assert settings({"CAR_VLLM_MLX_WIRED": "0"})["CAR_VLLM_MLX_WIRED"] == "0"
    given = {"server_env": (("CAR_VLLM_MLX_WIRED", "1"),)}
    assert settings({"CAR_VLLM_MLX_WIRED": "0"}, **given)["CAR_VLLM_MLX_WIRED"] == "1"
    for own in (
        {"server_args": ("--gpu-memory-utilization", "0.5")},
        {"server_args": ("--gpu-memory-utilization=0.5",)},
        {"server_env": (("MLX_BUFFER_CACHE_LIMIT", "1gb"),)},
    ):
        assert not {"CAR_VLLM_LAUNCH_MEMORY", "MLX_BUFFER_CACHE_LIMIT"} & settings({}, **own).keys()
    with pytest.raises(ConfigurationError, match="`auto`, `0` or `1`, not `yes`"):
        settings({"CAR_VLLM_MLX_WIRED": "yes"})
