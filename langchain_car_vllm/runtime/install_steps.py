"""The steps of one installation, under the lock: environment, packages, test."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from langchain_car_vllm.environment import CAR_VLLM_MLX_DOWNLOAD_STALL, PATH
from langchain_car_vllm.errors import NotFoundAfterInstallError, ProvisionError
from langchain_car_vllm.runtime.commands import NO_ANSWER, clean_environment, run_step
from langchain_car_vllm.runtime.console_scripts import installed_version
from langchain_car_vllm.runtime.host import Host
from langchain_car_vllm.runtime.marker import Marker, read_marker, write_marker
from langchain_car_vllm.runtime.reporter import Reporter
from langchain_car_vllm.runtime.requirements import Requirements, wanted_requirements
from langchain_car_vllm.runtime.uv_settings import uv_environment
from langchain_car_vllm.runtime.virtual_environment import (
    NEWEST_PYTHON,
    OLDEST_PYTHON,
    PROVEN_PYTHON,
    Python,
    broken_packages,
    check_imports,
    check_locked,
    check_unused,
    forget_unreadable,
    former_python,
    probe_python,
    python_binary,
    remove_former_packages,
    runs_here,
    server_binary,
)
from langchain_car_vllm.support.backups import exclude_from_backups
from langchain_car_vllm.support.file_presence import is_present

_PROVEN_RANGE = "cpython>={}.{},<{}.{}".format(
    *OLDEST_PYTHON, PROVEN_PYTHON[0], PROVEN_PYTHON[1] + 1
)
_NEWER = f"cpython=={NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}.*"
# uv's own for Apple silicon: nobody upgrades it away, and under Rosetta it stays what it is.
_MANAGED_MAC_PYTHON = "cpython-3.12-macos-aarch64-none"
_APPLE_STUBS = "/usr/bin"
_VENV = "venv"


class Work(NamedTuple):
    """What an installation works with.

    Attributes:
        root: The environment.
        uv: The program that installs.
        lock: Descriptor of the lock, for the programs that are started.
        host: The machine.
        report: Where to tell how far it is.
    """

    root: Path
    uv: Path
    lock: int
    host: Host
    report: Reporter

    def run_uv(self, step: str, *arguments: str | Path, directory: Path) -> None:
        """Run uv.

        Raises:
            ProvisionError: It failed.
        """
        with uv_environment(clean_environment()) as variables:
            looks_for_python = step == _VENV and self.host.system == "darwin"
            if looks_for_python and PATH.name in variables:
                variables[PATH.name] = _without_apples_python(variables[PATH.name])
            run_step(
                step,
                [self.uv, *arguments],
                directory=directory,
                environment=variables,
                on_line=self.report.uv_line,
                keep_open=(self.lock,),
                limit=CAR_VLLM_MLX_DOWNLOAD_STALL,
            )


def install(work: Work) -> Path:
    """Bring the environment to the wanted requirements and return its binary.

    Marked as unfinished from before the first change until the test has passed. Where it fails and
    has changed nothing, the former mark returns.

    Raises:
        RuntimeProvisioningError: It cannot be done.
    """
    root = work.root
    former = read_marker(root)
    ours = former.ours if former else not is_present(root / "pyvenv.cfg")
    wanted = wanted_requirements(ours=ours, system=work.host.system)
    check_unused(root)
    worked = former.version if former else ""
    _mark(root, Marker("installing", ours, wanted.name, worked))
    try:
        binary = _install_and_test(work, wanted, former, ours=ours)
    except BaseException:
        if former is not None and worked:
            _keep_former(root, former)
        raise
    if ours:
        exclude_from_backups(root)
    _mark(root, Marker("complete", ours, wanted.name, installed_version(binary) or ""))
    return binary.resolve()


def _install_and_test(
    work: Work, wanted: Requirements, former: Marker | None, *, ours: bool
) -> Path:
    """Return the binary of an installation that has passed its test."""
    python = _ensure_python(work, ours=ours)
    with _explained_marks(work.root):
        forget_unreadable(python)
    work.report.say("resolving packages")
    work.run_uv(
        "pip-install",
        *("pip", "install", "--python", python_binary(work.root)),
        *_mending(work.root, python, former, ours=ours),
        *wanted.arguments,
        directory=work.root,
    )
    binary = server_binary(work.root)
    if not runs_here(work.root):
        raise NotFoundAfterInstallError(work.root)
    work.report.say("testing vllm-mlx")
    _check_installed(work.root, wanted, python, work.report)
    if ours:
        remove_former_packages(work.root, python)
    return binary


def _mending(root: Path, python: Python, former: Marker | None, *, ours: bool) -> list[str]:
    """Return what makes uv look behind metadata: killed installs left it, or the folder has moved.

    Or files were lost, as to a program that cleans up. Packages of CAR's that are whole keep their
    versions.
    """
    if ours and former is not None and former.state == "installing":
        return ["--reinstall"]
    broken = broken_packages(python)
    if not runs_here(root):
        broken.append("vllm-mlx")
    return [f"--reinstall-package={name}" for name in broken]


def _check_installed(root: Path, wanted: Requirements, python: Python, report: Reporter) -> None:
    """Test an installation: a locked one file by file, any other by importing the server.

    uv has checked every byte of the locked set, so that all its files being there says more than
    an import, which would double the time of an installation; a Python that no server has been run
    with is tried, too.
    """
    if wanted.is_locked:
        check_locked(python)
    if not wanted.is_locked or python.version > PROVEN_PYTHON:
        check_imports(root, lambda _line: report.still())


def _ensure_python(work: Work, *, ours: bool) -> Python:
    """Return the environment's Python, making it anew where none of its version runs."""
    root = work.root
    python, former = probe_python(root), former_python(root)
    if python is not None and python.is_supported:
        if former in (None, "{}.{}".format(*python.version)):
            return python
    elif python is not None:
        if not ours:
            what = _unsupported_python(root, python)
            raise ProvisionError("venv", what, hint=f"move `{root}` away")
        former = None
    return _make_python(work, former)


