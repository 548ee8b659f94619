"""Whoever reads a file that is replaced finds the former one or the new one, whole."""

import ast
import errno
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from langchain_car_vllm import support
from langchain_car_vllm.support.replaced_files import replaced_file

PACKAGE = Path(support.__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    return made


def replace(path: Path, content: bytes, *, many_writers: bool = False) -> None:
    with replaced_file(path, many_writers=many_writers) as file:
        file.write(content)


@pytest.mark.parametrize("many_writers", [False, True])
@pytest.mark.parametrize("before", [None, b"before"])
def test_the_new_file_is_whole_private_and_alone(
    folder: Path, before: bytes | None, many_writers: bool
):
    path = folder / "note.json"
    if before is not None:
        path.write_bytes(before)
        path.chmod(0o666)
    replace(path, b"after", many_writers=many_writers)
    assert path.read_bytes() == b"after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*folder.iterdir()] == [path]


@pytest.mark.parametrize("many_writers", [False, True])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), KeyError()])
def test_a_write_that_fails_leaves_the_former_file_and_no_draft(
    folder: Path, error: BaseException, many_writers: bool
):
    path = folder / "note.json"
    path.write_bytes(b"before")

    def fail() -> None:
        with replaced_file(path, many_writers=many_writers) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"before"
    assert [*folder.iterdir()] == [path]


def test_a_target_that_cannot_be_replaced_leaves_no_draft(folder: Path):
    path = folder / "note.json"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="note"):
        replace(path, b"new")
    assert [*folder.iterdir()] == [path]


def test_a_killed_writer_leaves_the_former_file_and_its_successor_goes_on(folder: Path):
    path = folder / "note.json"
    path.write_bytes(b"before")
    script = f"""
import os, pathlib
from langchain_car_vllm.support.replaced_files import replaced_file

with replaced_file(pathlib.Path({str(path)!r})) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), {signal.SIGKILL})
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before"
    replace(path, b"after")
    assert path.read_bytes() == b"after"
    assert [*folder.iterdir()] == [path]


def test_many_writers_at_once_never_show_a_reader_half_a_file(folder: Path):
    path = folder / "note.json"
    contents = {bytes([letter]) * 100_000 for letter in b"abcd"}
    replace(path, b"a" * 100_000)
    failures: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(50):
                replace(path, content, many_writers=True)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_bytes() in contents
    assert failures == []
    assert [*folder.iterdir()] == [path]


def test_no_other_module_writes_a_draft_of_its_own():
    """The launcher's modules, which run without this package, may."""
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            (ast.unparse(node.func.value) == "os" and node.func.attr in ("replace", "rename"))
            or (node.func.attr in ("replace", "rename") and len(node.args) == 1)
        )
        and not node.keywords
    }
    assert found == {
        "support/replaced_files.py",
        "server/suspension.py",  # a lock
        "server/client/ticket_file.py",  # a ticket's name is its state
        "server/supervisor/child.py",  # a log that became long
        "server/supervisor/mends/importing.py",
    }
