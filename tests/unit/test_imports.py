"""What an import costs and what it must not bring along."""

import ast
import re
import subprocess
import sys
from pathlib import Path

WARNINGS = [
    "CutOffCallWarning",
    "EmptyAnswerWarning",
    "InvalidCallWarning",
    "UnlabelledAnswerWarning",
    "UnsentContentWarning",
]


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_supervisor_knows_no_langchain():
    """The supervisor stays small: none of the client's libraries is in it."""
    found = modules_after("import langchain_car_vllm.server.supervisor.__main__")
    heavy = {"langchain_core", "langchain_openai", "openai", "pydantic", "httpx", "httpx2", "typer"}
    assert not heavy & found


def test_supervisor_imports_nothing_that_a_fork_breaks_on_a_mac():
    """It forks without exec: Apple's frameworks may not have been entered before, by any way."""
    code = (
        "import sys, threading, langchain_car_vllm.server.supervisor.__main__\n"
        "print(threading.active_count(), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    threads, *modules = done.stdout.split()
    assert threads == "1"
    # What asks the system for proxies, certificates or fonts, and what leads there.
    entering = {"_scproxy", "truststore", "urllib.request", "objc", "Foundation", "tkinter"}
    assert not entering & set(modules)


def test_package_import_is_lazy():
    """Importing the package imports no LangChain; naming the class does."""
    assert "langchain_core" not in modules_after("import langchain_car_vllm")
    assert "langchain_core" in modules_after("from langchain_car_vllm import ChatVllmMlx")


def test_public_names():
    """These names are fixed: others build on them."""
    import langchain_car_vllm
    from langchain_car_vllm import runtime, server

    own = ["ChatVllmMlx", "Progress", "VllmMlxEmbeddings", "VllmMlxReranker"]
    own += ["__version__", "errors", "register", *WARNINGS]
    optional = {"VllmMlxDecisions"}  # where langchain-core knows decision models
    found = [name for name in langchain_car_vllm.__all__ if name not in optional]
    assert found == [*own, *langchain_car_vllm.errors.__all__]
    for name in langchain_car_vllm.__all__:
        assert getattr(langchain_car_vllm, name)
    for name in ("search_dirs", "resolve_existing", "ensure_runtime"):
        assert callable(getattr(runtime, name))
    for name in ("health_ok", "ensure_server", "ServerSpec", "Endpoint"):
        assert callable(getattr(server, name))


def test_a_name_that_is_none_is_an_error_in_an_editor():
    """Type checkers believe in every name that a module-level `__getattr__` may give."""
    package = Path(__file__).parents[2] / "langchain_car_vllm"
    for file in (package / "__init__.py", package / "errors.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        assert "__getattr__" not in [getattr(statement, "name", "") for statement in body]


def test_every_warning_can_be_named():
    """Each class that a user may want to silence is public, whoever warns."""
    package = Path(__file__).parents[2] / "langchain_car_vllm"
    found = [
        name
        for file in package.rglob("*.py")
        for name in re.findall(r"^class (\w+Warning)\b", file.read_text("utf-8"), re.MULTILINE)
    ]
    assert sorted(found) == WARNINGS
    page = package.with_name("docs") / "errors.md"
    assert all(f"| `{name}` |" in page.read_text(encoding="utf-8") for name in WARNINGS)


def test_names_are_found_by_completion():
    """`dir` and with it Tab show what can be imported, and nothing else."""
    import rlcompleter

    import langchain_car_vllm

    completer = rlcompleter.Completer({"car": langchain_car_vllm})
    shown = [completer.complete("car.", state) for state in range(80)]
    for name in set(langchain_car_vllm.__all__) - {"__version__"}:
        assert any(text is not None and text.startswith(f"car.{name}") for text in shown), name
    assert set(dir(langchain_car_vllm)) == set(langchain_car_vllm.__all__)


def test_every_error_is_imported_from_one_place():
    """Each class of an error in the package is in `errors`, whoever raises it, and in its tree."""
    import importlib
    import pkgutil

    import langchain_car_vllm
    from langchain_car_vllm import errors

    inside = langchain_car_vllm.__path__, "langchain_car_vllm."
    programs: tuple[str, ...] = (".__main__", ".launch", ".downloader", ".tiny_server")
    if "VllmMlxDecisions" not in langchain_car_vllm.__all__:  # langchain-core before 1.8
        programs += (".decisions",)
    for module in pkgutil.walk_packages(*inside):
        if not module.name.endswith(programs):
            importlib.import_module(module.name)
    classes, todo = [], [errors.CarVllmError]
    while todo:
        found = todo.pop()
        classes.append(found)
        todo += found.__subclasses__()
    # Raised and caught within the package.
    private = {"NoReportError", "StageEnded"}
    public = [cls for cls in classes if cls.__name__ not in private]
    assert {cls.__name__ for cls in public} == set(errors.__all__)
    for cls in public:
        assert getattr(errors, cls.__name__) is cls
        assert f" {cls.__name__}" in str(errors.__doc__)


def test_errors_of_the_wire_are_imported_on_their_own():
    """`from langchain_car_vllm.errors import RateLimitError` works in a fresh process."""
    modules_after("from langchain_car_vllm.errors import RateLimitError, PromptTooLongError")


def test_the_package_runs_as_a_module():
    """`python -m langchain_car_vllm` is the command line."""
    command = [sys.executable, "-m", "langchain_car_vllm", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def test_unknown_attribute_is_an_attribute_error():
    """A misspelt name is told as Python tells it."""
    import pytest

    import langchain_car_vllm

    with pytest.raises(AttributeError, match="ChatVllm"):
        _ = langchain_car_vllm.ChatVllm


# What the standard library and LangChain find where they are imported, and we must not look for.
OF_UNIX = """
    fork register_at_fork getuid geteuid getgid getegid getgroups getpgid getsid setsid killpg
    statvfs uname sysconf getpriority setpriority posix_spawn fchmod fchown chown mkfifo
    O_CLOEXEC O_NOFOLLOW O_DIRECTORY O_NONBLOCK WNOHANG sched_getaffinity getloadavg pwrite
"""


def test_a_system_without_kernel_locks(tmp_path: Path):
    """On Windows an endpoint of somebody else's is asked, and a managed one refused in words."""
    code = """
import asyncio, multiprocessing, os, subprocess, sys, tempfile
from pathlib import Path
import anyio, httpcore2, httpx2, langchain_openai, psutil
for name in sys.argv[1:]:
    if hasattr(os, name):
        delattr(os, name)
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))
from langchain_car_vllm import ChatVllmMlx, VllmMlxEmbeddings, VllmMlxReranker
from langchain_car_vllm.errors import UnsupportedPlatformError
from langchain_car_vllm.wire.errors import ConnectionFailedError
for model in (
    ChatVllmMlx(model="any", base_url="http://127.0.0.1:9/v1", max_retries=0).invoke,
    VllmMlxEmbeddings(model="any", base_url="http://127.0.0.1:9/v1").embed_query,
    lambda text: VllmMlxReranker("any", base_url="http://127.0.0.1:9/v1").rerank([text], text),
):
    try:
        model("hi")
    except ConnectionFailedError as error:
        print("asked")
Path("red.png").write_bytes(bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000a49444154789c63000100"
    "000500010d0a2db40000000049454e44ae426082"
))
try:
    seen = [{"type": "image", "url": Path("red.png")}]
    ChatVllmMlx(model="any", base_url="http://127.0.0.1:9/v1").invoke([("user", seen)])
except ConnectionFailedError:
    print("seen")
try:
    ChatVllmMlx(model="org/model").invoke("hi")
except UnsupportedPlatformError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *OF_UNIX.split()],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[:4] == [*["asked"] * 3, "seen"]
    assert lines[4].startswith("vllm-mlx runs on Apple silicon and on Linux, not on")
    assert lines[-1] == "hint: pass `base_url` to use a vllm-mlx server on another machine"


def test_the_command_line_says_where_no_server_runs():
    """On Windows, for every command: it ended with a traceback of an import."""
    code = """
import sys
sys.modules |= dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"))
from langchain_car_vllm.cli import main
main()
"""
    for command in ("doctor", "--help"):
        arguments = [sys.executable, "-c", code, command]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: vllm-mlx runs on Apple silicon and on Linux, not on")


def test_what_a_model_that_is_constructed_brings_along_is_known():
    """Each module that langchain-core alone does not import is named, since each costs time."""
    core = "from langchain_core.language_models import BaseChatModel"
    ours = "from langchain_car_vllm import ChatVllmMlx; ChatVllmMlx(model='org/none')"
    added = modules_after(ours) - modules_after(core)
    text = (Path(__file__).parents[1] / "golden" / "imported_modules.txt").read_text()
    named = set(text.split())
    assert added <= named, "these are new; if they are worth their time, name them"
    stale = {name for name in named - added if name.startswith("langchain_car_vllm")}
    assert not stale, "these are not imported any more"
