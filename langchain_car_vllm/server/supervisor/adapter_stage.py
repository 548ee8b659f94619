"""The adapter of a server: fetched before the spawn, proven to be in use before it serves."""

from contextlib import suppress

from langchain_car_vllm.environment import inherited_environment
from langchain_car_vllm.errors import ModelDownloadError, ServerStartError
from langchain_car_vllm.models.adapter import CONFIG, WEIGHTS, find_adapter
from langchain_car_vllm.models.download import check_may_download
from langchain_car_vllm.models.download_diagnosis import diagnose_download, stalled_error
from langchain_car_vllm.runtime import VllmRuntime, interpreter_of
from langchain_car_vllm.runtime.console_scripts import console_script
from langchain_car_vllm.server.child_environment import download_environment
from langchain_car_vllm.server.supervisor.child import Child
from langchain_car_vllm.server.supervisor.context import SupervisorContext
from langchain_car_vllm.support.file_presence import is_present
from langchain_car_vllm.support.stall import Stall

_FETCH = """
import sys
from huggingface_hub import snapshot_download
patterns = ["adapter_config.json", "adapters.safetensors", "adapter_model.safetensors"]
snapshot_download(sys.argv[1], allow_patterns=patterns)
"""
_LOADED = "adapter.loaded"


def fetch_adapter(context: SupervisorContext, runtime: VllmRuntime) -> None:
    """Have the adapter on the disk, where one is wanted.

    Raises:
        ModelDownloadError: It is not here and cannot be had.
    """
    source, directory = context.spec.adapter, context.directory
    with suppress(OSError):
        (directory.path / _LOADED).unlink()
    if source is None or find_adapter(source) is not None:
        return
    check_may_download(source, auto_pull=context.spec.auto_pull, purpose="adapter")
    python = interpreter_of(runtime.server)
    if python is None:
        raise ModelDownloadError(
            f"`{runtime.server}` is not a Python script, so it cannot fetch the adapter `{source}`",
            hint="download the adapter yourself and name its folder",
        )
    script, log = directory.path / "fetch_adapter.py", directory.path / "adapter.log"
    script.write_text(console_script(python, _FETCH), encoding="utf-8")
    environment = download_environment(inherited_environment(), dict(context.spec.server_env))
    child = Child(directory, script, (source,), environment, log=log)
    stall = Stall(context.policy.download_stall, child.activity)
    try:
        while (code := child.exit_code()) is None:
            context.show(f"downloading the adapter `{source}`", phase="download")
            context.pause(context.policy.download_tick)
            if stall.is_stalled():
                raise stalled_error(f"the adapter `{source}`", context.policy.download_stall)
    finally:
        child.kill(context.policy)
    if code:
        cause = diagnose_download(source, None, log, code)
        error = ModelDownloadError(f"the adapter {cause.message}", hint=cause.hint)
        error.is_retryable = cause.is_retryable
        raise error
    if find_adapter(source) is None:
        raise ModelDownloadError(
            f"`{source}` is not an adapter: it has no `{CONFIG}` with `{WEIGHTS}`",
            hint="name a folder or a repository that `mlx_lm.lora` wrote",
        )


def check_adapter_is_used(context: SupervisorContext) -> None:
    """Refuse a server that would answer without the adapter that was asked for.

    Raises:
        ServerStartError: The launcher does not know this version, or the binary is not Python.
    """
    adapter = context.spec.adapter
    if adapter is None or is_present(context.directory.path / _LOADED):
        return
    raise ServerStartError(
        f"`{context.spec.served_name}` runs without its adapter: this package does not know how "
        "to load one into this install",
        hint="run `car-vllm install --upgrade`, or fuse the adapter with `python -m mlx_lm fuse`",
        log_path=context.directory.log,
    )
