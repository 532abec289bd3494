"""What the arrays CALL of `few` and of `few_rows` begin with. No kernels of its own.

Each array that a call from Python hands over costs 0.1 us: so all that stays the same from call to call is in one. It
begins with the plan of the output rows; then come the columns below, then those of its kernels, from NUM_COMMON on.

STATE is the address of the cache's, 0 without a cache. COUNTS is that of counters of the handle that threads add to:
calls, positions, found, and more where a kernel says so. RESIDENT is 0, or where all rows of the only layer lie in
memory one after the other; there is no cache then.
"""

from __future__ import annotations

import numpy as np

from ngramstore.kernels.jit import inline
from ngramstore.kernels.native.dequantize import NUM_PLAN
from ngramstore.kernels.native.memory import add_atomic

STATE, COUNTS, RESIDENT = NUM_PLAN, NUM_PLAN + 1, NUM_PLAN + 2
NUM_COMMON = NUM_PLAN + 3


@inline
def add_call(call, positions, found):
    """Count a call of so many positions, of which so many were found."""
    add_atomic(call[COUNTS], np.int64(1))
    add_atomic(call[COUNTS] + 8, np.int64(positions))
    add_atomic(call[COUNTS] + 16, np.int64(found))
