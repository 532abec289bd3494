"""How rows become bytes: row codecs (quantization) and the compression of stored rows."""

from ngramstore.codec.base import Codec
from ngramstore.codec.registry import CODECS, codec_from_spec
from ngramstore.codec.second_order import SecondOrderInt4

__all__ = ["CODECS", "Codec", "SecondOrderInt4", "codec_from_spec"]
