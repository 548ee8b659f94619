"""What goes out: parameters, tools, messages, media, schemas."""
