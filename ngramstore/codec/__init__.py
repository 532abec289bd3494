"""How rows become bytes: row codecs (quantization) and the compression of stored rows."""

from ngramstore.codec.base import Codec
from ngramstore.codec.quantize import CODECS, codec_from_spec

__all__ = ["CODECS", "Codec", "codec_from_spec"]
