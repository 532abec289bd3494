"""A whole comparison at toy size: what the demo shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch_cases import VOCAB, tagged

from ngramstore_torch import load_checkpoint
from ngramstore_torch.experiment.comparison import Experiment, table
from ngramstore_torch.experiment.presets import DEMO, QUICK, Preset
from ngramstore_torch.training.config import TrainConfig

TOY = Preset(
    name="toy",
    corpus_bytes=0,
    max_n=4,
    dim=32,
    num_heads=2,
    train=TrainConfig(tokens=60 * 256, batch_size=16, seq_len=16, lr=3e-3),
)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    train, vocab = tagged()
    held, _ = tagged(num_documents=10, seed=1)
    return Experiment(TOY, train, held, vocab, VOCAB, tmp_path_factory.mktemp("run"), identity={"tokenizer_id": "t"})


def test_a_comparison_measures_every_model_on_the_same_text(experiment):
    experiment.plain()
    scone = experiment.scone()
    experiment.served(scone, "int8")
    experiment.served(scone, "int4")
    lines = {line.name: line for line in experiment.measured}
    assert list(lines) == ["plain", "scone", "scone, int8 store", "scone, int4 store"]
    plain, live, int8, int4 = lines.values()
    assert int8.nats == pytest.approx(live.nats, abs=1e-3)
    assert live.flops_per_token == plain.flops_per_token
    assert live.train_flops_per_token > plain.train_flops_per_token
    assert 0 < int4.table_bytes < int8.table_bytes
    assert int8.parameters == plain.parameters < live.parameters
    assert table(experiment.measured).count("\n") == 4
    assert load_checkpoint(experiment.folder / "scone").model.kind == "scone"


def test_an_export_replaces_the_one_before(experiment, tmp_path):
    again = Experiment(
        TOY, experiment.train_tokens, experiment.held_tokens, experiment.vocabulary, VOCAB, tmp_path, identity={}
    )
    model = again.scone()
    assert again.served(model, "f32") == again.served(model, "f32")


@pytest.mark.parametrize("preset", [DEMO, QUICK])
def test_presets_describe_models_that_exist(preset):
    decoder, fgram = preset.decoder(1024), preset.fgram()
    assert decoder.dim == fgram.dim and fgram.max_n == preset.max_n
    assert decoder.max_positions == preset.train.seq_len
    assert replace(preset, num_layers=3).decoder(1024).num_layers == 3
