"""How requests travel: connections, time limits, errors."""
