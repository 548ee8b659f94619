"""Models on this machine, as the command line meets them."""

from pathlib import Path

from fakes.weights import weights_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CATALOG = "vllm-mlx/qwen3.6-35b-a3b:4bit"


def fill(snapshot: Path) -> None:
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(
        '{"model_type": "llama", "max_position_embeddings": 4096}'
    )
    (snapshot / "tokenizer.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(weights_of(2_000_000))


def download(cache: Path, repository: str) -> Path:
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    fill(folder / "snapshots" / COMMIT)
    return folder / "snapshots" / COMMIT
