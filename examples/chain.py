"""A chain: prompt, model, parser; one answer, a batch, a stream.

python examples/chain.py [MODEL]
"""

import sys

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_car_vllm import ChatVllmMlx

model = sys.argv[1] if len(sys.argv) > 1 else "mlx-community/Qwen3-4B-4bit"
llm = ChatVllmMlx(model=model, temperature=0, max_tokens=60)
prompt = ChatPromptTemplate.from_messages(
    [("system", "You answer in one short sentence."), ("user", "What is {thing}?")]
)
chain = prompt | llm | StrOutputParser()

print(chain.invoke({"thing": "a moon"}))
print(chain.batch([{"thing": "a river"}, {"thing": "a train"}]))
for piece in chain.stream({"thing": "bread"}):
    print(piece, end="", flush=True)
print()
