"""What the detached process does: prepare, load, serve and end one server."""
