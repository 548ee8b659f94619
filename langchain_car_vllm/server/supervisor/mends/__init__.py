"""What the launcher mends in the server's own installation, one subject a module.

These files are copied beside `launch.py` and run under the server's Python: standard library of
Python 3.10, relative imports, and the server's modules only once the server has imported them.
"""
