"""One call of the model: which requests it takes, and what ends it."""
