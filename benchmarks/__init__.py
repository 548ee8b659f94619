"""Benchmarks: every row side by side in one run, with the bar it has to keep."""
