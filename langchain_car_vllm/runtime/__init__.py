"""The installed software: host check, locating and provisioning `vllm-mlx`."""
