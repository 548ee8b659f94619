"""The running process: one supervised server per model for all processes of a user."""
