"""The gateway as an ASGI application: clients that leave, odd requests, failures of its own."""

import asyncio
import json
import logging
import shutil
import socket
from urllib.parse import urlsplit

import pytest
from fakes.weights import write_sparse_weights
from faults.support import FAST, PATIENCE, Fake, ask
from unit.cli.conftest import Cli
from unit.cli.test_sharing import question, request, serving

from langchain_car_vllm import gateway as gateway_module
from langchain_car_vllm.cli import gateway_server
from langchain_car_vllm.errors import ServerStoppedError
from langchain_car_vllm.gateway import Gateway
from langchain_car_vllm.progress import Progress
from langchain_car_vllm.server import alease, lease
from langchain_car_vllm.server.client.admission import Admission
from langchain_car_vllm.server.tickets import Rules
from langchain_car_vllm.wire.transport import connection_pools
from langchain_car_vllm.wire.transport.connection_pools import Address, Pools

KEY = "key"


def scope_of(path: str, *headers: tuple[bytes, bytes], method: str = "POST") -> dict[str, object]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer " + KEY.encode()), *headers],
    }


async def answer_of(gateway: Gateway, scope, messages, on_send=None) -> list[dict[str, object]]:
    """Return what a gateway sends to a client that sends messages and then waits."""
    sent: list[dict[str, object]] = []
    left = asyncio.Event()
    to_come = iter(messages)

    async def receive():
        message = next(to_come, None)
        if message is None:
            await left.wait()
        return message

    async def send(message):
        sent.append(message)
        if on_send is not None:
            await on_send(message)

    await gateway(scope, receive, send)
    return sent


def body_of(fake: Fake, **fields: object) -> dict[str, object]:
    body = {"model": str(fake.model), "messages": [], **fields}
    return {"type": "http.request", "body": json.dumps(body).encode()}


def test_an_upload_that_breaks_off_is_no_request(fake: Fake):
    """Nothing of it is passed on, and no model is loaded for it."""
    messages = [
        {"type": "http.request", "body": b'{"model": ', "more_body": True},
        {"type": "http.disconnect"},
    ]
    gateway = Gateway(fake.spec(), KEY)
    assert asyncio.run(answer_of(gateway, scope_of("/v1/chat/completions"), messages)) == []
    assert fake.starts() == []


def test_an_answer_is_brought_to_its_end_on_clients_that_give_way(fake: Fake):
    """As those of a former start do, once another one is known."""

    async def run():
        gateway = Gateway(fake.spec(), KEY)
        retired = []

        async def retire(message):
            if message.get("body") and not retired:
                for port in range(1, 70):
                    address = Address(f"http://127.0.0.1:{port}/v1", None)
                    async with Pools(address).aborrow() as pool:
                        retired.append(pool)

        return await answer_of(
            gateway,
            scope_of("/v1/chat/completions"),
            [body_of(fake, stream=True, max_tokens=2000)],
            retire,
        )

    sent = asyncio.run(run())
    assert sent[0]["status"] == 200
    assert b"[DONE]" in b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER"])
def test_the_scheme_of_the_key_is_read_in_any_case(fake: Fake, scheme: bytes):
    """As RFC 7235 has it."""
    scope = scope_of("/v1/models", method="GET")
    scope["headers"] = [(b"authorization", scheme + b" " + KEY.encode())]
    gateway = Gateway(fake.spec(), KEY)
    sent = asyncio.run(answer_of(gateway, scope, [{"type": "http.request", "body": b""}]))
    assert sent[0]["status"] == 200


def test_a_state_that_cannot_be_looked_at_is_no_failure_of_health(fake: Fake):
    """It says that no model is loaded, as far as it can tell."""

    async def run():
        gateway = Gateway(fake.spec(), KEY)
        async with gateway.hold():
            folder = fake.directory().path
            moved = folder.with_name("moved")
            folder.rename(moved)
            folder.mkdir()
            (folder / "server.lock").mkdir()
            try:
                return await answer_of(gateway, scope_of("/health", method="GET"), [])
            finally:
                (folder / "server.lock").rmdir()
                folder.rmdir()
                moved.rename(folder)

    sent = asyncio.run(run())
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"])["model_loaded"] is False


def test_a_model_that_is_served_makes_room(
    cli_here: Cli, fake: Fake, monkeypatch: pytest.MonkeyPatch
):
    """While nobody asks it anything, another one may have its memory; it comes back when asked."""
    monkeypatch.setenv("CAR_VLLM_MLX_MEMORY_GB", "1.5")
    write_sparse_weights(fake.model / "model.safetensors", 1_000_000_000)
    other = str(shutil.copytree(fake.model, fake.root / "other"))
    with serving(str(fake.model)) as (_, published):
        spec = fake.spec(source=other, served_name=other)
        with lease(spec, policy=FAST, startup_timeout=PATIENCE) as held:
            assert ask(held.endpoint)
        key = published.read_key()
        assert request(published, "/v1/chat/completions", key, question(published))[0] == 200
        assert fake.state().generation == 2
        (row,) = cli_here("ps").stdout.splitlines()[1:]
        assert row.split()[-1] == "kept"


