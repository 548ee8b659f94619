"""`rm`: a model's files, and what was kept because of it."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import typer

from langchain_car_vllm.cli.options import ModelArguments, Yes, found_for_all
from langchain_car_vllm.cli.output import say, size
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.models import find_snapshot, parse_model_id
from langchain_car_vllm.models.identity import identity_of
from langchain_car_vllm.models.model_files import PRIVACY_HINT, is_private
from langchain_car_vllm.models.snapshot import hub_cache, repository_folder
from langchain_car_vllm.server import running_servers, stop_server
from langchain_car_vllm.server.directory import ServerDirectory, server_directories
from langchain_car_vllm.server.state import read_state
from langchain_car_vllm.support.file_presence import is_folder, is_link


class _Removal(NamedTuple):
    """What goes with a model.

    Attributes:
        files: The folders that hold it.
        run_state: The state, logs and prefix caches of its servers.
    """

    files: list[Path]
    run_state: list[ServerDirectory]


def rm(models: ModelArguments, *, yes: Yes = False) -> None:
    """Remove downloaded models and everything kept for them.

    Never a directory of yours. Other programs that use the Hub's cache lose the models too.
    """
    for model, removal in found_for_all(models, _find_removal):
        _remove(model, removal, yes=yes)


def _remove(model: str, removal: _Removal, *, yes: bool) -> None:
    folders = [*removal.files, *(directory.path for directory in removal.run_state)]
    freed = sum(disk_bytes(folder) for folder in folders)
    for folder in removal.files:
        say(str(folder))
    if not yes and not confirms(f"Remove `{model}` and free {size(freed)}?"):
        raise typer.Exit(1)
    running = {directory.path for directory, _ in running_servers()}
    for directory in removal.run_state:
        if directory.path in running:
            stop_server(directory)
        remove_path(directory.path)
    for folder in removal.files:
        remove_path(folder)
    say(f"removed `{model}` and freed {size(freed)}")


def _find_removal(name: str) -> _Removal:
    """Return what is there of a model.

    Raises:
        ConfigurationError: It is not here, or lies in a directory that is not ours to remove.
    """
    model = parse_model_id(name)
    if model.is_local:
        raise ConfigurationError(
            f"`{model.source}` is a directory of your own, which `car-vllm` never removes",
            hint="remove it yourself; `car-vllm stop` stops its server",
        )
    files = repository_files(model.source)
    if not files and (snapshot := find_snapshot(model.source)) is not None:
        raise ConfigurationError(
            f"`{model.source}` is in `{snapshot}`, which belongs to another program",
            hint="remove it there, for instance in LM Studio",
        )
    states = [(d, read_state(d.state)) for d in server_directories()]
    weights, _ = identity_of(model.source)
    run_state = [d for d, state in states if state and identity_of(state.source)[0] == weights]
    if not files and not run_state:
        raise ConfigurationError(
            f"`{name}` is not on this machine", hint="`car-vllm list` shows the models that are"
        )
    return _Removal(files, run_state)


def repository_files(source: str) -> list[Path]:
    """Return what there is of a repository in the Hub's cache."""
    cache, folder = hub_cache(), repository_folder(source)
    if cache is None or folder is None:
        return []
    return [path for path in (folder, cache / ".locks" / folder.name) if is_there(path)]


def is_there(path: Path) -> bool:
    """Tell whether there is something by a name, be it a link that leads nowhere."""
    return os.path.lexists(path)


def disk_bytes(folder: Path) -> int:
    """Return what a folder takes on the disk; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    paths = [str(folder)]
    for place, folders, files in os.walk(folder) if not os.path.islink(folder) else ():  # noqa: PTH114
        paths += [f"{place}/{name}" for name in (*folders, *files)]
    for path in paths:
        with suppress(FileNotFoundError):
            found = os.lstat(path)
            seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


def confirms(question: str) -> bool:
    """Ask a person; a program has to say --yes."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise ConfigurationError("there is no terminal to ask for confirmation", hint="pass --yes")
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            say("")
            raise KeyboardInterrupt from None
        raise


def remove_path(path: Path) -> None:
    """Remove a file or a folder; a link to one elsewhere goes, what it leads to stays.

    Raises:
        ConfigurationError: It cannot be removed.
    """
    try:
        if is_link(path) or not is_folder(path):
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    except OSError as error:
        cure = "end the programs that use it, and check who owns the files in it"
        raise ConfigurationError(
            f"`{path}` cannot be removed: {error.strerror}",
            hint=PRIVACY_HINT if is_private(error) else cure,
        ) from error
