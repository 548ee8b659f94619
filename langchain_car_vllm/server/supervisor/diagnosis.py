"""What a dead server's last words mean. Pure but for reading the log."""

import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from langchain_car_vllm.models.download_diagnosis import log_tail
from langchain_car_vllm.runtime.mounts import ELSEWHERE
from langchain_car_vllm.server.supervisor.gpu_verdicts import MetalVerdict, find_verdict

_TAIL_BYTES = 64 * 1024
_TAIL_LINES = 12
_NOISE = re.compile(r"^\s*$|^\s+File \"|^Traceback |^\s+\^+\s*$|^\s+(?:return|raise|await) ")
_VERDICT = re.compile(r"^(?:[\w.]+(?:Error|Exception|Exit|Interrupt)\b.*|Error: .*|.*error: .*)$")
# How `argparse` tells what it does not take: first all that it does.
_USAGE = re.compile(r"^usage: .*\n(?:[ \t]+.*\n)*", re.MULTILINE)
_ARGUMENT = re.compile(r"error: argument (-[\w-]+)[^:\n]*: (?!invalid choice)")
_PORT_TAKEN = re.compile(r"\[Errno (?:48|98)\].*(?:bind|in use)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a server died.

    Attributes:
        ending: How it ended, such as `exit code 1` or `SIGKILL`.
        verdict: The last error line of its log, empty where it left none.
        hint: What to do about it, None where the log is all there is.
        tail: The last lines of this start's log.
        port_taken: Whether somebody else listened on its port.
        metal: What the GPU's own failure means, None for another one.
        unsupported: Whether this version cannot serve this model.
    """

    ending: str
    verdict: str
    hint: str | None
    tail: tuple[str, ...]
    port_taken: bool = False
    metal: MetalVerdict | None = None
    unsupported: bool = False

    @property
    def sentence(self) -> str:
        """One line: how it ended and its last error."""
        return f"{self.ending}: {self.verdict}" if self.verdict else self.ending

    @property
    def out_of_memory(self) -> bool:
        """Whether memory ran out."""
        return self.metal is not None and self.metal.is_about_memory

    @property
    def is_retryable(self) -> bool:
        """Whether the request that it died of may be sent once more."""
        return not self.unsupported and (self.metal is None or self.metal.is_retryable)


def diagnose(exit_code: int | None, log: Path, platform: str = sys.platform) -> Diagnosis:
    """Read the log of a server that ended.

    Args:
        exit_code: As `Popen.returncode` gives it, None where it is not known.
        log: The log of this start alone.
        platform: As `sys.platform` says.
    """
    text = re.sub(r"[\r\n]+", "\n", log_tail(log, _TAIL_BYTES).strip("\r\n"))
    text = _USAGE.sub("", text)
    lines = text.split("\n")
    verdicts = [line.strip() for line in lines if _VERDICT.match(line.strip())]
    verdict = verdicts[-1] if verdicts else ""
    metal = find_verdict(text)
    unsupported = "not supported" in verdict and "odel" in verdict
    return Diagnosis(
        ending=_ending(exit_code),
        verdict=verdict,
        hint=_hint(text, exit_code, platform, metal=metal, unsupported=unsupported),
        tail=tuple(line for line in lines if not _NOISE.match(line))[-_TAIL_LINES:],
        port_taken=_PORT_TAKEN.search(text) is not None,
        metal=metal,
        unsupported=unsupported,
    )


def _ending(exit_code: int | None) -> str:
    if exit_code is None:
        return "it ended"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


_HINTS = (
    (
        ("unrecognized arguments", "invalid choice"),
        "remove the flag from `server_args`, or upgrade with `car-vllm install --upgrade`",
    ),
    (
        ("gated repo", "GatedRepoError", "401 Client Error", "403 Client Error"),
        "accept the model's licence on the Hub and set HF_TOKEN",
    ),
    (
        ("No space left on device", "Disk quota exceeded", "Disc quota exceeded"),
        "free some disk space",
    ),
    (
        (
            *("not found in local cache", "LocalEntryNotFoundError"),
            *("Name or service not known", "nodename nor servname"),
        ),
        "the model is not on this machine and the Hub cannot be reached; go online once",
    ),
    (
        ("[Errno 24]", "Too many open files"),
        "raise the limit of open files with `ulimit -n 4096` before the program starts",
    ),
    (
        ("Exec format error", "Bad CPU type in executable"),
        "it is not a program for this machine: unset CAR_VLLM_MLX_BIN, or take it off PATH",
    ),
    (
        ("Error: what the first line of",),
        "its environment was moved or removed: install it again, or unset CAR_VLLM_MLX_BIN",
    ),
    (
        ("[Errno 1] Operation not permitted",),
        "allow the program that started this to read the files, in System Settings under Privacy",
    ),
    (
        ("parameters not in model", "ValueError: Missing ", "but received shape"),
        (
            "its weights are in a format other than MLX's, such as GPTQ or AWQ: choose an MLX "
            "conversion"
        ),
    ),
    (
        ("required positional argument",),
        "its `config.json` is incomplete: download the model again, or choose another conversion",
    ),
    (
        ("failed to map segment from shared object",),
        f"the disk of the install does not let programs run (noexec): {ELSEWHERE}",
    ),
    (
        (
            *("ModuleNotFoundError", "ImportError"),
            *("Library not loaded", "error while loading shared libraries"),
        ),
        "the install is damaged; repair it with `car-vllm install --upgrade`",
    ),
)


def _hint_of_words(text: str) -> str | None:
    if argument := _ARGUMENT.search(text):
        return f"correct the value of `{argument[1]}` in `server_args`"
    return next((hint for marks, hint in _HINTS if any(mark in text for mark in marks)), None)


def _hint(
    text: str,
    exit_code: int | None,
    platform: str,
    *,
    metal: MetalVerdict | None,
    unsupported: bool,
) -> str | None:
    if unsupported:
        return "upgrade with `car-vllm install --upgrade`, or choose another model"
    if metal is not None:
        return f"{metal.sentence}: {metal.cure}"
    if hint := _hint_of_words(text):
        return hint
    if exit_code == -signal.SIGKILL and platform == "darwin" and not text.strip():
        return (
            "macOS kills a program at once if it does not accept its signature: repair the "
            "install with `car-vllm install --upgrade`"
        )
    if exit_code == -signal.SIGKILL:
        return (
            "unless somebody killed it, the system did because memory ran out: try a smaller model"
        )
    return None