def _make_python(work: Work, former: str | None) -> Python:
    """Make the environment with the first Python that can be had; a uv that hangs tries no other.

    Args:
        work: What to work with.
        former: The minor version that it was made for, None where any will do.
    """
    root, python = work.root, None
    failure = None
    for request in _python_requests(former, work.host):
        work.report.say("creating a virtual environment")
        options = ("--quiet", "--allow-existing", "--no-project", *request.options)
        try:
            work.run_uv(
                _VENV,
                *("venv", *options, "--python", request.version),
                root,
                directory=root.parent,
            )
        except ProvisionError as error:
            if NO_ANSWER in error.detail:
                raise
            failure = failure or error
            continue
        python = probe_python(root)
        if python is not None and python.is_supported:
            return python
    raise failure or ProvisionError(
        "venv",
        _unsupported_python(root, python)
        if python
        else f"uv created `{root}`, but its Python does not run",
        hint="run `uv python install 3.12` and try again",
    )


def _unsupported_python(root: Path, python: Python) -> str:
    return "`{}` has {}, but vllm-mlx needs {}.{} to {}.{}".format(
        root, python.description, *OLDEST_PYTHON, *NEWEST_PYTHON
    )


class _PythonRequest(NamedTuple):
    version: str
    options: tuple[str, ...] = ()


def _python_requests(former: str | None, host: Host) -> list[_PythonRequest]:
    """Return what to ask uv for, best first.

    On a Mac uv's own Python comes before those on PATH: conda and Homebrew upgrade theirs away from
    under an environment, and one for Intel or for both processors runs translated under Rosetta.

    Args:
        former: The minor version that the environment was made for: packages that CAR put there are
            in a folder of its name.
        host: The machine.
    """
    requests = [_PythonRequest(f"cpython=={former}.*")] if former else []
    if host.system == "darwin":
        requests.append(_PythonRequest(_MANAGED_MAC_PYTHON, ("--managed-python",)))
    return [*requests, _PythonRequest(_PROVEN_RANGE), _PythonRequest(_NEWER)]


def _without_apples_python(path: str) -> str:
    """Return a PATH without Apple's stub, which asks in a window to install developer tools."""
    folders = path.split(os.pathsep)
    return os.pathsep.join(f for f in folders if os.path.normpath(f) != _APPLE_STUBS)


def _keep_former(root: Path, former: Marker) -> None:
    """Put the mark back where an installation that failed has changed nothing.

    Args:
        root: The environment.
        former: Its mark; the version is that of the last install that worked.
    """
    python = probe_python(root)
    if python is None or installed_version(server_binary(root)) != former.version:
        return
    if broken_packages(python):
        return
    try:
        check_imports(root)
    except ProvisionError:
        return
    with suppress(OSError):  # such as a full disk, of which the failure itself tells
        write_marker(root, former._replace(state="complete"))


def _mark(root: Path, marker: Marker) -> None:
    with _explained_marks(root):
        write_marker(root, marker)


@contextmanager
def _explained_marks(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ProvisionError(
            "mark", str(error), hint=f"make `{root}` writable for you and free some disk space"
        ) from error
