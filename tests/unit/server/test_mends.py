"""Mends of the server's installation: applied at import, aside where the code is unknown."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from langchain_car_vllm.server.supervisor.diagnosis import diagnose
from langchain_car_vllm.server.supervisor.mends.catalogue import MENDS
from langchain_car_vllm.server.supervisor.mends.importing import MendFinder
from langchain_car_vllm.server.supervisor.mends.mend import Mend, UnknownCodeError, find


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of somebody else's that can be imported."""
    (tmp_path / "foreign_code.py").write_text("def answer(question): return 41\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "foreign_code"
    sys.modules.pop("foreign_code", None)


def imported(module: str, record: Path, *mends: Mend) -> object:
    finder = MendFinder(mends, str(record))
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module(module)
    finally:
        sys.meta_path.remove(finder)


def improve(module: object) -> None:
    find(module, "answer", "question")
    module.answer = lambda question: 42


def test_mends_are_applied_and_recorded(module: str, tmp_path: Path, capfd: pytest.CaptureFixture):
    """The record names each mend and its state; one that does not fit leaves the code as it was."""

    def unknown(module: object) -> None:
        find(module, "answer", "colour")
        pytest.fail("it went on")

    def broken(module: object) -> None:
        raise KeyError("x")

    mends = [
        Mend("good", module, "1", improve),
        Mend("unknown", module, "1", unknown),
        Mend("broken", module, "1", broken),
        Mend("idle", module, "1", lambda module: "no need"),
        Mend("later", "another_module", "1", improve),
    ]
    record = tmp_path / "mends.json"
    found = imported(module, record, *mends)
    assert found.answer("?") == 42
    states = {name: s["state"] for name, s in json.loads(record.read_text()).items()}
    assert states == {
        "good": "applied",
        "unknown": "stepped aside",
        "broken": "failed",
        "idle": "not needed",
        "later": "not imported",
    }
    said = capfd.readouterr().err
    assert "the mend `unknown` stepped aside: foreign_code.answer takes no colour" in said
    assert "the mend `broken` failed: KeyError" in said
    assert "good" not in said


def test_wrong_results_are_refused(module: str, tmp_path: Path):
    """Where results would be wrong without a mend the import fails, and the verdict says why."""

    def unknown(module: object) -> None:
        find(module, "answer", "colour")

    mends = [
        Mend("needed", module, "1", unknown, needed_for="reranker models"),
        Mend("other", module, "1", improve),
    ]
    record = tmp_path / "mends.json"
    with pytest.raises(NotImplementedError) as caught:
        imported(module, record, *mends)
    assert json.loads(record.read_text())["needed"]["state"] == "stepped aside"
    log = tmp_path / "server.log"
    log.write_text(f"Traceback (most recent call last):\nNotImplementedError: {caught.value}\n")
    found = diagnose(1, log)
    assert found.unsupported
    assert not found.is_retryable
    assert "car-vllm install --upgrade" in (found.hint or "")


def test_names_are_unique_and_say_what_for():
    """The record and the log tell mends apart by name."""
    names = [mend.name for mend in MENDS]
    assert len(set(names)) == len(names)
    assert all(mend.apply.__doc__ and mend.tested for mend in MENDS)


@pytest.mark.parametrize("mend", MENDS, ids=lambda mend: mend.name)
def test_no_mend_touches_code_that_it_does_not_know(mend: Mend):
    """On a module that holds nothing it steps aside, whatever it looks for."""

    class Empty:
        __name__ = "empty"

    empty = Empty()
    with pytest.raises(UnknownCodeError):
        mend.apply(empty)
    assert vars(empty) == {}
