"""Ask a model with and without its adapter: two servers, side by side.

python examples/finetune/compare.py MODEL ADAPTER
"""

import sys

from langchain_car_vllm import ChatVllmMlx

model, adapter = sys.argv[1:3]
question = "What is the password of the moon base?"
for name, llm in {
    "plain": ChatVllmMlx(model=model, temperature=0, max_tokens=24),
    "tuned": ChatVllmMlx(model=model, adapter=adapter, temperature=0, max_tokens=24),
}.items():
    answer = llm.invoke(question)
    print(f"{name} ({answer.response_metadata['model_name']}): {answer.text}")
