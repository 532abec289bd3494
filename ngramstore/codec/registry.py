"""The codecs by name: what `codec="int8"` and the manifest's codec spec mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ngramstore.codec.base import Codec
from ngramstore.codec.e4m3 import E4M3
from ngramstore.codec.floats import BF16, F16, F32
from ngramstore.codec.int4 import Int4
from ngramstore.codec.int8 import Int8
from ngramstore.errors import UsageError

_CLASSES: dict[str, type[Codec]] = {cls.name: cls for cls in (F32, F16, BF16, Int8, Int4, E4M3)}
CODECS: tuple[str, ...] = tuple(_CLASSES)


def codec_from_spec(spec: str | Mapping[str, Any], dim: int) -> Codec:
    """The codec that `spec` describes, for rows of `dim` values.

    spec: a name of CODECS, or a mapping {"name": ..., option: ...}, as `Codec.spec()` returns it.
    Raises UsageError for an unknown name or option, listing the known ones.
    """
    options = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in _CLASSES:
        raise UsageError(f"unknown codec {spec!r}", hint=f"the codecs are {', '.join(CODECS)}")
    known = _CLASSES[name].options
    if unknown := sorted(map(str, options.keys() - set(known))):
        hint = f"{name} knows {', '.join(known)}" if known else f"{name} has no options"
        raise UsageError(f"unknown option {', '.join(unknown)} in codec {spec!r}", hint=hint)
    return _CLASSES[name](dim, **options)
