"""The version of this package, as the code that runs knows it.

The metadata of the install tell that of an upgrade under a running program.
"""

VERSION = "0.1.0"
