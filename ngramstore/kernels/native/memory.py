"""What numba does not offer: memory at an address, prefetch, compares of vectors, a lock between threads, calls by
address, four system calls.

An address is an int64; whoever passes one keeps its buffer alive and has checked its bounds.
"""

from __future__ import annotations

import ctypes
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ngramstore.kernels.jit import inline

HAS_READ_HINT = sys.platform.startswith("linux")
"""posix_fadvise exists: a batch can ask for all its pages before it waits for one."""
WILLNEED = 3
HAS_READ_AT_ONCE = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "preadv2")
"""preadv2 exists: a read can be told not to wait for the disk."""
NOWAIT = 8  # RWF_NOWAIT

pread = types.ExternalFunction("pread", types.intp(types.int32, types.int64, types.uint64, types.int64))
"""ssize_t pread(fd, address, count, offset), without the GIL."""
if HAS_READ_HINT:
    posix_fadvise = types.ExternalFunction(
        "posix_fadvise", types.int32(types.int32, types.int64, types.int64, types.int32)
    )
    """int posix_fadvise(fd, offset, length, advice), without the GIL."""
if HAS_READ_AT_ONCE:
    preadv2 = types.ExternalFunction(
        "preadv2", types.intp(types.int32, types.int64, types.int32, types.int64, types.int32)
    )
    """ssize_t preadv2(fd, address of (address, bytes) pairs, pairs, offset, flags), without the GIL."""


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
load_i64 = _load(64, types.int64)
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
def store_i64(typingctx, address, value):
    """Set the i64 at an address."""

    def codegen(context, builder, signature, arguments):
        builder.store(arguments[1], builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


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


_NUM_LANES = 16


@intrinsic
def which_of_16_equal(typingctx, address, value):
    """Bit i: number i of the sixteen u32 at an address, aligned or not, equals `value`. A few vector compares."""

    def codegen(context, builder, signature, arguments):
        lanes = ir.VectorType(ir.IntType(32), _NUM_LANES)
        nothing = ir.Constant(lanes, ir.Undefined)
        numbers = builder.load(builder.inttoptr(arguments[0], lanes.as_pointer()), align=1)
        first = builder.insert_element(nothing, arguments[1], ir.IntType(32)(0))
        values = builder.shuffle_vector(first, nothing, ir.Constant(lanes, [0] * _NUM_LANES))
        equal = builder.bitcast(builder.icmp_unsigned("==", numbers, values), ir.IntType(_NUM_LANES))
        return builder.zext(equal, ir.IntType(64))

    return types.int64(types.int64, types.uint32), codegen


@intrinsic
def trailing_zeros(typingctx, value):
    """Zero bits below the lowest set bit of an i64; 64 of 0."""

    def codegen(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.int64(types.int64), codegen


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


def _array_of(dtype: types.Type):
    """An intrinsic `array(address, count)`: the memory there as a C-contiguous array of `count` numbers."""

    @intrinsic
    def array(typingctx, address, count):
        def codegen(context, builder, signature, arguments):
            made = context.make_array(signature.return_type)(context, builder)
            size = context.get_abi_sizeof(context.get_data_type(dtype))
            address, count = arguments
            itemsize = context.get_constant(types.intp, size)
            context.populate_array(
                made,
                data=builder.inttoptr(address, made.data.type),
                shape=(count,),
                strides=(itemsize,),
                itemsize=itemsize,
                meminfo=None,
            )
            return made._getvalue()

        return types.Array(dtype, 1, "C", aligned=False)(types.int64, types.int64), codegen

    return array


i64_array = _array_of(types.int64)
f32_array = _array_of(types.float32)
u16_array = _array_of(types.uint16)
i8_array = _array_of(types.int8)
u8_array = _array_of(types.uint8)
"""u8_array(address, count): the memory there, aligned or not, which the caller keeps alive."""

_sched_yield = types.ExternalFunction("sched_yield", types.int32())


@inline
def yield_core():
    """Let other threads run."""
    _sched_yield()


@intrinsic
def _try_lock(typingctx, address):
    """Set the i64 at an address from 0 to 1; False if it was 1."""

    def codegen(context, builder, signature, arguments):
        word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        was = builder.cmpxchg(word, ir.IntType(64)(0), ir.IntType(64)(1), "acquire", "monotonic")
        return builder.extract_value(was, 1)

    return types.boolean(types.int64), codegen


@intrinsic
def unlock(typingctx, address):
    """Give back the lock at an address."""

    def codegen(context, builder, signature, arguments):
        word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.store_atomic(ir.IntType(64)(0), word, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def load_acquire_i64(typingctx, address):
    """The aligned i64 at an address that another thread gives back with `unlock`: what it did before has happened."""

    def codegen(context, builder, signature, arguments):
        word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(word, "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def add_atomic(typingctx, address, value):
    """Add to the i64 at an address that other threads add to as well."""

    def codegen(context, builder, signature, arguments):
        word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        builder.atomic_rmw("add", word, arguments[1], "monotonic")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@inline
def lock(address):
    """Wait for the lock at an address: an i64, 0 = free. Holders neither sleep nor call Python, so waits are short."""
    spins = 0
    while not _try_lock(address):
        spins += 1
        if spins > 64:  # its holder may have lost its core
            yield_core()


@intrinsic
def call_row_writer(typingctx, writer, source, target, dim, integer, bits):
    """Call a row writer (kernels/native/dequantize.py) by its address."""

    def codegen(context, builder, signature, arguments):
        i64 = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [i64] * 5)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), codegen


@intrinsic
def zero_bytes(typingctx, address, size):
    """Set `size` bytes at an address to 0."""

    def codegen(context, builder, signature, arguments):
        void = ir.IntType(8).as_pointer()
        cgutils.memset(builder, builder.inttoptr(arguments[0], void), arguments[1], 0)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen
