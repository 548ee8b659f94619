"""Every environment variable that the package reads, declared once.

A new one is one line below: its kind, name, meaning and default. The tables of the documentation
are written from here by `make variables`. An empty variable counts as unset.

This is the only module that touches `os.environ`; `models/downloader.py` and
`server/supervisor/launch.py`, which run alone in the server's Python, read what is handed to them.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from langchain_car_vllm.durations import seconds
from langchain_car_vllm.errors import ConfigurationError
from langchain_car_vllm.support.printable import alternatives

T = TypeVar("T")
Group = Literal["own", "shared", "internal"]

_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})


def is_off(value: str) -> bool:
    """Return whether a text says no."""
    return value.strip().lower() in _OFF


class Variable(NamedTuple, Generic[T]):
    """One environment variable.

    Attributes:
        name: As the user writes it.
        meaning: One line for the documentation.
        default: What an unset one stands for.
        parse: Makes a value of the text; raises ValueError saying what is expected.
        default_text: The default for the documentation.
        group: `own` is a setting of this package, `shared` one that other programs read too,
            `internal` passes between processes of the package.
        is_secret: Whether its value may not be shown.
    """

    name: str
    meaning: str
    default: T
    parse: Callable[[str], T]
    default_text: str = ""
    group: Group = "own"
    is_secret: bool = False

    def text(self) -> str | None:
        """Return the variable as it is written, None where it is unset or empty."""
        return os.environ.get(self.name) or None

    def read(self) -> T:
        """Return the variable's value.

        Raises:
            ConfigurationError: It is set to what cannot work.
        """
        return self.value_of(self.text())

    def value_of(self, text: str | None) -> T:
        """Return what a text of the variable stands for; none stands for the default.

        Raises:
            ConfigurationError: It cannot work.
        """
        if text is None:
            return self.default
        try:
            return self.parse(text)
        except ConfigurationError:
            raise
        except ValueError as error:
            shown = "" if self.is_secret else f", not `{text}`"
            raise ConfigurationError(
                f"{self.name} must be {error}{shown}",
                hint=f"unset or correct it: {self.meaning}",
            ) from None


VARIABLES: dict[str, "Variable[object]"] = {}
"""All of them by name."""


def _declare(variable: Variable[T]) -> Variable[T]:
    VARIABLES[variable.name] = variable  # type: ignore[assignment]
    return variable


def _text(
    name: str, meaning: str, *, group: Group = "own", is_secret: bool = False
) -> Variable[str | None]:
    return _declare(Variable(name, meaning, None, str, "", group, is_secret))


def _program(name: str, meaning: str, default_text: str) -> Variable[str | None]:
    # Files of settings, unlike shells, do not expand a `~`.
    return _declare(Variable(name, meaning, None, os.path.expanduser, default_text))


def _folder(name: str, meaning: str, default_text: str) -> Variable[Path | None]:
    return _declare(Variable(name, meaning, None, _absolute_path, default_text))


def _switch(name: str, meaning: str) -> Variable[bool]:
    return _declare(Variable(name, meaning, True, _yes_or_no, "1"))  # noqa: FBT003


def _number(name: str, meaning: str, default: float) -> Variable[float]:
    return _declare(Variable(name, meaning, default, _natural_number, f"{default:g}"))


def _gigabytes(name: str, meaning: str, default_text: str) -> Variable[float | None]:
    return _declare(Variable(name, meaning, None, _positive_number, default_text))


def _duration(name: str, meaning: str, default: str) -> Variable[str]:
    def parse(text: str) -> str:
        seconds(text, name, lowest=-1)
        return text

    return _declare(Variable(name, meaning, default, parse, default))


def _choice(name: str, meaning: str, choices: tuple[str, ...]) -> Variable[str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(alternatives(choices))
        return text.lower()

    return _declare(Variable(name, meaning, choices[0], parse, choices[0]))


_shared_text = partial(_text, group="shared")
_internal_text = partial(_text, group="internal")


def _absolute_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or path == path.parent:
        raise ValueError("an absolute path of a folder below `/`")
    return path


def _yes_or_no(text: str) -> bool:
    if text.strip().lower() in _ON | _OFF:
        return not is_off(text)
    raise ValueError("`1` or `0`")


def _natural_number(text: str) -> float:
    number = _finite(text)
    if number is None or number < 0:
        raise ValueError("a number, 0 or more")
    return number


def _positive_number(text: str) -> float:
    number = _finite(text)
    if number is None or number <= 0:
        raise ValueError("a number above 0")
    return number


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


CAR_VLLM_MLX_BIN = _program(
    "CAR_VLLM_MLX_BIN",
    "use this `vllm-mlx`, whatever its version; ignored if it is not a file",
    "the first one found",
)
CAR_HOME = _folder(
    "CAR_HOME", "where run state and logs go; an absolute path on a local disk", "`~/.car`"
)
CAR_VLLM_MLX_RUNTIME = _folder(
    "CAR_VLLM_MLX_RUNTIME",
    "where `vllm-mlx` is installed; an absolute path on a disk that lets programs run",
    "`~/.car/visual-runtime`, or `$CAR_HOME/visual-runtime` if that cannot be created",
)
CAR_VLLM_MLX_BASE_URL = _text(
    "CAR_VLLM_MLX_BASE_URL", "a server that somebody else runs; nothing is started or stopped then"
)
CAR_VLLM_MLX_API_KEY = _text("CAR_VLLM_MLX_API_KEY", "the key of that server", is_secret=True)
CAR_VLLM_MLX_KEEP_ALIVE = _duration(
    "CAR_VLLM_MLX_KEEP_ALIVE",
    "how long a server keeps running after its last request, such as `30m`, `0` or `-1` for "
    "forever",
    "10m",
)
CAR_VLLM_MLX_AUTO_INSTALL = _switch(
    "CAR_VLLM_MLX_AUTO_INSTALL", "`0` forbids installing `vllm-mlx`"
)
CAR_VLLM_MLX_SPEC = _text(
    "CAR_VLLM_MLX_SPEC",
    "install this requirement, such as `vllm-mlx==0.6.0`, instead of the locked versions",
)
CAR_VLLM_MLX_MEMORY_GB = _gigabytes(
    "CAR_VLLM_MLX_MEMORY_GB",
    "memory in GB that all servers together may take",
    "three quarters of the machine's memory, on a Mac at most what Metal recommends",
)
CAR_VLLM_MLX_ADMISSION = _switch(
    "CAR_VLLM_MLX_ADMISSION",
    "`0` sends each request at once; otherwise it waits until the memory set aside for answers "
    "has room for it. With too many requests a server may run out of memory",
)
CAR_VLLM_MLX_MAX_QUEUE = _number(
    "CAR_VLLM_MLX_MAX_QUEUE",
    "how many requests may wait for a server before others are refused; `0` for any number",
    0,
)
CAR_VLLM_MLX_WIRED = _choice(
    "CAR_VLLM_MLX_WIRED",
    "wires weights, so that macOS never moves them out of memory: `auto` those of very large "
    "models, which are slow otherwise, `1` all, `0` none",
    ("auto", "0", "1"),
)
CAR_VLLM_MLX_DOWNLOAD_STALL = _number(
    "CAR_VLLM_MLX_DOWNLOAD_STALL",
    "seconds without a sign of life before an install or a download is given up; `0` waits forever",
    180,
)
CAR_VLLM_MLX_LOAD_STALL = _number(
    "CAR_VLLM_MLX_LOAD_STALL",
    "seconds without a sign of life before a load, or the test of an install, is given up; "
    "`0` waits forever",
    300,
)
CAR_VLLM_MLX_PROGRESS = _switch(
    "CAR_VLLM_MLX_PROGRESS", "`0` hides the progress of installs, downloads and loads"
)
CAR_VLLM_MLX_CAFFEINATE = _switch(
    "CAR_VLLM_MLX_CAFFEINATE", "`0` lets a Mac fall asleep while it downloads, loads or answers"
)
CAR_UV = _program(
    "CAR_UV", "the `uv` to install with; ignored if it does not run", "the first one found"
)
CAR_VLLM_PYTHON = _program(
    "CAR_VLLM_PYTHON",
    "the Python that runs the supervisor, for programs that are frozen or embedded",
    "the program's own",
)

HF_HOME = _shared_text("HF_HOME", "the Hub's folder, with models and the token")
HF_HUB_CACHE = _shared_text("HF_HUB_CACHE", "the Hub's folder of models")
HUGGINGFACE_HUB_CACHE = _shared_text("HUGGINGFACE_HUB_CACHE", "the older name of `HF_HUB_CACHE`")
HF_TOKEN = _shared_text("HF_TOKEN", "your access token for the Hub", is_secret=True)
HUGGING_FACE_HUB_TOKEN = _shared_text(
    "HUGGING_FACE_HUB_TOKEN", "the older name of `HF_TOKEN`", is_secret=True
)
HF_TOKEN_PATH = _shared_text("HF_TOKEN_PATH", "the file that holds the token")
HF_HUB_DISABLE_IMPLICIT_TOKEN = _shared_text(
    "HF_HUB_DISABLE_IMPLICIT_TOKEN", "`1` does not send the token"
)
HF_ENDPOINT = _shared_text("HF_ENDPOINT", "the address of the Hub")
HF_HUB_OFFLINE = _shared_text("HF_HUB_OFFLINE", "`1` forbids asking the Hub")
TRANSFORMERS_OFFLINE = _shared_text("TRANSFORMERS_OFFLINE", "`1` forbids asking the Hub")
HF_XET_HIGH_PERFORMANCE = _shared_text(
    "HF_XET_HIGH_PERFORMANCE", "`1` downloads with all cores, but does not resume inside a file"
)
UV_OFFLINE = _shared_text("UV_OFFLINE", "`1` keeps uv off the network")
UV_TOOL_BIN_DIR = _shared_text("UV_TOOL_BIN_DIR", "where `uv tool install` puts its links")
UV_TOOL_DIR = _shared_text("UV_TOOL_DIR", "where `uv tool install` puts its environments")
XDG_BIN_HOME = _shared_text("XDG_BIN_HOME", "where the user's programs are")
XDG_DATA_HOME = _shared_text("XDG_DATA_HOME", "where uv keeps its tools")
XDG_CONFIG_HOME = _shared_text("XDG_CONFIG_HOME", "where the user's settings are")
XDG_CACHE_HOME = _shared_text("XDG_CACHE_HOME", "where the Hub keeps its cache")
NO_COLOR = _shared_text("NO_COLOR", "any text turns colours off")
SSL_CERT_FILE = _shared_text("SSL_CERT_FILE", "certificates to trust in addition to the system's")
HOME = _shared_text("HOME", "the user's folder")
SUDO_UID = _shared_text(
    "SUDO_UID", "the user who called `sudo`; root must not make folders for them"
)
PATH = _shared_text("PATH", "the folders that are searched for programs; relative ones are not")

CAR_VLLM_LAUNCH_KEY = _internal_text("CAR_VLLM_LAUNCH_KEY", "the server's key", is_secret=True)
CAR_VLLM_LAUNCH_PIPE = _internal_text("CAR_VLLM_LAUNCH_PIPE", "ends when the supervisor does")
CAR_VLLM_LAUNCH_PARENT = _internal_text("CAR_VLLM_LAUNCH_PARENT", "the supervisor's process id")
CAR_VLLM_LAUNCH_KERNELS = _internal_text("CAR_VLLM_LAUNCH_KERNELS", "where MLX compiles")
CAR_VLLM_LAUNCH_MEMORY = _internal_text("CAR_VLLM_LAUNCH_MEMORY", "what was set aside, in bytes")
CAR_VLLM_LAUNCH_WIRED_BY_OTHERS = _internal_text(
    "CAR_VLLM_LAUNCH_WIRED_BY_OTHERS", "what other servers wire, in bytes"
)
CAR_VLLM_LAUNCH_ADAPTER = _internal_text("CAR_VLLM_LAUNCH_ADAPTER", "the folder of an adapter")
CAR_VLLM_LAUNCH_TEXT_ONLY = _internal_text(
    "CAR_VLLM_LAUNCH_TEXT_ONLY", "1 for a model without media"
)
CAR_VLLM_LAUNCH_TEMPLATE_SECONDS = _internal_text(
    "CAR_VLLM_LAUNCH_TEMPLATE_SECONDS", "how long a chat template may take"
)
CAR_VLLM_DOWNLOAD_REVISION = _internal_text("CAR_VLLM_DOWNLOAD_REVISION", "what to download")
CAR_VLLM_DOWNLOAD_TRUST = _internal_text("CAR_VLLM_DOWNLOAD_TRUST", "1 to fetch code too")
CAR_VLLM_DOWNLOAD_UPDATE = _internal_text(
    "CAR_VLLM_DOWNLOAD_UPDATE", "1 where the Hub must have been asked for what is newer"
)
CAR_VLLM_DOWNLOAD_OWN_CODE = _internal_text(
    "CAR_VLLM_DOWNLOAD_OWN_CODE", "model types whose code in a repository is never asked for"
)


def is_hub_flag_on(variable: Variable[str | None]) -> bool:
    """Return whether a variable is set to what the Hub's own client takes for yes."""
    return (variable.text() or "").lower() in _ON


