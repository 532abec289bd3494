"""numba frees an array of a kernel behind the last line that names it, whoever still has its address.

So the array is named again behind the last use of an address of it, or it is the array that goes into a call: an
address that does is all that is left of the array when the call begins.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ngramstore.kernels import native

FILES = sorted(Path(native.__file__).parent.glob("*.py"))
CONVERTS = {"int64", "uint64"}
ALLOCATES = {"empty", "zeros", "ones", "full", "arange", "argsort", "copy", "empty_like", "zeros_like"}


def dangling(source: str) -> list[str]:
    """Addresses that outlive their array, `function: name`, in the functions of a module."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [f"{function.name}: {name}" for function in functions for name in _of(function)]


def _of(function: ast.FunctionDef) -> Iterator[str]:
    owned = {name: value.lineno for name, value in _assigned(function) if _allocates(value)}
    last = {node.id: node.lineno for node in sorted(_names(function), key=lambda node: node.lineno)}
    for name, value in _assigned(function):
        for array in owned.keys() & set(_addressed(value)):
            if last[array] <= last[name]:
                yield name
    loops = [range(node.lineno, _end(node) + 1) for node in ast.walk(function) if isinstance(node, ast.For | ast.While)]
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and not _converts(call):
            for array in owned.keys() & {array for argument in call.args for array in _addressed(argument)}:
                is_named_again = any(call.lineno in loop and owned[array] not in loop for loop in loops)
                if last[array] <= _end(call) and not is_named_again:
                    yield array


def _end(node: ast.stmt | ast.expr) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """Names and what they are assigned, tuples taken apart."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            elif isinstance(target, ast.Tuple):
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value] * len(target.elts)
                for part, value in zip(target.elts, values, strict=True):
                    if isinstance(part, ast.Name):
                        yield part.id, value


def _allocates(value: ast.expr) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in ALLOCATES for node in ast.walk(value))


def _addressed(value: ast.expr) -> Iterator[str]:
    """Arrays whose address an expression is made of; an address that only goes into a call is none."""
    if isinstance(value, ast.Call) and not _converts(value):
        return
    if isinstance(value, ast.Attribute) and value.attr == "ctypes" and isinstance(value.value, ast.Name):
        yield value.value.id
    for part in ast.iter_child_nodes(value):
        if isinstance(part, ast.expr):
            yield from _addressed(part)


def _converts(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in CONVERTS


def _names(function: ast.FunctionDef) -> Iterator[ast.Name]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Name))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_address_outlives_its_array(path):
    assert dangling(path.read_text()) == []


def test_an_address_that_does_is_seen():
    kernel = """
def kernel(out):
    scratch = np.empty(8, np.uint8)
    at = np.int64(scratch.ctypes.data)
    fill(at)
    {last}
    base = np.int64(out.ctypes.data)
    return base
"""
    assert dangling(kernel.format(last="pass")) == ["kernel: at"]
    assert dangling(kernel.format(last="use(scratch)")) == []
    pair = "def kernel():\n    a, b = np.empty(2), np.zeros(3)\n    at = np.int64(b.ctypes.data)\n    return at\n"
    assert dangling(pair) == ["kernel: at"]


def test_an_address_that_alone_goes_into_a_call_is_seen():
    kernel = """
def kernel(out):
    scratch = np.empty(8, np.uint8)
    fill(np.int64(scratch.ctypes.data), out)
    {last}
    for m in range(8):
        within = np.empty(8, np.uint8)
        fill(np.int64(within.ctypes.data) + m, out)
        {last_within}
"""
    assert dangling(kernel.format(last="pass", last_within="use(within)")) == ["kernel: scratch"]
    assert dangling(kernel.format(last="use(scratch)", last_within="pass")) == ["kernel: within"]
    again = (
        "def kernel(out):\n    a = np.empty(2)\n    for m in range(8):\n        fill(np.int64(a.ctypes.data), out)\n"
    )
    assert dangling(again) == []
