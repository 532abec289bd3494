"""What numba does not offer: loads at an address, prefetch, and the two system calls of a cold read.

An address is an int64; whoever passes one keeps its buffer alive and has checked its bounds.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

HAS_READ_HINT = sys.platform.startswith("linux")
"""posix_fadvise exists: a batch can ask for all its pages before it waits for one."""
WILLNEED = 3

pread = types.ExternalFunction("pread", types.intp(types.int32, types.int64, types.uint64, types.int64))
"""ssize_t pread(fd, address, count, offset), without the GIL."""
if HAS_READ_HINT:
    posix_fadvise = types.ExternalFunction(
        "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
    )
    """int posix_fadvise(fd, offset, length, advice), without the GIL."""


def _load(bits: int, result: types.Type):
    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, signature, arguments):
            word = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            return builder.load(word, align=1)

        return result(types.int64), codegen

    return load


load_u8 = _load(8, types.uint8)
load_u16 = _load(16, types.uint16)
load_u32 = _load(32, types.uint32)
load_u64 = _load(64, types.uint64)
"""load_u64(address): the u64 at any address, aligned or not."""


@intrinsic
def store_u8(typingctx, address, value):
    """Set the byte at an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.uint8), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache line at an address; never faults, whatever the address."""

    def codegen(context, builder, signature, arguments):
        void = ir.IntType(8).as_pointer()
        i32 = ir.IntType(32)
        callee = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [void, i32, i32, i32]), "llvm.prefetch.p0"
        )
        builder.call(callee, [builder.inttoptr(arguments[0], void), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def copy_bytes(typingctx, target, source, size):
    """memcpy between two addresses."""

    def codegen(context, builder, signature, arguments):
        void = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder,
            builder.inttoptr(arguments[0], void),
            builder.inttoptr(arguments[1], void),
            arguments[2],
            1,
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen
