"""What an import costs and what it must not bring along."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_supervisor_knows_no_langchain():
    """The supervisor stays small: none of the client's libraries is in it."""
    found = modules_after("import langchain_car_vllm.server.supervisor.__main__")
    heavy = {"langchain_core", "langchain_openai", "openai", "pydantic", "httpx", "httpx2", "typer"}
    assert not heavy & found


def test_package_import_is_lazy():
    """Importing the package imports no LangChain; naming the class does."""
    assert "langchain_core" not in modules_after("import langchain_car_vllm")
    assert "langchain_core" in modules_after("from langchain_car_vllm import ChatVllmMlx")


def test_public_names():
    """These names are fixed: others build on them."""
    import langchain_car_vllm
    from langchain_car_vllm import runtime, server

    assert langchain_car_vllm.__all__ == ["ChatVllmMlx", "VllmMlxEmbeddings", "__version__"]
    for name in langchain_car_vllm.__all__:
        assert getattr(langchain_car_vllm, name)
    for name in ("search_dirs", "resolve_existing", "ensure_runtime"):
        assert callable(getattr(runtime, name))
    for name in ("health_ok", "ensure_server", "ServerSpec", "Endpoint"):
        assert callable(getattr(server, name))


def test_unknown_attribute_is_an_attribute_error():
    """A misspelt name is told as Python tells it."""
    import pytest

    import langchain_car_vllm

    with pytest.raises(AttributeError, match="ChatVllm"):
        _ = langchain_car_vllm.ChatVllm


def test_a_system_without_kernel_locks():
    """On Windows an endpoint of somebody else's is asked, and a managed one refused in words."""
    code = """
import sys
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "termios"))
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings
from langchain_car_vllm.errors import UnsupportedPlatformError
from langchain_car_vllm.wire.errors import ConnectionFailedError
for model in (
    ChatVllmMlx(model="any", base_url="http://127.0.0.1:9/v1", max_retries=0).invoke,
    VllmMlxEmbeddings(model="any", base_url="http://127.0.0.1:9/v1").embed_query,
):
    try:
        model("hi")
    except ConnectionFailedError as error:
        print("asked")
try:
    ChatVllmMlx(model="org/model").invoke("hi")
except UnsupportedPlatformError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:2] == ["asked", "asked"]
    assert lines[2].startswith("vllm-mlx runs on Apple silicon and on Linux, not on")
    assert lines[-1] == "hint: pass `base_url` to talk to a vllm-mlx server on another machine"
