"""Models that could be served, made of files that hold nothing of interest."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.weights import weights_of

WriteModel = Callable[..., Path]


@pytest.fixture
def whole_model(tmp_path: Path) -> WriteModel:
    """Write the files of a model that the server could load; a file of None is left out."""

    def write(name: str = "model", **files: object) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "config.json": {"model_type": "llama"},
            "tokenizer.json": {},
            "model.safetensors": weights_of(1000),
        } | {name.replace("__", "."): content for name, content in files.items()}
        for file, content in contents.items():
            if content is None:
                continue
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            (folder / file).write_bytes(data)
        return folder

    return write
