"""The mends of the server's installation, on the locked one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from beside_mends import tiny_vlm, told_by
from prefix_harness import SECOND_PICTURE

from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.child import install_launcher


def test_every_mend_applies_to_the_locked_runtime(tmp_path: Path):
    """No mend steps aside, fails or waits for a module that the tested server no longer has."""
    source = Path(__file__).parents[1] / "langchain_car_vllm" / "server" / "supervisor"
    shutil.copy(source / "launch.py", tmp_path)
    shutil.copytree(source / "mends", tmp_path / "mends")
    python = interpreter_of(ensure_runtime().server)
    result = subprocess.run(
        [python, tmp_path / "launch.py", "check"], capture_output=True, text=True, check=True
    )
    states = json.loads(result.stdout.splitlines()[-1])
    assert states
    del states["connection-after-failure-httptools"]  # uvicorn's parser where that is installed
    has_no_metal = states.pop("memory-limits")["state"] == "not needed"
    assert has_no_metal is not (sys.platform == "darwin")
    assert {name: state for name, state in states.items() if state["state"] != "applied"} == {}


SOUNDS = """
import base64, io, json, os, sys, wave
sys.path.insert(0, {folder!r})
import vllm_mlx.models.mllm as mllm
from mends import named_files
if {mended!r}:
    named_files._take_no_paths.apply(mllm)
os.mkfifo("fifo")
told = []
named = [{secret!r}, "file://" + {secret!r}, "fifo", "secret.wav", "."]
for name in [*named, *({{"url": n}} for n in named), {{"audio_url": {{"url": {secret!r}}}}}]:
    try:
        told.append(["opened", mllm.process_audio_input(name)])
    except ValueError as error:
        told.append(["refused", str(error)[:40]])
