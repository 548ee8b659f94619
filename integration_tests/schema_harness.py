"""Builds grammars and answers by them as the server does, under the server's own Python.

    python schema_harness.py LAUNCHER_FOLDER TOKENIZER_FOLDER

Each line of the input is a schema, each line of the output what became of it: `refused` with the
reason, `answered`, or `ended` with the reason why the answer had to end. Anything else is a fault.
"""

import json
import random
import sys

sys.path.insert(0, sys.argv[1])
import launch

sys.argv[1:1] = ["serve"]
launch._install_mends(None)

import mlx.core as mx
from transformers import AutoTokenizer
from vllm_mlx.api.tool_calling import build_json_logits_processor, validate_json_schema

tokenizer = AutoTokenizer.from_pretrained(sys.argv[3])
refusal = sys.modules["mends.schema_admission"].RefusedSchemaError


def outcome(schema: object) -> list[str]:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    try:
        processor = build_json_logits_processor(wanted, tokenizer)
    except refusal as error:
        return ["refused", str(error)]
    context, source = [1], random.Random(1)
    for _ in range(20):
        masked = processor(mx.array(context), mx.zeros((1, len(tokenizer))))
        allowed = [n for n, v in enumerate(masked[0].tolist()) if v > -1e30]
        if processor.failure is not None:
            return ["ended", processor.failure]
        if not allowed or allowed == [tokenizer.eos_token_id]:
            break
        context.append(source.choice(allowed[:50]))
    validate_json_schema({"x": 1}, schema)
    return ["answered", ""]


for line in sys.stdin:
    try:
        found = outcome(json.loads(line))
    except BaseException as error:  # a panic of Rust's is no Exception
        found = ["fault", f"{type(error).__name__}: {error}"]
    print(json.dumps(found), flush=True)
