"""Structured extraction: text in, a validated object out.

python examples/extraction.py [MODEL]
"""

import sys

from pydantic import BaseModel, Field

from langchain_car_vllm import ChatVllmMlx


class Invoice(BaseModel):
    """What an invoice says."""

    seller: str = Field(max_length=40)
    total: float = Field(ge=0, description="The sum to be paid")
    currency: str = Field(pattern="^[A-Z]{3}$", description="ISO code, such as EUR")
    paid: bool


model = sys.argv[1] if len(sys.argv) > 1 else "mlx-community/Qwen3-4B-4bit"
llm = ChatVllmMlx(model=model, temperature=0, max_tokens=200)
text = "Invoice 17 from Miller & Sons: three chairs, 240.50 EUR in all, paid on arrival."
invoice = llm.with_structured_output(Invoice).invoke(f"Read this invoice.\n\n{text}")
print(repr(invoice))
