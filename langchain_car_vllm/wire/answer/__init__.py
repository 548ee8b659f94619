"""What comes in: from bytes to LangChain messages."""
