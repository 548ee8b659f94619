"""Many programs at once on one multimodal server: everybody gets the answer of a lone request."""

import asyncio
import http.client
import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple
from urllib.parse import urlsplit

import pytest
from company_load import FAILED, Exchange, asked_again, model_for, requests_of

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server import ensure_server

ROOT = Path(__file__).parents[1]
PROCESSES = 4
KILLED = 3
MODELS = [("qwen3_5", "qwen3.6"), ("qwen3_5", "qwen3.5"), ("gemma4", "plain")]
"""Families, and the templates that they have."""
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*used up its tokens:UserWarning"),
]


class Load(NamedTuple):
    """A model and how its server is started."""

    model: ChatVllmMlx
    environment: dict[str, str]

    def run(self, seed: int, *flags: str) -> list[Exchange]:
        """Have four processes ask all at once, and further ones die in the middle of a prompt."""
        with ExitStack() as stack:
            # Files, since a full pipe would stop a process that has the turn.
            outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(PROCESSES)]
            workers = [self._start(file, seed, n, *flags) for n, file in enumerate(outputs)]
            for _ in range(KILLED):
                # It dies where its own turn to be read has come, so it takes turns in any case.
                killed = self._start(subprocess.DEVNULL, seed, 0, "--kill")
                assert killed.wait() == -signal.SIGKILL
            assert [worker.wait() for worker in workers] == [0] * PROCESSES
            for output in outputs:
                output.seek(0)
            return [Exchange(*json.loads(line)) for output in outputs for line in output]

    def _start(
        self, output: IO[str] | int, seed: int, worker: int, *flags: str
    ) -> "subprocess.Popen[bytes]":
        script = str(Path(__file__).with_name("company_load.py"))
        command = [sys.executable, "-W", "ignore", script, self.model.model, str(seed), str(worker)]
        command += ["--environment", json.dumps(self.environment), *flags]
        return subprocess.Popen(command, stdout=output, cwd=ROOT)

    def differing(self, exchanges: Sequence[Exchange]) -> dict[str, tuple[str, str]]:
        """Return the answers that are others where the server has nobody else and knows nothing."""

        async def compare() -> dict[str, tuple[str, str]]:
            found = {}
            for exchange in exchanges:
                if exchange.answer is None:
                    continue
                self._clear_cache()
                alone = await asked_again(self.model, exchange)
                if alone != exchange.answer:
                    found[f"{exchange.name} {exchange.kind}"] = exchange.answer, alone
            return found

        return asyncio.run(compare())

    def _clear_cache(self) -> None:
        endpoint = ensure_server(self.model._spec(engine=self.model.engine))
        connection = http.client.HTTPConnection(urlsplit(endpoint.base_url).netloc, timeout=60)
        headers = {"Authorization": f"Bearer {endpoint.api_key}"}
        connection.request("DELETE", "/v1/cache", headers=headers)
        assert connection.getresponse().status == http.HTTPStatus.OK
        connection.close()


_UNMENDED = """#!{python}
import runpy, sys
for finder in sys.meta_path:
    if hasattr(finder, "_mends"):
        finder._mends = [mend for mend in finder._mends if mend.name != "prompts-in-order"]
sys.argv[0] = {server!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def folder(request: pytest.FixtureRequest, smollm2: str) -> str:
    """A tiny multimodal model."""
    family, template = request.param
    folder = ROOT / ".models" / f"tiny-{family}-{template}"
    if not (folder / "config.json").exists():
        python = str(interpreter_of(ensure_runtime().server))
        builder = str(Path(__file__).with_name("tiny_vlm.py"))
        command = [python, builder, family, str(folder), "--tokenizer", smollm2]
        subprocess.run([*command, "--template", template], check=True)
    return str(folder)


@pytest.fixture
def load(folder: str, fast_cpu: dict[str, str]) -> Iterator[Load]:
    """The model as a user has it who sets nothing else."""
    yield from _running(folder, fast_cpu)


@pytest.fixture
def unmended(
    folder: str, fast_cpu: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Load]:
    """The model on a server that reads prompts as it was published."""
    server = ensure_runtime().server
    script = tmp_path / "vllm-mlx"
    script.write_text(_UNMENDED.format(python=interpreter_of(server), server=str(server)))
    script.chmod(0o755)
    monkeypatch.setenv("CAR_VLLM_MLX_BIN", str(script))
    yield from _running(folder, fast_cpu, is_mended=False)


def _running(folder: str, environment: dict[str, str], *, is_mended: bool = True) -> Iterator[Load]:
    model = model_for(folder, environment)
    model.warm_up()
    endpoint = ensure_server(model._spec(engine=model.engine))
    assert endpoint.engine == "batched"
    assert endpoint.reads_in_order == is_mended
    yield Load(model, environment)
    model.unload(force=True)


def test_every_answer_in_company_is_that_of_a_lone_request(load: Load):
    """Short and long prompts, agents, thoughts, tools, images, schemas, stops, cancels, a kill."""
    exchanges = load.run(1)
    assert len(exchanges) >= 200
    asked = {r.name: r.kind for worker in range(PROCESSES) for r in requests_of(1, worker)}
    assert {e.kind for e in exchanges} == set(asked.values())
    cancelled = Counter(e.kind for e in exchanges if e.answer is None)
    assert set(cancelled) == {"cancel in prefill", "cancel in decode"}
    failed = [e for e in exchanges if e.answer and e.answer.startswith(FAILED)]
    # A constrained answer may use up its tokens, alone as in company.
    assert {e.kind for e in failed} <= {"schema"}, failed
    assert load.differing(exchanges) == {}


def test_a_server_that_is_not_mended_keeps_them_apart_by_turns(unmended: Load):
    """As other versions of it do, which the mend does not know."""
    assert unmended.differing(unmended.run(1)) == {}


def test_there_without_turns_the_same_check_finds_differences(unmended: Load):
    """Or the proofs above would prove nothing."""
    found = {}
    for seed in range(1, 4):
        found = unmended.differing(unmended.run(seed, "--without-turns"))
        if found:
            break
    assert found
