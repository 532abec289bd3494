"""A class put in front of an object's own class: a subclass of the same name whose methods this one object gets.

Weights, state and `isinstance` stay as they are. Copies and pickles of such an object have the class in front too; it is
made anew from the own class and the function that gives the methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

Methods = Callable[[Any], dict[str, Any]]
"""Own class -> methods by name; a function of a module, so that a pickle finds it by its name."""

_OWN, _METHODS = "_ngramstore_own_class", "_ngramstore_methods"


def put_in_front(thing: Any, methods: Methods) -> None:
    """The object's class gets a class with these methods in front. Raises what `methods` raises, before any change."""
    own: Any = type(thing)
    thing.__class__ = _class_in_front(own, methods)


def take_away(thing: Any) -> None:
    """Undo `put_in_front`; only where `is_in_front` holds."""
    thing.__class__ = type(thing).__dict__[_OWN]


def is_in_front(thing: Any, methods: Methods) -> bool:
    """Is the object's class the one that `put_in_front` made with these methods, and no subclass of it?"""
    return type(thing).__dict__.get(_METHODS) is methods


@functools.cache
def _class_in_front(own: Any, methods: Methods) -> Any:
    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        return _restored, (own, methods), dict(self.__dict__)  # copy.deepcopy reads it too

    names = {name: getattr(own, name) for name in ("__qualname__", "__module__", "__doc__")}
    kept = {_OWN: own, _METHODS: methods, "__reduce_ex__": __reduce_ex__}
    return type(own)(own.__name__, (own,), {**names, **kept, **methods(own)})


def _restored(own: Any, methods: Methods) -> Any:
    thing = own.__new__(own)
    put_in_front(thing, methods)
    return thing
