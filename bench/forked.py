"""Workers of a quick run: forked from one process that has imported everything already, which saves a second each.

The process that is forked has opened no store and started no thread, so a worker is as fresh as a new interpreter but for what
is imported; memory that it shares with its parent is why cases that measure memory start interpreters of their own.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import threading
import traceback
from multiprocessing.connection import Connection

PRELOAD = "bench.preload"


class Server:
    """Forks workers. `environment` holds for all of them: libraries read it when they are imported."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._one_at_a_time = threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOAD])

    def run(self, function: str, arguments: dict, timeout_s: float) -> dict:
        """The worker function's result. Raises TimeoutError, RuntimeError with what went wrong."""
        mine, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(function, json.dumps(arguments), theirs))
        with self._one_at_a_time:
            before = {name: os.environ.get(name) for name in self.environment}
            os.environ.update(self.environment)  # the fork server starts with the first worker
            try:
                process.start()
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value
        theirs.close()
        try:
            if not mine.poll(timeout_s):
                process.kill()
                raise TimeoutError(f"no answer after {timeout_s:.0f} s")
            answer = json.loads(mine.recv())
        except EOFError as error:
            process.join()
            raise RuntimeError(f"exit {process.exitcode}: no answer") from error
        process.join()
        if "error" in answer:
            raise RuntimeError(f"exit 1: {answer['error']}")
        return answer["result"]


def _work(function: str, arguments: str, answer: Connection) -> None:
    module, name = function.split(":")
    try:
        result = getattr(importlib.import_module(module), name)(**json.loads(arguments))
        answer.send(json.dumps({"result": result}))
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip()
        answer.send(json.dumps({"error": last}))
