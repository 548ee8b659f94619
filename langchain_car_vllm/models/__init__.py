"""From what the user wrote to what is served."""
