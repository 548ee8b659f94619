"""What every layer may use, and what knows nothing of models, servers or calls."""
