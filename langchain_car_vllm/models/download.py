"""The download of a model: whether it may be, what is run, and how far it is.

Nothing is started here: whoever runs the child watches it.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from langchain_car_vllm.environment import (
    CAR_VLLM_DOWNLOAD_OWN_CODE,
    CAR_VLLM_DOWNLOAD_REVISION,
    CAR_VLLM_DOWNLOAD_TRUST,
    CAR_VLLM_DOWNLOAD_UPDATE,
    HF_HUB_OFFLINE,
    HF_XET_HIGH_PERFORMANCE,
    TRANSFORMERS_OFFLINE,
    is_hub_flag_on,
)
from langchain_car_vllm.errors import ModelDownloadError
from langchain_car_vllm.models.download_diagnosis import log_tail
from langchain_car_vllm.models.downloader import COMMIT
from langchain_car_vllm.models.families import family_facts, own_code_types
from langchain_car_vllm.models.hub_account import checked_endpoint
from langchain_car_vllm.models.lm_studio import lost_folders
from langchain_car_vllm.models.snapshot import (
    find_commit,
    listed_size,
    repository_folder,
    tree_listing,
    wanted_files,
)
from langchain_car_vllm.paths import RECONNECT, lost_disk
from langchain_car_vllm.runtime import interpreter_of
from langchain_car_vllm.runtime.console_scripts import console_script
from langchain_car_vllm.support.file_presence import entries_of

_SCRIPT = Path(__file__).with_name("downloader.py").read_text(encoding="utf-8")
_BLOB = re.compile(r"[\w\-]{1,128}", re.ASCII)


class DownloadCommand(NamedTuple):
    """A download as a child process.

    Attributes:
        program: A console script, to be run like `vllm-mlx` itself.
        arguments: Its arguments.
        environment: What is added to the user's environment.
    """

    program: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]

    def complete(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the child.

        Args:
            environment: The user's; a timeout of his own stays.
        """
        return {"HF_HUB_DOWNLOAD_TIMEOUT": "60", **environment, **self.environment}


def check_may_download(
    source: str, *, auto_pull: bool = True, purpose: Literal["model", "adapter", "update"] = "model"
) -> None:
    """Refuse a download that is not wanted, before anything is started.

    Args:
        source: The Hub repository.
        auto_pull: Whether the user lets models be downloaded.
        purpose: What is fetched; `update` is what is newer of a model that is here.

    Raises:
        ModelDownloadError: `auto_pull` is off, `HF_HUB_OFFLINE` is set, or the folder of models is
            a link that leads nowhere.
        ConfigurationError: `HF_ENDPOINT` is not an address.
    """
    seen = "".join(f" ({said})" for said in lost_folders()[:1])
    absent = f"`{source}` is not on this machine{seen}, and"
    instead = "or name the folder of an adapter"
    if not auto_pull:
        raise ModelDownloadError(
            f"{absent} `auto_pull=False` forbids the download",
            hint=f"leave out `auto_pull` once, {instead}"
            if purpose == "adapter"
            else f"run `car-vllm pull {source}`",
        )
    for variable in (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE):
        if not is_hub_flag_on(variable):
            continue
        name = variable.name
        if purpose == "update":
            raise ModelDownloadError(
                f"`{source}` cannot be updated: {name} forbids asking the Hub",
                hint=f"unset {name} once",
            )
        if purpose == "model":
            instead = "or choose a model that `car-vllm list` shows"
        raise ModelDownloadError(
            f"{absent} {name} forbids the download", hint=f"unset {name} once, {instead}"
        )
    folder = repository_folder(source)
    if folder is not None and (broken := lost_disk(folder)):
        raise ModelDownloadError(f"{absent} {broken}", hint=f"{RECONNECT}, or set HF_HOME")
    checked_endpoint()


def download_command(
    directory: Path,
    binary: Path,
    source: str,
    revision: str | None = None,
    *,
    trust: bool = False,
    update: bool = False,
) -> DownloadCommand:
    """Return the child that downloads a model through the runtime's `vllm-mlx download`.

    A partial file is kept and continued; see `langchain_car_vllm.models.downloader`.

    Args:
        directory: Where a script may be written that outlives this process.
        binary: The runtime's `vllm-mlx`.
        source: The Hub repository.
        revision: A branch, tag or commit; None is the default branch.
        trust: Whether the code that the model brings is fetched too, and may be used.
        update: Whether it fails where the Hub cannot be asked for a newer commit.

    Raises:
        ModelDownloadError: A revision is asked of a binary that cannot be given one.
    """
    arguments = ["download", source, *(["--mllm"] if family_facts(source).media else [])]
    # tqdm shows bytes on a terminal only, unless it believes that something else is above it.
    environment = {"TQDM_POSITION": "-1", "PYTHONUNBUFFERED": "1"}
    interpreter = interpreter_of(binary)
    if interpreter is None:
        if revision is not None:
            raise ModelDownloadError(
                f"`{binary}` is not a Python script, so it cannot be given a revision",
                hint=f"download `{source}` at `{revision}` yourself and name its directory as "
                "the model",
            )
        return DownloadCommand(binary, tuple(arguments), environment)
    script = directory / "downloader.py"
    script.write_text(console_script(interpreter, _SCRIPT), encoding="utf-8")
    script.chmod(0o700)
    if revision is not None:
        environment[CAR_VLLM_DOWNLOAD_REVISION.name] = revision
    environment[CAR_VLLM_DOWNLOAD_OWN_CODE.name] = ",".join(own_code_types())
    if update:
        environment[CAR_VLLM_DOWNLOAD_UPDATE.name] = "1"
    if trust:
        environment[CAR_VLLM_DOWNLOAD_TRUST.name] = "1"
    if not is_hub_flag_on(HF_XET_HIGH_PERFORMANCE):
        environment["HF_HUB_DISABLE_XET"] = "1"
    return DownloadCommand(script, (str(binary), *arguments), environment)


def measure_download(source: str, revision: str | None = None) -> tuple[int, int | None]:
    """Return how many bytes of a model are on the disk, and how many there will be.

    Counted in the Hub cache, since the child's own progress bars skip what it continues. The total
    is None until the Hub's listing has arrived.
    """
    folder = repository_folder(source)
    if folder is None:
        return 0, None
    blobs = folder / "blobs"
    commit = find_commit(source, revision)
    listing = tree_listing(folder, commit) if commit else None
    if commit is None or listing is None:
        return sum(map(_size, _matches(blobs, "*"))), None
    done = total = 0
    snapshot = folder / "snapshots" / commit
    for name in wanted_files(snapshot, listing):
        size = listed_size(listing[name]) or 0
        # Without symbolic links a whole file lies in the snapshot itself.
        parts = [snapshot / name, *_blobs(blobs, listing[name])]
        total += size
        done += min(size, max(map(_size, parts)))
    return done, total


def _blobs(folder: Path, entry: Mapping[str, Any]) -> list[Path]:
    """Return where a file's content may lie, whole and in part."""
    name = entry.get("lfs_sha256") or entry.get("blob_id")
    if not isinstance(name, str) or not _BLOB.fullmatch(name):
        return []
    return [folder / name, *_matches(folder, f"{name}*.incomplete")]


def _matches(folder: Path, pattern: str) -> list[Path]:
    with suppress(OSError):
        return entries_of(folder, pattern)
    return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def announced_commit(log: Path) -> str | None:
    """Return the commit that an update fetches, None before it is known."""
    lines = [line for line in log_tail(log).splitlines() if line.startswith(COMMIT)]
    return lines[-1].removeprefix(COMMIT).strip() if lines else None