def check_variables() -> None:
    """Read every setting once.

    Raises:
        ConfigurationError: One is set to what cannot work.
    """
    for error in refused_variables():
        raise error


def refused_variables() -> Iterator[ConfigurationError]:
    """Yield what is wrong with each variable that is set to what cannot work."""
    for variable in VARIABLES.values():
        try:
            variable.read()
        except ConfigurationError as error:
            yield error


def inherited_environment() -> dict[str, str]:
    """Return the variables of this process, to build a child's environment from."""
    return dict(os.environ)


def program_folders() -> list[str]:
    """Return the folders of PATH that are named from the root on.

    Any other, such as the empty one that `PATH=$PATH:` ends in, is whatever folder one is in, and
    that may be a clone which brings programs of its own.
    """
    return [f for f in (PATH.read() or os.defpath).split(os.pathsep) if f.startswith(os.sep)]


def find_program(name: str) -> str | None:
    """Return a program on PATH, None where there is none; a path is returned as it is."""
    if os.sep in name:
        return name
    return shutil.which(name, path=os.pathsep.join(program_folders()))


def adopt(values: Mapping[str, str]) -> None:
    """Set variables of this process and of its children to come."""
    os.environ.update(values)


@contextmanager
def overridden(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for a while."""
    former = {name: os.environ.get(name) for name in values}
    adopt(values)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
