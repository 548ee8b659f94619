"""Hours of hostile use in minutes: random calls, random kills, and what must hold throughout."""
