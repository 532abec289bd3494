"""Export: the stored row is the row that training used; served is exported, bit for bit; perplexity stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_cases import plain, scone, shaken, tagged

import ngramstore
from ngramstore import files
from ngramstore.errors import UsageError
from ngramstore_torch import NGramEmbedding
from ngramstore_torch.data.batches import IGNORE
from ngramstore_torch.experiment import evaluate
from ngramstore_torch.experiment.evaluate import evaluate_model
from ngramstore_torch.export.sensitivity import input_sensitivity, kept_sensitivity
from ngramstore_torch.export.table import SconeRows, export_table
from ngramstore_torch.serving.generation import generate, live_embedding
from ngramstore_torch.serving.loop import generate_served
from ngramstore_torch.training.config import TrainConfig
from ngramstore_torch.training.train import train_model


@pytest.fixture(scope="module")
def trained():
    data, vocab = tagged()
    model = scone()
    train_model(model, data, TrainConfig(tokens=60 * 128, batch_size=8, seq_len=16, lr=3e-3))
    return model.eval(), data, vocab


@torch.no_grad()
def live_rows(model, vocab) -> np.ndarray:
    """One f-gram at a time, without padding or company."""
    tokens_NK, lengths_N = vocab.ngrams
    return np.stack(
        [
            model.rows(torch.from_numpy(tokens[None, :n].astype(np.int64)), torch.tensor([int(n)]))[0].numpy()
            for tokens, n in zip(tokens_NK, lengths_N, strict=True)
        ]
    )


def test_exported_rows_are_the_live_ones(trained, tmp_path):
    model, _, vocab = trained
    assert export_table(SconeRows(model), vocab, tmp_path / "s", codec="f32", batch_size=7).num_rows == len(vocab)
    with ngramstore.open(tmp_path / "s") as store:
        rows, found = store.get(vocab.ngrams)
    assert found.all()
    np.testing.assert_allclose(rows, live_rows(model, vocab), atol=1e-5)
    own = model.decoder.tokens.weight.detach().numpy()[vocab.ngrams[0][:, 0]]
    assert np.abs(rows - own).max() > 0.01  # training has moved A_f away from the identity


def test_served_rows_are_the_exported_ones_bit_for_bit(trained, tmp_path):
    model, data, vocab = trained
    source = SconeRows(model)
    exported = source.rows(*vocab.ngrams)
    export_table(source, vocab, tmp_path / "s", codec="f32", batch_size=len(vocab))
    with ngramstore.open(tmp_path / "s") as store:
        hit = store.lookup(np.asarray(data.tokens_P[: data.starts[1]], np.uint32)[None])
    rows_T = data.rows_P[: data.starts[1]]
    assert np.array_equal(hit.length[0] > 0, rows_T >= 0)
    assert np.array_equal(hit.rows[0][rows_T >= 0], exported[rows_T[rows_T >= 0]])


@pytest.mark.parametrize(("codec", "tolerance"), [("f32", 1e-6), ("int8", 5e-4)])
def test_served_perplexity_is_the_live_one(trained, tmp_path, codec, tolerance):
    """int8: within 0.05 %."""
    model, _, vocab = trained
    held, _ = tagged(num_documents=12, seed=1)
    export_table(SconeRows(model), vocab, tmp_path / "s", codec=codec)
    live = evaluate_model(model, held)
    with ngramstore.open(tmp_path / "s") as store:
        served = evaluate_model(model, held, store=store)
    assert served.perplexity == pytest.approx(live.perplexity, rel=tolerance)
    assert live.nats < evaluate_model(plain(), held).nats - 0.3


@torch.no_grad()
def divergence(model, data, store) -> float:
    """Of the live predictions from those of the decoder served from a store: nats a position."""
    served, total, count = evaluate._served(model.decoder, store, 2), 0.0, 0
    for batch in data.evaluation_batches(16, 16):
        is_scored_BT = batch.targets_BT != IGNORE
        live, other = (
            model.decoder(inputs_BTD=inputs)[is_scored_BT].double().log_softmax(-1)
            for inputs in (model.inputs(batch), served(batch)[0])
        )
        total += float((live.exp() * (live - other)).sum())
        count += int(is_scored_BT.sum())
    return total / count


def test_int4_rounded_by_sensitivity_costs_less_than_plain_int4(trained, tmp_path):
    """Measured by the divergence of the predictions: the loss itself moves more by chance than by a rounding."""
    model, data, vocab = trained
    costs = []
    for name, sensitivity in (("plain", None), ("fitted", input_sensitivity(model, data, seq_len=16, max_windows=0))):
        export_table(SconeRows(model), vocab, tmp_path / name, codec="int4", sensitivity=sensitivity)
        with ngramstore.open(tmp_path / name) as store:
            costs.append(divergence(model, data, store))
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).glob("base-*.rows")) for name in ("plain", "fitted")]
    assert sizes[0] == sizes[1]
    assert costs[1] < 0.9 * costs[0]


def test_sensitivity_is_the_second_moments_of_the_gradient_at_the_input(trained):
    """Against one backward pass a position, of the expected loss: E over drawn tokens of g g^T, written out."""
    model, data, _ = trained
    (batch,) = list(data.evaluation_batches(8, 4, max_windows=4))
    with torch.no_grad():
        inputs_BTD = model.inputs(batch)
    is_used_BT = (batch.fgram_at_BT >= 0) & (batch.targets_BT != IGNORE)
    assert (batch.targets_BT == IGNORE).any()  # padding counts for nothing
    wanted, count = torch.zeros(32, 32, dtype=torch.float64), int(is_used_BT.sum())
    inputs_BTD = inputs_BTD.detach().requires_grad_()
    logits_BTV = model.decoder(inputs_BTD=inputs_BTD)
    log_BTV, chance_BTV = logits_BTV.log_softmax(-1), logits_BTV.detach().softmax(-1)
    # Tokens of different positions are drawn independently and have mean gradient 0: their cross terms vanish.
    for b, t in torch.nonzero(batch.targets_BT != IGNORE).tolist():
        for v in range(logits_BTV.shape[2]):
            (gradient,) = torch.autograd.grad(log_BTV[b, t, v], inputs_BTD, retain_graph=True)
            used_MD = gradient[is_used_BT].double()
            wanted += float(chance_BTV[b, t, v]) * used_MD.T @ used_MD
    wanted /= count
    drawn = sum(
        torch.from_numpy(input_sensitivity(model, data, seq_len=8, batch_size=4, max_windows=4, seed=seed))
        for seed in range(300)
    )
    error = (drawn / 300 - wanted).norm() / wanted.norm()
    assert error < 0.1, float(error)
    assert torch.equal(drawn, drawn.T)


def test_sensitivity_needs_fgrams_and_leaves_the_model_as_it_was(trained):
    model, data, _ = trained
    model.train()
    model.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():  # which it does not mind
        first, again = (input_sensitivity(model, data, max_windows=8, seed=3) for _ in range(2))
    assert np.array_equal(first, again) and np.linalg.eigvalsh(first).min() > -1e-12
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    none = replace(data, rows_P=np.full_like(data.rows_P, -1))
    with pytest.raises(UsageError, match="no f-gram ends"):
        input_sensitivity(model, none)


def test_a_sensitivity_is_summed_on_the_cpu_whatever_the_default_device(trained):
    model, data, _ = trained
    want = input_sensitivity(model, data, max_windows=8)
    with torch.device("meta"):
        assert np.array_equal(input_sensitivity(model, data, max_windows=8), want)


def test_a_sensitivity_is_measured_once_for_an_export_that_is_cut_short(tmp_path):
    path, measured = tmp_path / "store.sensitivity", []

    def measure() -> np.ndarray:
        measured.append(len(measured))
        return np.eye(3) * len(measured)

    np.save(tmp_path / "plain.npy", np.eye(3))
    npy = (tmp_path / "plain.npy").read_bytes()
    for of, wanted in (("a", 1), ("a", 1), ("b", 2), ("b", 2)):
        assert np.array_equal(kept_sensitivity(path, of, measure), np.eye(3) * wanted)
    path.write_bytes(path.read_bytes()[:-30])
    assert np.array_equal(kept_sensitivity(path, "b", measure), np.eye(3) * 3)
    for number, notes in enumerate((b"notes", b"", b"\x93NUMPY", npy), 4):
        path.write_bytes(notes)
        assert np.array_equal(kept_sensitivity(path, "b", measure), np.eye(3) * number)


def test_a_sensitivity_that_rows_were_rounded_by_is_not_replaced_by_another(tmp_path):
    path = tmp_path / "store.sensitivity"
    kept_sensitivity(path, "a", lambda: np.eye(3), is_needed=True)  # there is none yet
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"store\.sensitivity is left of an export with another rounding") as refused:
        kept_sensitivity(path, "b", lambda: pytest.fail("measures"), is_needed=True)
    assert "--restart" in refused.value.hint and path.read_bytes() == before
    assert np.array_equal(kept_sensitivity(path, "a", lambda: pytest.fail("measures"), is_needed=True), np.eye(3))
    path.write_bytes(before[:-30])  # nothing to lose
    assert np.array_equal(kept_sensitivity(path, "b", lambda: np.eye(3) * 2, is_needed=True), np.eye(3) * 2)


def test_two_may_keep_one_sensitivity_at_once(tmp_path, monkeypatch):
    path = tmp_path / "store.sensitivity"

    def keep_as_well(operation: str, where: Path) -> None:
        if operation == "rename":
            monkeypatch.undo()
            kept_sensitivity(path, "b", lambda: np.eye(3) * 2)

    monkeypatch.setattr(files, "observe", keep_as_well)
    assert np.array_equal(kept_sensitivity(path, "a", lambda: np.eye(3)), np.eye(3))
    assert np.array_equal(kept_sensitivity(path, "a", lambda: pytest.fail("measures")), np.eye(3))
    assert [file.name for file in tmp_path.iterdir()] == ["store.sensitivity"]


def test_rows_in_bfloat16_are_those_in_float32_but_for_their_last_bits(trained):
    model, _, vocab = trained
    exact, rough = SconeRows(model).rows(*vocab.ngrams), SconeRows(model, bf16=True).rows(*vocab.ngrams)
    assert rough.dtype == np.float32 and not np.array_equal(rough, exact)
    assert np.linalg.norm(rough - exact) < 1e-2 * np.linalg.norm(exact)


def test_generation_from_an_f32_store_is_generation_with_the_live_model(trained, tmp_path):
    model, data, vocab = trained
    export_table(SconeRows(model), vocab, tmp_path / "s", codec="f32")
    prompt = np.asarray(data.tokens_P[:4])
    with ngramstore.open(tmp_path / "s") as store:
        embedding = NGramEmbedding(store, model.decoder.tokens)
        served = list(generate_served(model.decoder, embedding, prompt, 20, seed=1))
    assert served == list(generate(model.decoder, live_embedding(model, vocab), prompt, 20, seed=1))


def test_any_function_of_an_ngram_can_be_exported(tmp_path):
    class Sums:
        dim, max_n = 8, 4

        def rows(self, tokens_MK, lengths_M):
            return np.repeat(tokens_MK.sum(1, keepdims=True), 8, 1).astype(np.float32)

    _, vocab = tagged()
    export_table(Sums(), vocab, tmp_path / "s", codec="f32", batch_size=9, metadata={"made_by": "sums"})
    with ngramstore.open(tmp_path / "s") as store:
        rows, found = store.get(vocab.ngrams)
        assert store.metadata == {"made_by": "sums"}
    assert found.all() and np.array_equal(rows[:, 0], vocab.ngrams[0].sum(1))


def test_an_export_that_dies_leaves_no_store_that_can_be_read(tmp_path):
    class Dies:
        dim, max_n = 8, 4
        calls = 0

        def rows(self, tokens_MK, lengths_M):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return np.zeros((len(tokens_MK), 8), np.float32)

    _, vocab = tagged()
    with pytest.raises(KeyboardInterrupt):
        export_table(Dies(), vocab, tmp_path / "s", batch_size=10)
    assert not (tmp_path / "s" / "MANIFEST").exists()


def test_a_model_without_fgrams_has_nothing_to_export():
    with pytest.raises(UsageError, match="kind 'plain' has no f-gram table"):
        SconeRows(plain())


def test_an_export_into_a_folder_that_is_not_there_says_so(tmp_path):
    class Two:
        dim, max_n = 4, 8

        def rows(self, tokens, lengths):
            raise AssertionError("nothing is computed")

    with pytest.raises(UsageError, match="is not a folder"):
        export_table(Two(), tagged()[1], tmp_path / "no" / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_with_longer_ngrams_than_the_model_takes_is_refused(tmp_path):
    class Short:
        dim, max_n = 8, 2

        def rows(self, tokens_MK, lengths_M):
            raise AssertionError("not reached")

    with pytest.raises(UsageError, match="n-grams of 4 tokens, the model takes up to 2"):
        export_table(Short(), tagged()[1], tmp_path / "s")


def test_rows_do_not_depend_on_their_order():
    source = SconeRows(shaken(scone()))
    tokens, lengths = tagged()[1].ngrams
    order = np.random.default_rng(0).permutation(len(lengths))
    np.testing.assert_allclose(
        source.rows(tokens[order], lengths[order]), source.rows(tokens, lengths)[order], atol=1e-5
    )
