"""A LoRA adapter on top of a model: where it lies, and whether it belongs to that model.

mlx-lm loads an adapter's weights without a look at their names and shapes, so one that was trained
on another model would change nothing, or fail at the first request.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_car_vllm.errors import ConfigurationError, UnservableModelError
from langchain_car_vllm.models.ids import is_path
from langchain_car_vllm.models.local_folders import (
    ADAPTER_MARK,
    folder_called,
    near_folders,
    tell_beside,
)
from langchain_car_vllm.models.model_files import is_file, list_folder, load_object
from langchain_car_vllm.models.repository_names import is_repository, read_spelling
from langchain_car_vllm.models.snapshot import find_commit, repository_folder
from langchain_car_vllm.models.weights import find_damage, is_weight, read_shapes
from langchain_car_vllm.paths import absolute_path
from langchain_car_vllm.support.printable import alternatives

CONFIG, WEIGHTS = ADAPTER_MARK, "adapters.safetensors"
_KINDS = ("lora", "dora", "full")
_TRAIN = "train one with `python -m mlx_lm lora --train`"
_NAME = "name a folder that starts with `/`, `./`, `../` or `~`, or `org/name` on the Hub"
_A, _B = ".lora_a", ".lora_b"
_MATRIX = 2
_DEPTH = re.compile(r"\blayers\.(\d{1,6})\.")


def adapter_source(adapter: str) -> str:
    """Return an adapter as an absolute folder, or as a repository of the Hub. No I/O.

    Raises:
        ConfigurationError: It is neither.
    """
    if is_path(adapter):
        try:
            return absolute_path(adapter)
        except ValueError as error:
            raise ConfigurationError(f"`adapter` cannot be `{adapter}`: {error}") from error
    if not is_repository(adapter):
        spelled = read_spelling(adapter)
        raise ConfigurationError(
            f"`adapter` cannot be `{adapter}`",
            hint=f"did you mean `{spelled.repository}`?" if spelled else _NAME,
        )
    return adapter


def check_is_no_folder(adapter: str) -> None:
    """Refuse a name that is an adapter's folder here, and no path: the Hub would be asked for it.

    Raises:
        ConfigurationError: It is one.
    """
    if not is_path(adapter) and (folder := folder_called(adapter, CONFIG)):
        raise ConfigurationError(
            f"`adapter` cannot be `{adapter}`: it is the path of a folder here",
            hint=f"did you mean `{folder}`?",
        )


def adapter_name(source: str) -> str:
    """Return what an adapter adds to the served model name."""
    return source.rstrip("/").rpartition("/")[2] or "adapter"


def find_adapter(source: str) -> Path | None:
    """Return the folder of an adapter, None where one of the Hub is not here, or only in part."""
    if source.startswith("/"):
        return Path(source)
    folder, commit = repository_folder(source), find_commit(source)
    found = folder / "snapshots" / commit if folder is not None and commit else None
    is_whole = found is not None and all(is_file(found / name) for name in (CONFIG, WEIGHTS))
    return found if is_whole else None


def check_adapter(adapter: Path, model: Path, *, multimodal: bool) -> None:
    """Refuse an adapter that the server could not serve on top of a model.

    Raises:
        UnservableModelError: Parts of it are missing, or it belongs to another model.
    """
    if multimodal:
        paths = ("--model", str(model), "--adapter-path", str(adapter))
        raise _obstacle(
            adapter,
            "vllm-mlx cannot load adapters for models that take media",
            f"fuse it with `{shlex.join(('python', '-m', 'mlx_lm', 'fuse', *paths))}` and serve "
            "the result, or train on a text-only model",
        )
    check_adapter_alone(adapter)
    _check_shapes(adapter, model)


def check_adapter_alone(adapter: Path) -> None:
    """Refuse what no model could be served with.

    Raises:
        UnservableModelError: Parts of it are missing or damaged.
    """
    files = _files_of(adapter)
    if WEIGHTS not in files and "adapter_model.safetensors" in files:
        raise _obstacle(adapter, "it is a PEFT adapter, which mlx-lm cannot read", _TRAIN)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            near = near_folders(adapter, CONFIG)
            hint = f"did you mean {alternatives(near)}?" if near else _TRAIN
            raise _obstacle(adapter, f"it has no `{name}`", hint)
    _check_config(adapter, load_object(adapter / CONFIG))
    damage = find_damage(adapter / WEIGHTS)
    if damage is not None:
        raise _obstacle(adapter, f"`{WEIGHTS}` {damage.reason}", damage.hint)


def _files_of(adapter: Path) -> Mapping[str, int | None]:
    try:
        return list_folder(adapter)
    except UnservableModelError as error:
        if not error.is_missing:
            raise
        near = near_folders(adapter, CONFIG)
        what = "is not a folder" if is_file(adapter) else "does not exist"
        beside = tell_beside(adapter, CONFIG, "adapter")
        hint = f"did you mean {alternatives(near)}?" if near else beside
        raise UnservableModelError(f"the adapter `{_shown(adapter)}` {what}", hint=hint) from error


def _check_config(adapter: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise _obstacle(adapter, f"mlx-lm knows no adapters of the type `{kind}`", _TRAIN)
    if kind == "full":
        return
    parameters = config.get("lora_parameters")
    has_all = isinstance(parameters, dict) and {"rank", "scale", "dropout"} <= parameters.keys()
    if not has_all or not isinstance(config.get("num_layers"), int):
        text = (
            f"its `{CONFIG}` does not say `num_layers`, or has no `lora_parameters` with rank, "
            "scale and dropout"
        )
        raise _obstacle(adapter, text, _TRAIN)


def _check_shapes(adapter: Path, model: Path) -> None:
    """Compare the tensors of an adapter with the layers that they change.

    Names on the disk may not be those that mlx-lm gives the layers, so a few may be unknown.
    """
    base: dict[str, list[int]] = {}
    for name in list_folder(model):
        if is_weight(name, "*.safetensors"):
            base.update(read_shapes(model / name))
    tensors = read_shapes(adapter / WEIGHTS)
    layers = {_layer_of(name) for name in tensors}
    if not any(f"{layer}.weight" in base or layer in base for layer in layers):
        changed = min(layers, default="nothing")
        raise _foreign(adapter, f"it changes `{changed}`, which the model does not have")
    depth = max(map(_depth_of, base), default=0)
    if max(map(_depth_of, layers), default=0) > depth:
        raise _foreign(adapter, f"it changes layers beyond the {depth + 1} of the model")
    for name, shape in tensors.items():
        layer = base.get(f"{_layer_of(name)}.weight")
        is_packed = f"{_layer_of(name)}.scales" in base
        if layer is None or len(shape) != _MATRIX or len(layer) != _MATRIX:
            continue
        wrong_out = name.endswith(_B) and shape[1] not in layer
        wrong_in = name.endswith(_A) and not is_packed and shape[0] not in layer
        if wrong_out or wrong_in:
            raise _foreign(
                adapter, f"its `{name}` has the shape {shape}, but the layer has {layer}"
            )


def _layer_of(name: str) -> str:
    return name.removesuffix(_A).removesuffix(_B).removesuffix(".m").removesuffix(".weight")


def _depth_of(name: str) -> int:
    found = _DEPTH.search(name)
    return int(found[1]) if found else 0


def _foreign(adapter: Path, reason: str) -> UnservableModelError:
    hint = f"name the model that it was trained on{_base(adapter)}"
    return _obstacle(adapter, f"it was trained on another model: {reason}", hint)


def _base(adapter: Path) -> str:
    """Return which model an adapter says that it was trained on."""
    try:
        name = load_object(adapter / CONFIG).get("model")
    except UnservableModelError:
        name = None
    return f": `{name}`" if isinstance(name, str) and name.isprintable() else ""


def _obstacle(adapter: Path, reason: str, hint: str) -> UnservableModelError:
    return UnservableModelError(
        f"the adapter `{_shown(adapter)}` cannot be served: {reason}",
        hint=hint or "leave `adapter` out",
    )


def _shown(adapter: Path) -> str:
    return json.dumps(str(adapter))[1:-1]
