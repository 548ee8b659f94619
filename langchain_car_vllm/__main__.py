"""`python -m langchain_car_vllm` is `car-vllm`."""

from langchain_car_vllm.cli import main

if __name__ == "__main__":
    main()
