"""The dialect: what vllm-mlx and LangChain say to each other."""
