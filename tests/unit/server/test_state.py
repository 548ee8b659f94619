"""What crosses from the supervisor to its clients, and what the log of a dead server tells."""

import json
import pickle
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_car_vllm import errors
from langchain_car_vllm.endpoint import Parsers, Serving
from langchain_car_vllm.server.client.outcome import verdict
from langchain_car_vllm.server.idle import idle_deadline
from langchain_car_vllm.server.process import Identity
from langchain_car_vllm.server.state import (
    State,
    decode_error,
    encode_error,
    read_any_state,
    read_state,
    write_state,
)
from langchain_car_vllm.server.supervisor.diagnosis import diagnose

ERRORS = [
    errors.UvMissingError(("PATH", "~/.local/bin")),
    errors.ProvisionError("venv", "no space", hint="free some"),
    errors.NotFoundAfterInstallError(Path("/x")),
    errors.UnknownModelError("x", "no such", nearest=("y", "z")),
    errors.StateDirectoryError(Path("/x"), "full"),
    errors.ServerStartError("died", exit_code=3, log_tail=("a", "b"), log_path=Path("/log")),
    errors.ServerCrashedError("died", ending="SIGABRT", exit_code=-6),
    errors.InsufficientMemoryError("too big"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_error_keeps_type_and_fields(error: errors.CarVllmError):
    """An error means the same behind the state file and behind pickle as where it was raised."""
    crossed = decode_error(json.loads(json.dumps(encode_error(error))))
    for copy in (crossed, pickle.loads(pickle.dumps(error))):
        assert type(copy) is type(error)
        assert str(copy) == str(error)
        assert copy.__dict__ == error.__dict__


def test_unknown_error_type_is_still_an_error():
    """A supervisor of another version may know more errors."""
    found = decode_error({"type": "NewError", "fields": {**errors.ServerError("x").__dict__}})
    assert type(found) is errors.ServerStartError
    assert str(found) == "x"


FIELDS = st.sampled_from(
    ["message", "hint", "log_tail", "log_path", "path", "exit_code", "reason", "clients", "new"]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
KINDS = [name for name in errors.__all__ if name in vars(errors)]


@settings(max_examples=100)
@given(kind=st.sampled_from(KINDS) | ODD, given_fields=st.dictionaries(FIELDS, ODD) | ODD, odd=ODD)
def test_an_error_of_any_release_can_be_shown(kind, given_fields, odd):
    """What it has more, less or otherwise ends no call in an error of Python's own."""
    for encoded in ({"type": kind, "fields": given_fields}, odd):
        found = decode_error(encoded)
        assert isinstance(found, errors.CarVllmError)
        assert str(found)
        assert isinstance(pickle.loads(pickle.dumps(found)), errors.CarVllmError)
        if isinstance(found, errors.ServerError):
            assert isinstance(found.log_tail, tuple)
            assert found.log_path is None or isinstance(found.log_path, Path)


def test_an_error_that_a_newer_release_has_by_itself_can_be_shown():
    """One that is not about the server has no log."""
    found = decode_error({"type": "NewError", "fields": {"message": "new", "hint": "do it"}})
    assert type(found) is errors.ServerStartError
    assert str(found) == "new\n\nhint: do it"


@pytest.mark.parametrize("odd", [-1, 10**400, "x", [1], {"a": 1}, True, None], ids=str)
@pytest.mark.parametrize("name", [field.name for field in fields(State)])
def test_a_field_of_another_kind_is_no_state_or_one_that_can_be_used(tmp_path: Path, name, odd):
    """No reader trips over it later: it is refused as a whole, or the field does for what it is."""
    path = tmp_path / "state.json"
    write_state(path, EXAMPLE)
    stored = json.loads(path.read_bytes())
    path.write_text(json.dumps({**stored, {"served_name": "name"}.get(name, name): odd}))
    state = read_state(path)
    if state is None:
        return
    endpoint = state.endpoint(tmp_path / "log")
    idle_deadline([], state.ready_at or 0.0, state.keep_alive)
    for supervised in (True, False):
        verdict(state, endpoint, supervised=supervised)
    if state.error is not None:
        assert str(decode_error(state.error))
    assert state.supervisor.tag


EXAMPLE = State(
    generation=1,
    phase="ready",
    host="h",
    machine="i",
    boot_id="b",
    served_name="n",
    source="s",
    supervisor=Identity(1, "m"),
    port=1,
    api_key="k",
    ready_at=1.0,
    crashes=(1.0, 2.0),
    serving=Serving(engine="batched", parsers=Parsers("qwen"), media=("image",)),
)


def test_state_round_trip(tmp_path: Path):
    """What is written is what is read, and no torn file is ever seen."""
    write_state(tmp_path / "state.json", EXAMPLE)
    assert read_state(tmp_path / "state.json") == EXAMPLE
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_every_fact_reaches_the_endpoint(tmp_path: Path):
    """A fact of `Serving` crosses the file and becomes one of the endpoint, whichever it is."""
    samples = {
        "str": "x",
        "bool": False,
        "int": 7,
        "tuple": ("image", "audio"),
        "Parsers": Parsers("a", "b"),
    }
    kinds = {fact.name: str(fact.type).partition(" | ")[0] for fact in fields(Serving)}
    serving = Serving(**{name: samples[_kind(kind)] for name, kind in kinds.items()})
    state = State(1, "ready", "h", "i", "b", "n", "s", Identity(1, "m"), serving=serving)
    write_state(tmp_path / "state.json", state)
    read = read_state(tmp_path / "state.json")
    assert read == state
    assert read.endpoint(tmp_path).facts() == serving.facts()


def _kind(annotation: str) -> str:
    name = annotation.removeprefix("langchain_car_vllm.endpoint.").partition("[")[0]
    return name.removeprefix("<class '").removesuffix("'>")


# What version 0.1.0 wrote of a ready server.
FORMER = {
    "generation": 3,
    "phase": "ready",
    "host": "h",
    "machine": "i",
    "boot_id": "b",
    "name": "n",
    "source": "s",
    "supervisor": {"pid": 1, "marker": "m"},
    "server": {"pid": 2, "marker": "k"},
    "port": 50123,
    "api_key": "k",
    "binary": "/bin/vllm-mlx",
    "version": "0.6.0",
    "engine": "batched",
    "tool_call_parser": "qwen",
    "reasoning_parser": None,
    "multimodal": False,
    "context_window": 4096,
    "ready_at": 1.5,
    "detail": "",
    "done": None,
    "total": None,
    "reservation": 7,
    "blocked_by": {},
    "shortfall": 0,
    "crashes": [],
    "reason": None,
    "previous": "idle",
    "error": None,
    "protocol": 1,
}


def test_the_state_of_the_version_before_is_understood(tmp_path: Path):
    """Its running servers go on: every fact is found where it was, new ones are unknown."""
    path = tmp_path / "state.json"
    path.write_text(json.dumps(FORMER))
    state = read_state(path)
    assert state is not None
    assert state.serving == Serving(
        version="0.6.0",
        engine="batched",
        parsers=Parsers("qwen", None),
        multimodal=False,
        context_window=4096,
    )
    assert state.endpoint(tmp_path).engine == "batched"
    write_state(path, state)
    assert json.loads(path.read_text()).items() >= FORMER.items()


@pytest.mark.parametrize("pid", [0, -1, -(10**30)])
@pytest.mark.parametrize("name", ["supervisor", "server"])
def test_a_number_of_no_process_is_no_state(tmp_path: Path, name: str, pid: int):
    """A signal to it would go to a group, or to everybody."""
    path = tmp_path / "state.json"
    write_state(path, EXAMPLE)
    stored = json.loads(path.read_bytes())
    path.write_text(json.dumps({**stored, name: {"pid": pid, "marker": "m"}}))
    assert read_any_state(path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"protocol": 0}'])
def test_unreadable_state_is_none(tmp_path: Path, text: str):
    """A foreign or damaged file is no state."""
    (tmp_path / "state.json").write_text(text)
    assert read_state(tmp_path / "state.json") is None
    assert read_state(tmp_path / "missing.json") is None


DEATHS = {
    "unsupported model": (
        1,
        "Traceback (most recent call last):\nValueError: Model type x not supported.",
        "exit code 1: ValueError: Model type x not supported.",
        "upgrade",
    ),
    "bad flag": (
        2,
        "usage: vllm-mlx [-h]\nvllm-mlx: error: unrecognized arguments: --nope",
        "exit code 2: vllm-mlx: error: unrecognized arguments: --nope",
        "server_args",
    ),
    "bad value": (
        2,
        "usage: vllm-mlx serve [-h]\n    [--x ImportError]\n    model\n"
        + (BAD_VALUE := "vllm-mlx serve: error: argument --max-num-seqs: invalid int value: 'x'"),
        f"exit code 2: {BAD_VALUE}",
        "the value of `--max-num-seqs`",
    ),
    "a value of a later version": (
        2,
        "vllm-mlx: error: argument --tool-call-parser: invalid choice: 'x'",
        "exit code 2: vllm-mlx: error: argument --tool-call-parser: invalid choice: 'x'",
        "upgrade",
    ),
    "no value": (
        2,
        "usage: vllm-mlx [-h]\nvllm-mlx: error: argument -m/--model: expected one argument",
        "exit code 2: vllm-mlx: error: argument -m/--model: expected one argument",
        "the value of `-m`",
    ),
    "metal memory": (
        -6,
        "libc++abi: terminating\n[METAL] Command buffer execution failed: Insufficient Memory",
        "killed by SIGABRT",
        "memory",
    ),
    "gated repository": (
        1,
        "huggingface_hub.errors.GatedRepoError: 401 Client Error.",
        "exit code 1: huggingface_hub.errors.GatedRepoError: 401 Client Error.",
        "HF_TOKEN",
    ),
    "killed": (-9, "INFO: fine so far", "killed by SIGKILL", "memory"),
    "a name that a Mac cannot look up": (
        1,
        "OSError: [Errno 8] nodename nor servname provided, or not known",
        "exit code 1: OSError: [Errno 8] nodename nor servname provided, or not known",
        "go online",
    ),
    "disk": (
        1,
        "OSError: [Errno 28] No space left on device",
        "exit code 1: OSError: [Errno 28] No space left on device",
        "disk",
    ),
    "a Mac's quota": (
        1,
        "OSError: [Errno 69] Disc quota exceeded",
        "exit code 1: OSError: [Errno 69] Disc quota exceeded",
        "disk",
    ),
    "weights of another form": (
        1,
        "ValueError: Received 224 parameters not in model: \nmodel.layers.0.q_proj.qweight.",
        "exit code 1: ValueError: Received 224 parameters not in model:",
        "MLX conversion",
    ),
    "missing weights": (
        1,
        "ValueError: Missing 1 parameters: \nmodel.norm.weight.",
        "exit code 1: ValueError: Missing 1 parameters:",
        "MLX conversion",
    ),
    "damaged install": (
        1,
        "ModuleNotFoundError: No module named 'mlx'",
        "exit code 1: ModuleNotFoundError: No module named 'mlx'",
        "repair",
    ),
}


@pytest.mark.parametrize("death", DEATHS)
def test_death_is_diagnosed(tmp_path: Path, death: str):
    """Ending, last error and hint come from exit code and log."""
    code, text, sentence, hint = DEATHS[death]
    log = tmp_path / "server.log"
    log.write_text(text)
    found = diagnose(code, log)
    assert found.sentence == sentence
    assert hint in (found.hint or "")
    assert not any("usage:" in line or "[-" in line for line in found.tail)


def test_a_signature_that_a_mac_does_not_take_is_no_want_of_memory(tmp_path: Path):
    """The system kills such a program before its first word."""
    log = tmp_path / "server.log"
    for text, hint in (("", "signature"), ("\n", "signature"), ("loading", "smaller model")):
        log.write_text(text)
        assert hint in (diagnose(-9, log, "darwin").hint or "")
        assert "memory" in (diagnose(-9, log, "linux").hint or "")


def test_lost_port_is_told_by_the_text(tmp_path: Path):
    """uvicorn's exit code for it changed over time, its words did not."""
    log = tmp_path / "server.log"
    for number in (48, 98):
        log.write_text(
            f"ERROR:    [Errno {number}] error while attempting to bind on address "
            "('127.0.0.1', 5): address already in use"
        )
        assert diagnose(3, log).port_taken
        assert diagnose(1, log).port_taken


def test_log_that_was_never_written(tmp_path: Path):
    """No log is no obstacle."""
    assert diagnose(None, tmp_path / "none").sentence == "it ended"
