"""A_f starts as the identity on the last token, sees nothing behind an f-gram's end, and passes gradients on."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch_cases import FGRAM, scone, shaken, tagged

from ngramstore.errors import UsageError
from ngramstore_torch.model.fgram import FgramConfig, FgramModel, at_last


def inputs(num: int = 9, max_n: int = 4, dim: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(num, max_n, dim), torch.randint(2, max_n + 1, (num,))


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("width", [0, 16, 64])
def test_the_start_is_exactly_the_last_token(num_layers, width):
    embeddings, lengths = inputs()
    model = FgramModel(FgramConfig(dim=32, max_n=4, num_layers=num_layers, num_heads=2, width=width))
    assert torch.equal(model(embeddings, lengths), at_last(embeddings, lengths))


def test_a_scone_model_starts_with_the_logits_of_its_own_decoder():
    data, _ = tagged()
    model, batch = scone(), data.batch(torch.arange(4).numpy() * 40, 32)
    assert batch.fgram_lengths_U.numel() > 10
    assert torch.equal(model(batch), model.decoder(batch.tokens_BT))


def test_a_random_start_is_not_the_last_token():
    embeddings, lengths = inputs()
    model = FgramModel(FgramConfig(dim=32, max_n=4, num_heads=2, identity_start=False))
    assert not torch.allclose(model(embeddings, lengths), at_last(embeddings, lengths), atol=1e-3)


@pytest.mark.parametrize("width", [0, 16])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_what_stands_behind_the_end_changes_nothing(num_layers, width):
    embeddings, lengths = inputs()
    model = shaken(FgramModel(FgramConfig(dim=32, max_n=4, num_layers=num_layers, num_heads=2, width=width)))
    noisy = torch.where((torch.arange(4) < lengths[:, None])[..., None], embeddings, 1e3 * torch.randn_like(embeddings))
    torch.testing.assert_close(model(noisy, lengths), model(embeddings, lengths))


def test_every_token_of_an_fgram_changes_its_row():
    embeddings, lengths = inputs()
    model = shaken(FgramModel(FGRAM))
    for place in range(2):
        changed = embeddings.clone()
        changed[:, place] += 1
        moved = (model(changed, lengths) - model(embeddings, lengths)).abs().amax(1)
        assert (moved > 1e-3).all(), place


def test_rows_without_padding_are_those_with_it():
    _, vocab = tagged()
    model = shaken(scone())
    tokens, lengths = (torch.from_numpy(x.astype("int64")) for x in vocab.ngrams)
    order = lengths.argsort(stable=True)
    counts = tuple(torch.bincount(lengths)[2:].tolist())
    torch.testing.assert_close(
        model.rows(tokens[order], lengths[order], counts),
        model.rows(tokens[order], lengths[order]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_gradients_reach_the_fgram_model_and_the_token_table():
    """From the identity start: one step moves the output projections, after which everything else moves too."""
    data, _ = tagged()
    model, batch = scone(), data.batch(torch.arange(4).numpy() * 40, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.inputs(batch).square().sum().backward()
        optimizer.step()
    for name, parameter in model.fgram_model.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    first_tokens = batch.fgram_tokens_UK[:, 0].unique()
    only_first = first_tokens[~torch.isin(first_tokens, batch.tokens_BT)]
    assert model.decoder.tokens.weight.grad[first_tokens].abs().amax(1).min() > 0
    assert only_first.numel() == 0 or model.decoder.tokens.weight.grad[only_first].abs().min() > 0


@pytest.mark.parametrize("width", [0, 64])
def test_the_counted_parameters_and_flops_are_the_real_ones(width):
    config = FgramConfig(dim=32, max_n=4, num_layers=3, num_heads=2, width=width)
    model = FgramModel(config)
    assert config.num_parameters() == sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(8, 4, 32), torch.full((8,), 4))
    square = 2 * 2 * 4 * 4 * config.own_width * 2 * 8  # two layers score all of K x K, causality needs (K + 1) / 2K
    assert config.flops_per_fgram() * 8 == counter.get_total_flops() - square + square * 5 // 8


def test_a_length_beyond_sixteen_is_refused():
    with pytest.raises(UsageError, match=r"max_n must be 2\.\.16, got 17"):
        FgramConfig(dim=32, max_n=17)
