"""Which model `train` trains: its sizes from the options, and its random start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ngramstore.cli.common import say

if TYPE_CHECKING:
    from ngramstore_torch.cli.text import Text
    from ngramstore_torch.model.decoder import DecoderConfig
    from ngramstore_torch.model.fgram import FgramConfig
    from ngramstore_torch.model.hashed import HashedConfig
    from ngramstore_torch.model.kinds import LanguageModel


def shapes(
    o: dict[str, Any], vocab_size: int = 1, max_n: int = 2
) -> tuple[DecoderConfig, FgramConfig | HashedConfig | None]:
    """Of the decoder, and of what is trained beside it. UsageError for sizes that no vocabulary would make good."""
    from ngramstore_torch.model.decoder import DecoderConfig
    from ngramstore_torch.model.fgram import FgramConfig
    from ngramstore_torch.model.hashed import HashedConfig

    heads = o["heads"] or max(1, o["dim"] // 64)
    decoder = DecoderConfig(
        vocab_size=vocab_size, dim=o["dim"], num_layers=o["layers"], num_heads=heads, max_positions=o["seq_len"]
    )
    if o["plain"]:
        return decoder if o["flops_factor"] == 1 else decoder.scaled(o["flops_factor"]), None
    if o["hashed"] is not None:
        return decoder, HashedConfig(num_rows=o["hashed"], max_n=max_n)
    fgram = FgramConfig(
        dim=o["dim"], max_n=max_n, num_layers=o["fgram_layers"], num_heads=heads, width=o["fgram_width"]
    )
    return decoder, fgram


def make_model(text: Text, o: dict[str, Any]) -> LanguageModel:
    """A fresh model of the sizes asked for, its random start fixed by the seed."""
    import torch

    from ngramstore_torch.model.hashed import HashedConfig, HashedModel
    from ngramstore_torch.model.scone import PlainModel, SconeModel

    decoder, beside = shapes(o, text.vocab_size, 5 if text.vocabulary is None else text.vocabulary.max_n)
    if o["flops_factor"] != 1:
        asked, _ = shapes(o | {"flops_factor": 1}, text.vocab_size)
        ratio = decoder.flops_per_token() / asked.flops_per_token()
        say(f"a decoder of width {decoder.dim} with {decoder.num_heads} heads: {ratio:.2f} times the FLOPs per token")
    torch.manual_seed(o["seed"])
    if beside is None:
        return PlainModel(decoder)
    return HashedModel(decoder, beside) if isinstance(beside, HashedConfig) else SconeModel(decoder, beside)
