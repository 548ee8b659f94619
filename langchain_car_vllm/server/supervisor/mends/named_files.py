"""No text of a request names a file of this machine."""

from typing import Any

from .mend import UnknownCodeError, find, mend

_MEDIA = ("data:audio/", "http://", "https://")


@mend("named-files", "vllm_mlx.models.mllm", "vllm-mlx 0.6.0")
def _take_no_paths(module: Any) -> None:
    """Take sounds from data and addresses alone, as images and videos are.

    vllm-mlx 0.6.0 opens whatever file a request names as its sound. What it has written into a
    temporary file itself comes by again as that file's path, and is known by it.
    """
    process = find(module, "process_audio_input", "audio")
    files = getattr(getattr(module, "_temp_manager", None), "_files", None)
    if not isinstance(files, set):
        raise UnknownCodeError("there is no set of temporary files")

    def process_named(audio: Any) -> Any:
        named = audio
        while isinstance(named, dict):
            named = named.get("url", named.get("audio_url", ""))
        is_path = isinstance(named, str) and named and not named.startswith(_MEDIA)
        if is_path and named not in files:
            raise ValueError(
                "Unsupported audio input. Only http(s) URLs and data:audio base64 payloads "
                "are allowed."
            )
        return process(audio)

    module.process_audio_input = process_named


MENDS = (_take_no_paths,)
