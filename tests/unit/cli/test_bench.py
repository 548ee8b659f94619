"""`bench` against a scripted server."""

import json

from fakes.dialect import Dialect
from fakes.dialect_server import Server
from fakes.reply import Reply
from unit.cli.conftest import Cli


def reply(body: dict) -> Reply:
    """Call a tool where there is one, give JSON where it is asked for."""
    if body.get("tools"):
        return Reply(calls=[("weather", {"city": "Paris"})])
    if body.get("response_format"):
        return Reply('{"name": "Oslo", "country": "Norway"}')
    return Reply("One two three.", usage=(700, 4))


def test_everything_is_measured(cli: Cli, socket_enabled: None):
    """Each row has a figure, and ten turns went out with a history that grows."""
    with Server(Dialect(served_model="m", script=reply)) as server:
        done = cli("bench", "m", "--json", CAR_VLLM_MLX_BASE_URL=server.base_url)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert list(rows) == [
        "start",
        "prompt",
        "answer",
        "turn 10 against turn 2",
        "calls a tool",
        "structured answer",
    ]
    assert all(row["value"] for row in rows.values()), rows
    sizes = [len(request["messages"]) for request in server.dialect.requests]
    assert max(sizes) == 19


def test_what_fails_is_a_row(cli: Cli, socket_enabled: None):
    """A model that gives no JSON still has its other figures."""

    def script(body: dict) -> Reply:
        return Reply("no") if body.get("response_format") else reply(body)

    with Server(Dialect(served_model="m", script=script)) as server:
        done = cli("bench", "m", CAR_VLLM_MLX_BASE_URL=server.base_url)
        told = cli("bench", "m", "--json", CAR_VLLM_MLX_BASE_URL=server.base_url)
    assert done.returncode == 0, done.stderr
    assert "calls a tool" in done.stdout
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("structured answer")]
    assert " -  " in row
    found = {row["name"]: row["value"] for row in json.loads(told.stdout)}
    assert found["structured answer"] is None
    assert found["calls a tool"] is True