sound = io.BytesIO()
with wave.open(sound, "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000), file.writeframes(bytes(8))
data = "data:audio/wav;base64," + base64.b64encode(sound.getvalue()).decode()
path = mllm.process_audio_input({{"url": data}})
assert mllm.process_audio_input(path) == path
print(json.dumps(told))
"""


@pytest.mark.parametrize("mended", [True, False])
def test_no_request_names_a_file_as_its_sound(tmp_path: Path, *, mended: bool):
    """Data is taken, and so is the server's own file of it; the server as published opens any."""
    (tmp_path / "secret.wav").write_bytes(b"x")
    secret = str(tmp_path / "secret.wav")
    told = _told_by(SOUNDS, tmp_path, mended=mended, secret=secret)
    assert len(told) == 11
    assert ["opened", secret] not in told or not mended
    assert {how for how, _ in told} == ({"refused"} if mended else {"refused", "opened"})


TEMPLATES = """
import importlib, json, sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {folder!r})
import jinja2
from mends import chat_template
if {mended!r}:
    chat_template._confine_templates.apply(jinja2)

def render(processor, template):
    spoken = SimpleNamespace(chat_template=template, tokenizer=None)
    return processor.apply_chat_template(spoken, [{{"role": "user", "content": "hi"}}])

ran, told = Path("ran"), {{}}
for place in {places!r}:
    module = importlib.import_module("mlx_vlm.models." + place)
    [processor] = {{
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and kind.__module__ == module.__name__
        and "apply_chat_template" in vars(kind)
    }}
    assert render(processor, "{{% for m in messages %}}{{{{ m.content }}}}{{% endfor %}}") == "hi"
    try:
        render(processor, "{{{{ cycler.__init__.__globals__.os.system('touch ran') }}}}")
    except Exception as error:
        assert error.status_code == 400, error
    told[place] = ran.exists()
    ran.unlink(missing_ok=True)
print(json.dumps(told))
"""
PROCESSORS = (
    "ernie4_5_moe_vl.processing_ernie4_5_moe_vl",
    "kimi_vl.processing_kimi_vl",
    "locateanything.processing_locateanything",
    "molmo.processing_molmo",
    "molmo2.processing",
    "phi3_v.processing_phi3_v",
)


@pytest.mark.parametrize("mended", [True, False])
def test_a_template_of_a_stranger_runs_nothing(tmp_path: Path, *, mended: bool):
    """What processors render by themselves is confined; as published, it is a program."""
    told = _told_by(TEMPLATES, tmp_path, mended=mended, places=PROCESSORS)
    assert told == dict.fromkeys(PROCESSORS, not mended)


ABANDONED = """
import asyncio, json, sys, threading
sys.path.insert(0, {folder!r})
from vllm_mlx.engine import simple
from mends import request_end
if {mended!r}:
    request_end._end_abandoned_generations.apply(simple)

class Model:
    def __init__(self):
        self.reading, self.go_on, self.ended = (threading.Event() for _ in range(3))
        self.closed_by = None

    def stream_generate(self, **_):
        try:
            self.reading.set()
            self.go_on.wait(60)
            yield type("Chunk", (), {{"text": "a", "prompt_tokens": 1}})
        finally:
            self.closed_by = threading.current_thread().name
            self.ended.set()

async def abandon():
    engine = simple.SimpleEngine("model")
    engine._model, engine._loaded = model, True
    answer = engine.stream_generate("Hello.")
    task = asyncio.ensure_future(anext(answer))
    await asyncio.to_thread(model.reading.wait, 60)
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    model.go_on.set()
    await asyncio.to_thread(engine._generation_executor.shutdown)
    return {{"running": len(engine.get_stats()["requests"]), "closed by": model.closed_by}}

model = Model()
print(json.dumps(asyncio.run(abandon())))
"""


@pytest.mark.parametrize("mended", [True, False])
def test_what_nobody_waits_for_is_closed_and_forgotten(tmp_path: Path, *, mended: bool):
    """A client that is gone is cancelled until its request has ended, which takes a while."""
    told = _told_by(ABANDONED, tmp_path, mended=mended)
    is_closed = (told["closed by"] or "").startswith("simple-generate")
    assert (told["running"], is_closed) == ((0, True) if mended else (1, False))


LOST_ABORT = """
import json, sys
sys.path.insert(0, {folder!r})
from mends import request_end
from mlx_lm import load
from vllm_mlx import scheduler as module
from vllm_mlx.request import Request, SamplingParams
if {mended!r}:
    request_end._abort_what_waits.apply(module)
scheduler = module.Scheduler(*load({model!r}))
for name in ("left", "kept"):
    scheduler.add_request(Request(name, "Tell a tale.", SamplingParams(max_tokens=9)))
scheduler.abort_request("left")
scheduler.remove_finished_request("left")  # as the engine does for a client that is gone
scheduler.step()
told = [request["request_id"] for request in scheduler.get_running_requests_info()]
scheduler.step()
print(json.dumps([told, len(scheduler.requests)]))
"""


@pytest.mark.parametrize("mended", [True, False])
def test_no_request_that_nobody_waits_for_is_begun(tmp_path: Path, smollm2: str, *, mended: bool):
    """As published, the server answers one to its end whose client went away before its turn."""
    told, known = _told_by(LOST_ABORT, tmp_path, mended=mended, model=smollm2)
    assert told == (["kept"] if mended else ["left", "kept"])
    assert known == 1


ORDERS = """
import json, sys
sys.path.insert(0, {folder!r})
from vllm_mlx import mllm_cache, vision_embedding_cache
from mends import picture_order
told = []
for module in (mllm_cache, vision_embedding_cache):
    if {mended!r}:
        picture_order._tell_orders_apart.apply(module)
    keys = [module.compute_images_hash(list(names)) for names in ("ab", "ba", "ab", "a", "b", "")]
    told.append([keys.index(key) for key in keys])
print(json.dumps(told))
"""


@pytest.mark.parametrize("mended", [True, False])
def test_the_order_of_pictures_is_a_part_of_their_key(tmp_path: Path, *, mended: bool):
    """Of both engines; as published, the server takes two pictures for the same two exchanged."""
    orders = [0, 1, 0, 3, 4, 5] if mended else [0, 0, 0, 3, 4, 5]
    assert _told_by(ORDERS, tmp_path, mended=mended) == [orders, orders]


WIRING = """
import json, sys, time
sys.path.insert(0, {folder!r})
sys.argv = ["vllm-mlx", "serve", {model!r}]
import mlx.core as mx
calls, limits = [], {{}}
mx.set_wired_limit = lambda n: calls.append(n) or 0
mx.set_memory_limit = lambda n: limits.__setitem__("memory", n) or 0
mx.set_cache_limit = lambda n: limits.__setitem__("cache", n) or 0
mx.device_info = lambda: {{"max_recommended_working_set_size": {working_set}}}
mx.metal.is_available = lambda: True
mx.synchronize = lambda *_: None
from mends import memory_limits
memory_limits._limit_memory.apply(mx)
from mlx import nn
from mlx_lm.generate import wired_limit
from mlx_vlm.generate.common import wired_limit as vlm_wired_limit
from vllm_mlx import mllm_batch_generator
model = nn.Linear(4, 4)
for _ in range(2):
    with wired_limit(model):
        pass
    with vlm_wired_limit(model):
        pass
    most = mx.device_info()["max_recommended_working_set_size"]
    old = mllm_batch_generator.mx.set_wired_limit(most)
    mllm_batch_generator.mx.set_wired_limit(old)
mx.set_memory_limit(10**12)
mx.set_cache_limit(10**12)
before = dict(limits)
with open("memory-room", "w") as file:
    file.write(str(2**29))
deadline = time.monotonic() + 30
while limits == before and time.monotonic() < deadline:
    time.sleep(0.01)
mx.set_memory_limit(10**12)
print(json.dumps([calls, before, limits]))
"""


@pytest.mark.parametrize(
    ("mode", "share", "others", "wires"),
    [
        ("auto", 0.5, 0, False),
        ("auto", 0.8, 0, False),
        ("auto", 0.9, 0, True),
        ("auto", 0.9, 1, False),
        ("0", 0.9, 0, False),
        ("1", 0.1, 0, True),
        ("1", 0.4, 0.3, True),
        ("1", 0.4, 0.5, False),
    ],
)
def test_weights_alone_are_wired_and_only_where_that_pays(
    tmp_path: Path, mode: str, share: float, others: float, wires: bool
):
    """With the real modules that ask for it; only Metal is imitated. Limits keep to the plan.

    Two servers together never wire more than 0.8 of the working set; a running server that is to
    go on with less memory does.
    """
    install_launcher(ServerDirectory(tmp_path))
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"x" * 80_000)
    (model / "consolidated.bin").write_bytes(b"x" * 9_000)
    code = WIRING.format(folder=str(tmp_path), model=str(model), working_set=int(80_000 / share))
    python = str(interpreter_of(ensure_runtime().server))
    room = 2**30
    variables = {
        "CAR_VLLM_MLX_WIRED": mode,
        "CAR_VLLM_LAUNCH_MEMORY": str(room),
        "CAR_VLLM_LAUNCH_WIRED_BY_OTHERS": str(int(others * 80_000 / share)),
    }
    result = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
        cwd=tmp_path,
    )
    calls, limits, later = json.loads(result.stdout.splitlines()[-1])
    assert calls == ([80_000] if wires else [])
    assert limits == {"memory": room, "cache": room - 80_000}
    assert later == {"memory": room // 2, "cache": room // 2 - 80_000}


SHORT_TURN, SYSTEM = 40, 564
"""Tokens of the harness's turns, at least, and of its system message."""
_ENDS = {"qwen3_vl": 2}
"""Tokens at the end of a prompt that vllm-mlx itself leaves out of what it keeps."""
_OTHERS = {"qwen3_vl": (564, 796)}
"""Tokens up to a picture that is another one, of caches that can be rewound to there."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("named", "chunk", "freedom"),
    [
        ("qwen3_5-qwen3.6", 256, "constrained"),
        pytest.param("qwen3_5-qwen3.6", 256, "free", marks=pytest.mark.full),
        ("qwen3_5-qwen3.5", 256, "thoughtful"),
        ("qwen3_5-qwen3.6", 256, "shared"),
        pytest.param("gemma4-plain", 512, "shared", marks=pytest.mark.full),
        pytest.param("qwen3_5-qwen3.5", 32, "thoughtful", marks=pytest.mark.full),
        pytest.param("gemma4-qwen3.5", 512, "thoughtful", marks=pytest.mark.full),
        pytest.param("gemma4-plain", 256, "free", marks=pytest.mark.full),
        pytest.param("gemma4-plain", 256, "constrained", marks=pytest.mark.full),
        pytest.param("gemma4-plain", 512, "free", marks=pytest.mark.full),
        ("qwen3_5-qwen3.6", 256, "pictured"),
        pytest.param("qwen3_5-qwen3.5", 256, "pictured-thoughtful", marks=pytest.mark.full),
        pytest.param("gemma4-plain", 512, "pictured", marks=pytest.mark.full),
        pytest.param("qwen3_vl", 256, "pictured", marks=pytest.mark.full),
    ],
)
def test_prompts_of_short_turns_are_kept(
    tmp_path: Path, smollm2: str, named: str, chunk: int, freedom: str
):
    """Each turn finds the whole of the one before; answers are those of an empty cache.

    So are those to an exact repeat, which begins with what the last position of the prompt said.
    Where later prompts leave thoughts out, a turn finds all but the beginning of the answer. Other
    conversations find their system message. Pictures are found with what was said about them, and
    one that is another is not taken for one that was kept. A new one is read where it stands, but
    by Gemma, which reads all pictures together.
    """
    model, architecture = tiny_vlm(named, smollm2), named.partition("-")[0]
    harness = Path(__file__).with_name("prefix_harness.py")

    def run(mode: str) -> list[tuple[int, int, str, str]]:
        return [
            tuple(line) for line in told_by(harness, tmp_path, model, str(chunk), mode, freedom)
        ]

    mended, cold = run("mended"), run("cold")
    # By itself the server keeps nothing that shows a picture.
    plain = cold if "pictured" in freedom else run("plain")
    assert [answers for _, _, *answers in mended] == [answers for _, _, *answers in cold]
    assert [tokens for tokens, *_ in mended] == [tokens for tokens, *_ in plain]
    # A prompt of text that has at most a chunk to read is looked up twice.
    looks = 1 if chunk < SHORT_TURN or "pictured" in freedom else 2
    beginning = 6 if "thoughtful" in freedom else _ENDS.get(architecture, 0)
    expected = [looks * (before - beginning) for before, *_ in mended[:-1]]
    if "shared" in freedom:
        expected = [looks * SYSTEM] * len(expected)
    if "pictured" in freedom:
        if architecture == "gemma4":
            expected[SECOND_PICTURE - 1] = 0
        expected[-2:] = _OTHERS.get(architecture, (0, expected[SECOND_PICTURE - 1]))
        # Random weights: not every model is moved by every picture.
        assert architecture != "gemma4" or mended[-2][2:] != mended[-3][2:]
        assert named != "qwen3_5-qwen3.6" or mended[-1][2:] != mended[SECOND_PICTURE][2:]
    assert [found for _, found, *_ in mended[1:]] == expected
    assert sum(found for _, found, *_ in plain) < sum(found for _, found, *_ in mended)


def _told_by(code: str, folder: Path, **given: object) -> Any:
    """Return what a program says at its end, which is given values for its places."""
    program = folder / "program.py"
    program.write_text(code.format(folder=str(folder), **given))
    return told_by(program, folder)[-1]
