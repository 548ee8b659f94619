"""Whether the server can serve a model, judged by its files before anything is started.

The one check for a folder, the Hub cache and LM Studio's folder, and for what the Hub lists.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from langchain_car_vllm.errors import UnservableModelError, UntrustedCodeError
from langchain_car_vllm.models.config import config_of, is_multimodal
from langchain_car_vllm.models.model_files import list_folder, load_object, read_object
from langchain_car_vllm.models.remote_code import find_code
from langchain_car_vllm.models.snapshot import TOKENIZER_SUFFIX, TOKENIZERS
from langchain_car_vllm.models.weights import (
    INDEX,
    IS_POINTER,
    find_damage,
    indexed_shards,
    is_pointer,
    missing_shards,
    weight_names,
)
from langchain_car_vllm.support.printable import on_one_line

Read = Callable[[str], Mapping[str, Any] | None]
"""Returns the JSON object that a file holds, None where nobody can read it."""

_WHOLE = "choose a repository with `config.json`, a tokenizer and safetensors weights"
_CONVERSION = "use the MLX conversion of the model, which `mlx-community` has for most models"
_GGUF = "its weights are GGUF files, the format of llama.cpp"
_FORMATS = (
    (".gguf", _GGUF, _CONVERSION),
    ((".bin", ".pt", ".pth", ".ckpt"), "its weights are pickled PyTorch files", _CONVERSION),
    (".npz", "its weights are in MLX's old format", _CONVERSION),
    ((".onnx", ".mlmodel", ".mlpackage", ".tflite"), "its weights are for another program", _WHOLE),
)
_ADAPTER, _OF_PEFT = ("adapter_config.json", "adapters.safetensors"), "adapter_model.safetensors"


class Obstacle(NamedTuple):
    """Why a model cannot be served, and what to do about it."""

    reason: str
    hint: str
    is_code: bool = False

    def error(self, name: str) -> UnservableModelError:
        """Return it as the error of a model."""
        if self.is_code:
            return UntrustedCodeError(on_one_line(name), self.reason)
        return UnservableModelError(
            f"`{on_one_line(name)}` cannot be served: {self.reason}", hint=self.hint
        )


GGUF = Obstacle(_GGUF, _CONVERSION)
"""Of repositories that say so by their name."""


def check_servable(directory: Path, name: str, *, trust: bool = False) -> None:
    """Check that the server can load what a directory holds.

    Raises:
        UntrustedCodeError: It brings code that nobody trusts.
        UnservableModelError: Parts of it are missing, damaged or in another format.
    """
    obstacle = find_obstacle(directory, trust=trust)
    if obstacle is not None:
        raise obstacle.error(name)


def find_obstacle(directory: Path, *, trust: bool = False) -> Obstacle | None:
    """Return why the server could not load what a directory holds, None where it can."""
    try:
        files = list_folder(directory)
        if "config.json" in files:
            load_object(directory / "config.json")
    except UnservableModelError as error:
        return Obstacle(error.message, error.hint or _WHOLE)
    return find_missing(
        files, lambda name: read_object(directory / name), trust=trust
    ) or _find_damaged(directory, files)


def find_missing(names: Collection[str], read: Read, *, trust: bool = False) -> Obstacle | None:
    """Return what a model lacks to be served, None where it has all parts."""
    config = read("config.json") if "config.json" in names else None
    if config is None:
        return find_other_format(names, read) or Obstacle("it has no `config.json`", _WHOLE)
    if not trust and (code := _find_code(names, read)):
        return code
    index = read(INDEX) if INDEX in names else None
    weights = weight_names(names, multimodal=is_multimodal(config), index=index)
    if not weights:
        return find_other_format(names, read) or _misnamed_weights(names)
    if config_of(config).model_type is None:
        return Obstacle("its `config.json` does not name a `model_type`", _WHOLE)
    if not any(name in TOKENIZERS or name.endswith(TOKENIZER_SUFFIX) for name in names):
        return Obstacle(
            "it has no tokenizer", "add the tokenizer files of the model it was made from"
        )
    return _missing_shard(names, weights, index)


def _find_code(names: Collection[str], read: Read) -> Obstacle | None:
    try:
        code = find_code(names, read)
    except UnservableModelError as error:
        return Obstacle(error.message, error.hint or _WHOLE)
    return None if code is None else Obstacle(code, "", is_code=True)


def find_other_format(names: Collection[str], read: Read) -> Obstacle | None:
    """Return what files without a model's are, None where nothing is known of them."""
    if _OF_PEFT in names:
        return Obstacle(
            "it is a PEFT adapter, which mlx-lm cannot read",
            f"merge it into its model{_base(read)} and convert the result with `mlx_lm convert`",
        )
    if any(name in names for name in _ADAPTER):
        return Obstacle(
            "it is a LoRA adapter, not a model",
            f"name the model that it was trained on{_base(read)} and this as `adapter=...`",
        )
    if "model_index.json" in names:
        return Obstacle("it is a diffusers pipeline, which does not write text", _WHOLE)
    if any(name.endswith(".safetensors") for name in names):
        return None
    for ending, reason, hint in _FORMATS:
        if any(name.endswith(ending) for name in names):
            return Obstacle(reason, hint)
    return None


def _base(read: Read) -> str:
    """Return which model an adapter says that it was trained on."""
    config = read(_ADAPTER[0]) or {}
    name = config.get("base_model_name_or_path") or config.get("model")
    return f", `{name}`," if isinstance(name, str) and name.isprintable() else ""


def _misnamed_weights(names: Collection[str]) -> Obstacle:
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if found:
        return Obstacle(
            f"the server loads `model*.safetensors`, but its weights are `{on_one_line(found[0])}`",
            "rename them, or choose another conversion",
        )
    return Obstacle("it has no safetensors weights", _WHOLE)


def _missing_shard(
    names: Collection[str], weights: Collection[str], index: Mapping[str, Any] | None
) -> Obstacle | None:
    shards = indexed_shards(index, names)
    missing = [shard for shard in shards if shard not in names]
    witness = "the index of its weights lists it"
    if not shards:
        missing, witness = missing_shards(weights), "the names of its other weights imply it"
    if not missing:
        return None
    return Obstacle(
        f"`{on_one_line(missing[0])}` is missing, although {witness}", "download the model again"
    )


def _find_damaged(directory: Path, files: Mapping[str, int | None]) -> Obstacle | None:
    config = read_object(directory / "config.json") or {}
    index = read_object(directory / INDEX)
    for name in weight_names(files, multimodal=is_multimodal(config), index=index):
        damage = find_damage(directory / name)
        if damage is not None:
            return Obstacle(f"`{on_one_line(name)}` {damage.reason}", damage.hint)
    for name in (*TOKENIZERS, "tokenizer_config.json"):
        size = files.get(name)
        if name not in files:
            continue
        if size is None or size == 0:
            reason = "is empty" if size == 0 else "is a broken link"
            return Obstacle(f"`{name}` {reason}", "download the model again")
        if is_pointer(directory / name, size):
            return Obstacle(f"`{name}` {IS_POINTER.reason}", IS_POINTER.hint)
    return None
