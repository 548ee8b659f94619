"""The records of clients, on the disks that a `CAR_HOME` may lie on."""

import os
import time
from pathlib import Path

import pytest

from langchain_car_vllm.server.client_record import read_uses, touch_record, write_record
from langchain_car_vllm.server.supervisor.usage import ClientRecords

_1980, _STEP = 315_532_800 * 10**9, 10**7


@pytest.fixture(params=["any", "exfat"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that keeps all times, and one that keeps none before 1980, in steps of 10 ms."""
    usual = os.utime

    def clamped(path: Path | int, *, ns: tuple[int, int]) -> None:
        usual(path, ns=tuple(max(n, _1980) // _STEP * _STEP for n in ns))

    if request.param == "exfat":
        monkeypatch.setattr(os, "utime", clamped)


@pytest.mark.usefixtures("disk")
def test_uses_are_seen_on_every_disk(tmp_path: Path):
    """Each end of a request is an event, and is read as the time that it was."""
    folder = tmp_path / "clients"
    folder.mkdir()
    path, records = folder / "1-2.00", ClientRecords(folder)
    write_record(path, 60.0)
    assert records.poll(1.0)
    for number in range(3):
        stamp = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == stamp:
            began = time.monotonic()
            touch_record(path, 60.0)
        (use,) = read_uses(folder)
        assert began - 0.02 <= use.last_event <= time.monotonic()
        assert records.poll(float(number))
        assert not records.poll(float(number))
        assert [use.last_event for use in records.uses] == [float(number)]
