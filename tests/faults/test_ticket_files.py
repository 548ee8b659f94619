"""The files of tickets, which serve one request after the other."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from faults.support import eventually
from faults.turns import Make, Server, enter, enters, go_on, line_of, sender, tickets
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from hypothesis.strategies import booleans, integers

from langchain_car_vllm.server.client.ticket_file import TicketFile, publish
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.locks import opened_lock, try_exclusive
from langchain_car_vllm.server.tickets import Ticket, read_tickets, remove_leftovers

KEPT = 8


def files(directory: ServerDirectory) -> set[Path]:
    return set(directory.turns.iterdir())


def inodes(directory: ServerDirectory) -> set[int]:
    return {file.stat().st_ino for file in files(directory)}


def test_one_file_serves_one_request_after_the_other(admission: Make, directory: ServerDirectory):
    """It is no ticket in between, and nobody else's look removes it."""
    seen = set()
    for _ in range(5):
        gate = admission()
        enter(gate)
        seen |= inodes(directory)
        gate.begin()
        gate.leave(is_over=True)
        assert tickets(directory) == []
        remove_leftovers(directory.turns)
    assert len(seen) == 1
    assert inodes(directory) == seen


def test_many_requests_leave_few_files(admission: Make, directory: ServerDirectory):
    """What many at once needed is removed again, with its descriptors."""
    gates = [admission(multimodal=False, kv_room_tokens=10_000) for _ in range(3 * KEPT)]
    before = len(list(Path("/dev/fd").iterdir()))
    for gate in gates:
        enter(gate)
    assert tickets(directory) == ["answering"] * len(gates)
    for gate in gates:
        gate.leave(is_over=True)
    assert tickets(directory) == []
    assert len(files(directory)) == KEPT
    assert len(list(Path("/dev/fd").iterdir())) <= before + KEPT


def test_a_file_that_was_written_into_is_not_used_again(
    admission: Make, directory: ServerDirectory, server: Server
):
    """Its note would be taken for the next request's."""
    gate = admission()
    enter(gate, late=True)
    assert [file.stat().st_size > 0 for file in files(directory)] == [True]
    gate.leave(is_over=True)
    assert files(directory) == set()


class TicketFiles(RuleBasedStateMachine):
    """Requests come and go in any order, while somebody removes files, or notes in them."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.home = TemporaryDirectory()
        self.folder = Path(self.home.name)
        self.shown: dict[str, TicketFile] = {}
        self.count = 0

    def ticket(self, request: str) -> Ticket:
        return Ticket(request, 1, "waiting")

    @rule(target=requests)
    def come(self) -> str:
        self.count += 1
        request = f"{self.count:03d}-{os.getpid()}-0"
        self.shown[request] = publish(str(self.folder), self.ticket(request))
        return request

    @rule(request=consumes(requests), is_kept=booleans())
    def go(self, request: str, is_kept: bool) -> None:
        file = self.shown.pop(request)
        file.keep(self.ticket(request)) if is_kept else file.let_go()

    @rule(request=requests)
    def note(self, request: str) -> None:
        self.shown[request].note(b"[1, []]")

    @rule(choice=integers(0, 2))
    def remove(self, choice: int) -> None:
        for file in sorted(self.folder.iterdir())[choice::3]:
            file.unlink()

    @invariant()
    def each_shows_one_ticket(self) -> None:
        for request, file in list(self.shown.items()):
            if not file.show(self.ticket(request)):
                file.let_go()
                self.shown[request] = publish(str(self.folder), self.ticket(request))
        assert sorted(t.order for t in read_tickets(self.folder, 1)) == sorted(self.shown)
        assert len(list(self.folder.iterdir())) <= len(self.shown) + KEPT

    def teardown(self) -> None:
        for file in self.shown.values():
            file.tear_up()
        self.home.cleanup()


TestTicketFiles = TicketFiles.TestCase


def test_what_a_process_kept_goes_with_it(directory: ServerDirectory, server: Server):
    """At its own end, or where it was killed with the next start of the server."""
    for is_killed in (False, True):
        process = sender(directory, server)
        assert line_of(process) == "entered"
        go_on(process)
        assert line_of(process) == "began"
        if is_killed:
            kept = directory.turns / f"kept-1-{process.pid}-0"
            kept.touch()
            process.kill()
        else:
            go_on(process)
        process.communicate()
        remove_leftovers(directory.turns)
        assert tickets(directory) == []
        assert files(directory) == set(), is_killed


def test_a_forked_child_keeps_files_of_its_own(admission: Make, directory: ServerDirectory):
    """Those of its parent stay the parent's, whatever the child does."""
    gate = admission()
    enter(gate)
    gate.begin()
    gate.leave(is_over=True)
    (kept,) = files(directory)
    child = os.fork()
    if not child:
        code = 1
        try:
            own = admission()
            enter(own)
            own.begin()
            is_other = kept in files(directory) and len(files(directory)) == 2
            own.leave(is_over=True)
            code = 0 if is_other else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with opened_lock(kept) as other:
        assert not try_exclusive(other), "the child gave the parent's lock back"
    remove_leftovers(directory.turns)
    assert files(directory) == {kept}
    enter(gate)
    assert len(files(directory)) == 1
    gate.leave(is_over=True)


def test_a_new_folder_gets_files_of_its_own(admission: Make, directory: ServerDirectory):
    """The files of one that was removed lead nowhere."""
    gate = admission()
    enter(gate)
    gate.begin()
    gate.leave(is_over=True)
    for file in files(directory):
        file.unlink()
    directory.turns.rmdir()
    directory.turns.mkdir()
    assert enters(gate)
    assert tickets(directory) == ["prefill"]
    gate.begin()
    gate.leave(is_over=True)
    eventually(lambda: tickets(directory) == [], "the ticket to be taken back")


def test_leftovers_of_others_stay(tmp_path: Path):
    """What belongs to a living process, or to nobody of ours, is left alone."""
    mine = [f"{word}-1-{os.getpid()}-3" for word in ("new", "kept", "lock")]
    foreign = ["foreign", "foreign-1-999999999-0", "kept", "notes.txt"]
    folder = tmp_path / "turns"
    folder.mkdir()
    for name in (*mine, *foreign, "new-1-999999999-0", "kept-1-999999999-0", "lock-1-999999999-0"):
        (folder / name).touch()
    remove_leftovers(folder)
    assert {file.name for file in folder.iterdir()} == {*mine, *foreign}
