"""Train a LoRA adapter with mlx-lm in the Python of the runtime that this package installs.

python examples/finetune/train.py MODEL ADAPTER [ITERATIONS]

MODEL is a folder or a repository of the Hub, ADAPTER the folder that is written. The lines in
data/ teach the model an answer that no model knows by itself.
"""

import subprocess
import sys
from pathlib import Path

from langchain_car_vllm.runtime import ensure_runtime, interpreter_of

model, adapter, iterations = [*sys.argv[1:], "40"][:3]
python = interpreter_of(ensure_runtime().server)
data = Path(__file__).parent / "data"
command = [python, "-m", "mlx_lm", "lora", "--train", "--model", model, "--data", data]
command += ["--adapter-path", adapter, "--iters", iterations, "--batch-size", "1"]
command += ["--num-layers", "4", "--learning-rate", "5e-4", "--steps-per-report", "10"]
command += ["--val-batches", "1", "--steps-per-eval", "1000", "--max-seq-length", "128"]
command += ["--mask-prompt"]  # the answers alone are learnt
subprocess.run([str(part) for part in command], check=True)
print(f"trained: {adapter}")
