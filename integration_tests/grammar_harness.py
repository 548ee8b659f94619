"""Builds grammars with the server's own llguidance; runs under its Python.

Reads a JSON schema from each line of standard input and writes what llguidance says of it.
"""

import json
import sys

from llguidance import LLMatcher

for line in sys.stdin:
    is_error, messages = LLMatcher.validate_grammar_with_warnings(
        LLMatcher.grammar_from_json_schema(json.loads(line))
    )
    print(json.dumps(messages[0] if is_error else ""), flush=True)
