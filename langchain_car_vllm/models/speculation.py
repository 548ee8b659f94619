"""What can draft tokens for a model: its own MTP heads, or a second model.

The server verifies every draft, so that the tokens stay those of the model. What would be passed
over in silence is refused here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_car_vllm.errors import UnservableModelError, UntrustedCodeError
from langchain_car_vllm.models.config import is_multimodal
from langchain_car_vllm.models.model_files import is_file, list_folder, read_object
from langchain_car_vllm.models.remote_code import find_code
from langchain_car_vllm.models.snapshot import find_snapshot, served_source
from langchain_car_vllm.models.weights import MEDIA_WEIGHTS, is_weight, read_shapes
from langchain_car_vllm.support.printable import on_one_line

MTP = "mtp"
_COUNTS = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
# By a part of the model's type, where vllm-mlx 0.6.0 looks for the heads: nowhere else.
_FILES = {
    "qwen3_5": ("mtp/weights.safetensors", "model-mtp.safetensors"),
    "qwen3_next": ("model-mtp.safetensors",),
}
_OFF = "leave `draft` out"


def check_draft(
    draft: str, model: Path, name: str, *, engine: str | None = None, trust: bool = False
) -> None:
    """Refuse what would draft nothing, or run code.

    Args:
        draft: `mtp`, or the draft model as a folder or repository.
        model: The folder of the model that it drafts for.
        name: That model's name, for the error.
        engine: As the user chose it.
        trust: Whether the user trusts code that models bring.

    Raises:
        UntrustedCodeError: The draft model brings code that nobody trusts.
        UnservableModelError: The model has no heads, or takes no draft model.
    """
    config = read_object(model / "config.json") or {}
    check_draft_by_config(draft, config, name, engine=engine)
    if draft == MTP:
        if reason := _lacks_heads(model, _files_of_heads(config)):
            raise _no_draft(name, reason)
        return
    found = find_draft(draft)
    code = None if trust else find_code(list_folder(found), lambda file: read_object(found / file))
    if code is not None:
        raise UntrustedCodeError(on_one_line(draft), code)


def check_draft_by_config(
    draft: str, config: Mapping[str, Any], name: str, *, engine: str | None = None
) -> None:
    """Refuse what a model's `config.json` alone tells would draft nothing.

    Raises:
        UnservableModelError: The model has no heads, or takes no draft model.
    """
    if draft == MTP:
        if not _names_heads(config):
            raise _no_draft(name, "its `config.json` does not name any MTP heads")
        if not _files_of_heads(config):
            reason = "vllm-mlx uses the MTP heads of Qwen3.5, Qwen3.6 and Qwen3-Next only"
            raise _no_draft(name, reason)
        if engine == "simple":
            raise _no_draft(
                name, "the simple engine does not draft", f"leave `engine` out, or {_OFF}"
            )
    elif not is_multimodal(config):
        raise UnservableModelError(
            f"`{name}` takes no draft model: the server supports one only for models with vision",
            hint=f"write `draft=True` where the model has MTP heads, or {_OFF}",
        )


def _no_draft(
    name: str,
    reason: str,
    hint: str = f"choose a conversion with the heads in a `model-mtp.safetensors`, or {_OFF}",
) -> UnservableModelError:
    return UnservableModelError(f"`{name}` cannot draft for itself: {reason}", hint=hint)


def find_draft(draft: str) -> Path:
    """Return the local copy of a draft model, which nobody downloads by the way.

    Raises:
        UnservableModelError: There is none.
    """
    found = find_snapshot(draft)
    if found is None:
        raise UnservableModelError(
            f"the draft model `{draft}` is not on this machine", hint=f"run `car-vllm pull {draft}`"
        )
    return found


def draft_to_serve(draft: str | None) -> str | None:
    """Return `mtp`, or what the server is given as the draft model; None for nothing."""
    if draft is None or draft == MTP:
        return draft
    snapshot = find_snapshot(draft)
    return served_source(snapshot, draft) if snapshot is not None else draft


def draft_bytes(draft: str | None) -> int:
    """Return the size of a draft model's weights; heads are counted with their model."""
    snapshot = None if draft in (None, MTP) else find_snapshot(str(draft))
    if snapshot is None:
        return 0
    files = list_folder(snapshot)
    return sum(size or 0 for name, size in files.items() if is_weight(name, MEDIA_WEIGHTS))


def _names_heads(config: Mapping[str, Any]) -> bool:
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    return any(_is_count(part.get(name)) for part in parts for name in _COUNTS)


def _files_of_heads(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return where vllm-mlx looks for a model's heads, nothing where it uses none."""
    text = config.get("text_config")
    inner = text.get("model_type") if isinstance(text, dict) else None
    kind = str(inner or config.get("model_type"))
    return next((files for part, files in _FILES.items() if part in kind), ())


def _lacks_heads(model: Path, files: tuple[str, ...]) -> str | None:
    if any(is_file(model / name) for name in files):
        return None
    weights = (name for name in list_folder(model) if is_weight(name, MEDIA_WEIGHTS))
    if any("mtp." in tensor for name in weights for tensor in read_shapes(model / name)):
        return "its MTP heads are among its other weights, where vllm-mlx does not look for them"
    return "its weights have no MTP heads, although its `config.json` names some"


def _is_count(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and found > 0
