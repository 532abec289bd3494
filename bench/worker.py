"""A fresh process for one subject in one round: reads a JSON task on stdin, prints a JSON result as its last line.

Task: {"function": "package.module:name", "arguments": {...}}. The function returns {"metrics": {...}, "facts": {...}}.
"""

from __future__ import annotations

import importlib
import json
import sys


def main() -> None:
    task = json.load(sys.stdin)
    module, name = task["function"].split(":")
    result = getattr(importlib.import_module(module), name)(**task["arguments"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
