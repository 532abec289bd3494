"""The reference decoder: causal, the same with a cache, and honest about its cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torch_cases import DECODER, VOCAB

from ngramstore.errors import UsageError
from ngramstore_torch.model.decoder import Decoder, DecoderConfig, KVCache


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(DECODER).eval()


def test_a_later_token_never_changes_an_earlier_logit(decoder):
    tokens = torch.randint(0, VOCAB, (2, 20))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % VOCAB
    before, after = decoder(tokens), decoder(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("steps", [(20,), (1,) * 20, (7, 1, 12)])
def test_logits_with_a_cache_are_those_without(decoder, steps):
    tokens = torch.randint(0, VOCAB, (3, 20))
    cache, parts, begin = KVCache(DECODER, 3), [], 0
    for step in steps:
        parts.append(decoder(tokens[:, begin : begin + step], cache=cache))
        begin += step
    torch.testing.assert_close(torch.cat(parts, 1), decoder(tokens), rtol=1e-4, atol=1e-5)


def test_token_ids_and_their_embeddings_give_the_same_logits(decoder):
    tokens = torch.randint(0, VOCAB, (2, 9))
    assert torch.equal(decoder(tokens), decoder(inputs_BTD=decoder.tokens(tokens)))


@torch.no_grad()
def test_the_logits_of_an_untied_head_are_its_own():
    torch.manual_seed(0)
    decoder = Decoder(replace(DECODER, tied_head=False)).eval()
    inputs = torch.randn(2, 9, DECODER.dim)
    before = decoder(inputs_BTD=inputs)
    decoder.tokens.weight.zero_()
    assert torch.equal(decoder(inputs_BTD=inputs), before)
    decoder.head.weight.mul_(2)
    assert before.abs().max() > 0.1
    torch.testing.assert_close(decoder(inputs_BTD=inputs), 2 * before)


@pytest.mark.parametrize("tied", [True, False])
def test_the_counted_parameters_are_the_real_ones(tied):
    config = DecoderConfig(vocab_size=50, dim=48, num_layers=3, num_heads=2, tied_head=tied)
    assert config.num_parameters() == sum(p.numel() for p in Decoder(config).parameters())


def test_the_counted_flops_are_those_of_the_matrix_products():
    """PyTorch counts the whole square of attention scores; causal attention needs (T + 1) / 2T of it."""
    config = DecoderConfig(vocab_size=50, dim=48, num_layers=3, num_heads=2, max_positions=16)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Decoder(config)(torch.zeros(1, 16, dtype=torch.long))
    square = 3 * 2 * 2 * 48 * 16 * 16
    assert config.flops_per_token() * 16 == counter.get_total_flops() - square + square * 17 // 32


@pytest.mark.parametrize("by", ["width", "depth"])
def test_a_decoder_scaled_to_twice_the_flops_has_about_twice_the_flops(by):
    config = DecoderConfig(vocab_size=1024, dim=192, num_layers=4, num_heads=6)
    ratio = config.scaled(2.0, by=by).flops_per_token() / config.flops_per_token()
    assert ratio == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize("factor", [0.7, 1.5, 2.0, 3.0, 50.0])
@pytest.mark.parametrize(("dim", "num_heads"), [(192, 1), (192, 3), (96, 1), (64, 1), (100, 1), (512, 8)])
def test_a_decoder_is_widened_to_any_factor(dim, num_heads, factor):
    """Whole heads alone are steps too large for a small decoder: its rival of twice the FLOPs would have 1 or 2.9 times
    as many."""
    config = DecoderConfig(vocab_size=1024, dim=dim, num_layers=1, num_heads=num_heads)
    scaled = config.scaled(factor)
    assert scaled.flops_per_token() / config.flops_per_token() == pytest.approx(factor, rel=0.1)
    assert config.head_dim / 2 <= scaled.head_dim <= 2 * config.head_dim


def test_a_sequence_longer_than_the_positions_is_refused(decoder):
    with pytest.raises(UsageError, match="33 tokens long, this decoder holds 32"):
        decoder(torch.zeros(1, 33, dtype=torch.long))


def test_a_width_that_does_not_split_into_heads_is_refused():
    with pytest.raises(UsageError, match="dim=50 does not split into 3 heads"):
        DecoderConfig(vocab_size=10, dim=50, num_heads=3)
