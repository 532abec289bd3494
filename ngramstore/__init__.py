"""ngramstore: an embedded key-value store for n-gram embeddings.

    import ngramstore as ngs

    with ngs.build("store/", dim=1024, max_n=5, codec="int8") as b:
        b.add(ngrams, rows)
    store = ngs.open("store/", cache_bytes=2 << 30)
    hit = store.lookup(tokens)          # longest stored n-gram that ends at each token
    rows, found = store.get(ngrams)     # exact keys

Importing this package is fast: numba, zstandard and rocksdict load when a store is built or opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ngramstore import errors

if TYPE_CHECKING:
    from ngramstore.api import build, open, sizes
    from ngramstore.serve.store import Hit, Store
    from ngramstore.store.building.build import Builder
    from ngramstore.store.imports.importing import import_checkpoint
    from ngramstore.store.trace import Trace

__version__ = "0.1.0"
__all__ = ["Builder", "Hit", "Store", "Trace", "__version__", "build", "errors", "import_checkpoint", "open", "sizes"]

_HOMES = {
    "build": "ngramstore.api",
    "open": "ngramstore.api",
    "sizes": "ngramstore.api",
    "Builder": "ngramstore.store.building.build",
    "Hit": "ngramstore.serve.store",
    "Store": "ngramstore.serve.store",
    "Trace": "ngramstore.store.trace",
    "import_checkpoint": "ngramstore.store.imports.importing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ngramstore' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
