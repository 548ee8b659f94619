"""The saved prefix cache on the real server: warm for the same weights, never met by others."""

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from langchain_core.messages import HumanMessage

from langchain_car_vllm import ChatVllmMlx
from langchain_car_vllm.runtime import ensure_runtime, interpreter_of
from langchain_car_vllm.server import directory_of
from langchain_car_vllm.server.directory import ServerDirectory
from langchain_car_vllm.server.supervisor.child import install_launcher

pytestmark = [pytest.mark.timeout(600)]

PROMPT = [
    HumanMessage(" ".join(f"Item {n} is red." for n in range(60)) + " How many items are red?")
]


def copied(source: str, target: Path) -> Path:
    """Return a model folder whose weights alone are a file of its own."""
    target.mkdir()
    for path in Path(source).iterdir():
        if path.suffix == ".safetensors":
            shutil.copy(path, target / path.name)
        else:
            (target / path.name).symlink_to(path)
    return target


def swap_layers(model: Path, one: int, other: int) -> None:
    """Write new weights of the same shapes and size to the same place: two layers change places."""
    file = model / "model.safetensors"
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    names = {f"layers.{one}.": f"layers.{other}.", f"layers.{other}.": f"layers.{one}."}
    swapped = {}
    for name, tensor in header.items():
        part = next((part for part in names if part in name), None)
        swapped[name.replace(part, names[part]) if part else name] = tensor
    text = json.dumps(swapped, separators=(",", ":")).encode()
    assert len(text) <= size
    before = file.stat()
    file.write_bytes(raw[:8] + text.ljust(size) + raw[8 + size :])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


@pytest.fixture
def ask(chat: Callable[..., ChatVllmMlx]) -> Iterator[Callable[..., str]]:
    """Answer with a server of its own that saves its prefix cache at its end."""
    asked = []

    def answer(model: Path, **settings: object) -> str:
        llm = chat(model=str(model), max_tokens=24, **settings)
        asked.append(llm)
        text = str(llm.invoke(PROMPT).content)
        llm.unload()
        return text

    yield answer
    for llm in asked:
        llm.unload(force=True)


def directory_for(
    model: Path, chat: Callable[..., ChatVllmMlx], **settings: object
) -> ServerDirectory:
    llm = chat(model=str(model), **settings)
    return directory_of(llm._spec(engine=llm.engine))


def log_of(model: Path, chat: Callable[..., ChatVllmMlx], **settings: object) -> str:
    return directory_for(model, chat, **settings).log.read_text(errors="replace")


def test_new_weights_never_meet_the_old_cache(ask, chat, smollm2: str, tmp_path: Path):
    """Weights that are replaced at the same path answer as they do where nothing was saved."""
    model = copied(smollm2, tmp_path / "model")
    old = ask(model)
    again = ask(model)
    assert again == old
    assert "HIT" in log_of(model, chat)
    swap_layers(model, 3, 20)
    new = ask(model)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model, elsewhere, symlinks=True)
    assert new == ask(elsewhere)
    assert new != old
    caches = directory_for(model, chat).prefix_caches
    [mine] = caches.iterdir()  # the old weights' folder is gone
    assert list(mine.glob("*/*.safetensors"))
    assert caches.stat().st_mode & 0o777 == mine.stat().st_mode & 0o777 == 0o700


def test_two_keys_of_a_model_share_no_folder(ask, chat, smollm2: str, tmp_path: Path):
    """Other settings make another server, whose saved cache is its own."""
    model = copied(smollm2, tmp_path / "model")
    ask(model)
    ask(model, server_args=["--max-num-seqs", "8"])
    assert "HIT" not in log_of(model, chat, server_args=["--max-num-seqs", "8"])
    for given in ({}, {"server_args": ["--max-num-seqs", "8"]}):
        assert list(directory_for(model, chat, **given).prefix_caches.iterdir())


_CUT_SHORT = """
import array, sys
sys.path.insert(0, ".")
import mlx.core as mx
from mlx_lm.models.cache import KVCache
from vllm_mlx import memory_cache
if sys.argv[1] == "mended":
    from mends import prefix_cache_folder
    assert prefix_cache_folder._save_whole.apply(memory_cache) is None
def saved(*entries):
    found = memory_cache.MemoryAwarePrefixCache(None, memory_cache.MemoryCacheConfig())
    for first, count in entries:
        layer = KVCache()
        layer.update_and_fetch(mx.zeros((1, 1, count, 4)), mx.zeros((1, 1, count, 4)))
        assert found.store(list(range(first, first + count)), [layer])
    return found
saved((0, 300)).save_to_disk("saved")
class Killed(BaseException): pass
def kill(*_): raise Killed
array.array, kept = kill, array.array
try:
    saved((1000, 500)).save_to_disk("saved")
except Killed:
    array.array = kept
later = saved()
later.load_from_disk("saved")
print([(len(key), entry.cache[0].offset) for key, entry in later._entries.items()])
"""


@pytest.mark.parametrize(("mode", "found"), [("plain", "[(300, 500)]"), ("mended", "[]")])
def test_a_save_that_is_cut_short_is_not_read(tmp_path: Path, mode: str, found: str):
    """Without the mend the tokens of one prompt get the states of another; no server is needed."""
    install_launcher(ServerDirectory(tmp_path))
    python = str(interpreter_of(ensure_runtime().server))
    done = subprocess.run(
        [python, "-c", _CUT_SHORT, mode], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == found