def test_odd_requests_are_answered_and_harm_nobody(fake: Fake):
    """Upgrades, tunnels, bodies in chunks, `Expect`, floods of headers, and requests in a row."""
    with serving(str(fake.model)) as (process, published):
        key = published.read_key()
        parts = urlsplit(published.base_url)
        bearer = f"authorization: Bearer {key}\r\n".encode()
        body = json.dumps(question(published, max_tokens=3)).encode()
        post = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + bearer
        upgrade = (
            b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        chunked = (
            b"%x\r\n" % 7 + body[:7] + b"\r\n%x\r\n" % len(body[7:]) + body[7:] + b"\r\n0\r\n\r\n"
        )

        def status(raw: bytes) -> int:
            with socket.create_connection((parts.hostname, parts.port), PATIENCE) as connection:
                connection.sendall(raw)
                with connection.makefile("rb") as answer:
                    return int(answer.readline().split()[1])

        assert status(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + upgrade) == 401
        assert status(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + bearer + upgrade) == 200
        assert status(post + b"transfer-encoding: chunked\r\n\r\n" + chunked) == 200
        both = b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n"
        assert status(post + both + chunked) in (200, 400)
        length = b"content-length: %d\r\n\r\n" % len(body)
        assert status(post + b"expect: 100-continue\r\n" + length) == 100
        assert status(post.replace(bearer, b"") + b"expect: 100-continue\r\n" + length) == 401
        assert status(post + b"x: " + b"y" * 200_000 + b"\r\n" + length) == 400
        for method in (b"CONNECT", b"BREW", b"HEAD", b"TRACE"):
            # The server's own refusal: the fake's, or that of FastAPI.
            told = status(method + b" /v1/models HTTP/1.1\r\nhost: x\r\n" + bearer + b"\r\n")
            assert told in (404, 405, 501), method
        with socket.create_connection((parts.hostname, parts.port), PATIENCE) as connection:
            last = post + b"connection: close\r\n"
            connection.sendall(post + length + body + last + length + body)
            with connection.makefile("rb") as answer:
                assert answer.read().count(b"HTTP/1.1 200") == 2
        assert request(published, "/v1/chat/completions", key, question(published))[0] == 200
        process.terminate()
        assert "Traceback" not in process.stderr.read()
        assert fake.starts()[1:] == []


def test_an_upload_that_stands_still_is_given_up(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """It would hold memory forever; the connection is closed, and no model is loaded."""
    monkeypatch.setattr(gateway_module, "_STALL_SECONDS", 0.05)
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent = asyncio.run(
        answer_of(Gateway(fake.spec(), KEY), scope_of("/v1/chat/completions"), messages)
    )
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert fake.starts() == []


def test_large_uploads_share_the_room_of_one(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """One that would take more waits its turn at the client; small ones and later ones pass."""
    monkeypatch.setattr(gateway_module, "LARGEST_BODY", 1000)
    monkeypatch.setattr(gateway_module, "_SMALL_BODY", 500)
    gateway = Gateway(fake.spec(), KEY)
    scope = scope_of("/v1/chat/completions")

    async def run():
        begun, leaves = asyncio.Event(), asyncio.Event()

        async def receive():
            if not begun.is_set():
                begun.set()
                return {"type": "http.request", "body": b"x" * 900, "more_body": True}
            await leaves.wait()
            return {"type": "http.disconnect"}

        first = asyncio.create_task(gateway(scope, receive, None))
        await begun.wait()
        large = {"type": "http.request", "body": body_of(fake)["body"].ljust(600)}
        assert (await answer_of(gateway, scope, [large]))[0]["status"] == 503
        assert (await answer_of(gateway, scope, [body_of(fake)]))[0]["status"] == 200
        leaves.set()
        await first
        assert (await answer_of(gateway, scope, [large]))[0]["status"] == 200

    asyncio.run(run())
    assert gateway._held == 0


def test_a_request_that_http_does_not_allow_is_the_clients_fault(fake: Fake):
    """A web server in front may take what cannot be sent on; the model is not to blame."""
    headers = [(b"x-key", b"hu\nsh"), (b"x key", b"hush"), (b"", b"hush")]

    async def run():
        gateway = Gateway(fake.spec(), KEY)
        for header in headers:
            scope = scope_of("/v1/models", header, method="GET")
            sent = await answer_of(gateway, scope, [{"type": "http.request", "body": b""}])
            assert sent[0]["status"] == 400
            assert b"hush" not in sent[1]["body"]

    asyncio.run(run())


def test_a_long_path_is_the_servers_to_refuse(fake: Fake):
    """It ended in an error of a library's own."""
    scope = scope_of("/" + "\ufffd" * 20_000, method="GET")
    sent = asyncio.run(
        answer_of(Gateway(fake.spec(), KEY), scope, [{"type": "http.request", "body": b""}])
    )
    assert 400 <= sent[0]["status"] < 500


def test_what_the_model_reads_waits_for_its_turn(fake: Fake):
    """Beside calls of Python programs, whose answers it could spoil; all else goes through."""
    (fake.model / "config.json").write_text(
        json.dumps({"model_type": "qwen3_5", "vision_config": {}, "max_position_embeddings": 2048})
    )

    async def run():
        queued = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(progress: Progress) -> None:
            if progress.stage == "queued":
                loop.call_soon_threadsafe(queued.set)

        gateway = Gateway(fake.spec(), KEY, on_progress=note)
        scope = scope_of("/v1/chat/completions")
        async with alease(fake.spec(), policy=FAST) as held:
            assert await asyncio.to_thread(held.gate.try_enter, 1, arrives_late=False)
            call = asyncio.create_task(answer_of(gateway, scope, [body_of(fake)]))
            models = scope_of("/v1/models", method="GET")
            empty = {"type": "http.request", "body": b""}
            assert (await answer_of(gateway, models, [empty]))[0]["status"] == 200
            await asyncio.wait_for(queued.wait(), PATIENCE)
            assert not call.done()
            held.gate.begin()
            assert (await call)[0]["status"] == 200
        again = answer_of(gateway, scope, [body_of(fake)])
        assert (await asyncio.wait_for(again, PATIENCE))[0]["status"] == 200

    asyncio.run(run())


def test_a_bound_holds_under_either_of_openais_names(fake: Fake):
    """ChatOpenAI and others send `max_completion_tokens` alone, which the server passes over."""
    for name in ("max_tokens", "max_completion_tokens"):
        body = body_of(fake, **{name: 2})
        sent = asyncio.run(
            answer_of(Gateway(fake.spec(), KEY), scope_of("/v1/chat/completions"), [body])
        )
        answer = json.loads(b"".join(message.get("body", b"") for message in sent))
        assert answer["choices"][0]["message"]["content"] == "tok0 tok1 "


def test_a_prompt_that_can_never_fit_is_refused(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """It would end the server that others use; an answer that may be long is no reason."""
    rules = Rules(room=500)
    monkeypatch.setattr(f"{Admission.__module__}.rules_of", lambda endpoint: rules)

    async def status_of(text: str) -> object:
        message = {"role": "user", "content": text}
        body = body_of(fake, messages=[message], max_tokens=32_000)
        scope = scope_of("/v1/chat/completions")
        return (await answer_of(Gateway(fake.spec(), KEY), scope, [body]))[0]["status"]

    async def run():
        assert await status_of("hi") == 200
        assert await status_of("hi " * 2000) == 400

    asyncio.run(run())


def test_restarts_of_the_server_leave_no_connection(fake: Fake):
    """Those to a former start are closed, as those of the library are."""

    async def run():
        gateway = Gateway(fake.spec(), KEY)
        for _ in range(3):
            sent = await asyncio.gather(
                *(
                    answer_of(gateway, scope_of("/v1/chat/completions"), [body_of(fake)])
                    for _ in range(4)
                )
            )
            assert {answer[0]["status"] for answer in sent} == {200}
            assert len(connection_pools._loop_pools[asyncio.get_running_loop()]) == 1
            await asyncio.to_thread(fake.stop)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("told", "path"),
    [
        (b"http://127.0.0.1:9/v1/models?a=%2F", b"/v1/models?a=%2F"),
        (b"HTTPS://user:pass@host", b"/"),
        (b"http://127.0.0.1:9//evil.example/x", b"/evil.example/x"),
        (b"//evil.example/x", b"/x"),
        (b"/\\evil.example", b"/evil.example"),
        (b"/v1/models", b"/v1/models"),
    ],
)
def test_a_redirect_names_a_path_alone(told: bytes, path: bytes):
    """Whatever the server says: the client comes back to the address that it has asked."""
    headers = [(b"Location", told), (b"connection", b"close"), (b"x-a", told)]
    found = gateway_module._returned_headers(headers)
    assert found == [(b"location", path), (b"x-a", told)]


def test_an_answer_that_is_cut_short_is_told_in_a_sentence(capsys: pytest.CaptureFixture):
    """What `car-vllm serve` shows of it is no traceback, as of a fault of the program."""
    gateway_server.gateway_server(None)
    log = logging.getLogger("uvicorn.error")
    log.error("Exception in ASGI application", exc_info=ServerStoppedError("the server stopped"))
    assert (
        capsys.readouterr().err.strip() == "ERROR:    an answer was cut short: the server stopped"
    )
    log.error("Exception in ASGI application", exc_info=KeyError("x"))
    assert "KeyError" in capsys.readouterr().err
