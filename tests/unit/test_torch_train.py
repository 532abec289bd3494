"""Training: resumable to the last bit, the same every time, and clear about what does not fit."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_cases import DECODER, changed_description, language, plain, scone, tagged, vocabulary

from ngramstore.errors import DiskFull, FormatError, UsageError, WriterLocked
from ngramstore.mine import Vocabulary
from ngramstore_torch.data.batches import TaggedTokens, TrainingBatches, tag
from ngramstore_torch.model.decoder import DecoderConfig
from ngramstore_torch.model.hashed import HashedConfig, HashedModel
from ngramstore_torch.training import checkpoint
from ngramstore_torch.training import train as train_module
from ngramstore_torch.training.config import TrainConfig
from ngramstore_torch.training.interrupt import interrupt_flag
from ngramstore_torch.training.train import train_model

GOLDEN = Path(__file__).parents[1] / "golden" / "scone_loss_50_steps.json"
CONFIG = TrainConfig(tokens=50 * 8 * 16, batch_size=8, seq_len=16, lr=3e-3, fgram_lr=1.0)
ON_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"))


@pytest.fixture(scope="module")
def data():
    return tagged()[0]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_loss_of_50_steps_is_the_stored_curve(data):
    """Tolerance 5e-4 nats: matrix products differ in the last bits from one processor to another (AVX2 here: 6e-7)."""
    losses = train_model(scone(), data, CONFIG).losses
    golden = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(losses, golden["losses"], atol=5e-4)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_gives_the_same_losses_and_weights_to_the_last_bit(data, tmp_path, accumulate):
    config = replace(CONFIG, tokens=12 * CONFIG.tokens_per_step * accumulate, accumulate=accumulate)
    whole_model = scone()
    whole = train_model(whole_model, data, config)
    for stop in (5, 9):
        cut = train_model(
            scone(seed=stop if stop > 5 else 0), data, config, out=tmp_path, resume=stop > 5, stop_after=stop
        )
        assert cut.step == stop
    model = scone(seed=99)  # its weights must all come from the checkpoint
    resumed = train_model(model, data, config, out=tmp_path, resume=True)
    assert resumed.losses == whole.losses
    for name, value in whole_model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_a_resumed_run_goes_on_with_the_optimizer_s_state_where_the_fused_kernel_reads_it(data, tmp_path, device):
    """Close, not equal: an accelerator may add up a gradient in another order the second time."""
    config = replace(CONFIG, tokens=12 * CONFIG.tokens_per_step, device=device)
    whole = train_model(scone(), data, config).losses
    train_model(scone(), data, config, out=tmp_path, stop_after=5)
    resumed = train_model(scone(seed=99), data, config, out=tmp_path, resume=True).losses
    np.testing.assert_allclose(resumed, whole, atol=1e-4)


def late_match() -> TaggedTokens:
    """A text in which the only f-gram of the vocabulary ends first in batch 2 or later."""
    text, whole = language(), vocabulary(*language(), size=3000)
    for rank in range(len(whole) - 1, -1, -1):
        one = Vocabulary(whole.ngrams[0][rank : rank + 1], whole.ngrams[1][rank : rank + 1], np.ones(1, np.int64))
        found = tag(*text, one)
        batches = TrainingBatches(found, batch_size=CONFIG.batch_size, seq_len=CONFIG.seq_len, seed=CONFIG.seed)
        first = next((i for i in range(12) if (batches[i].fgram_at_BT >= 0).any()), 0)
        if first >= 2:
            return found
    raise AssertionError("every n-gram is in the first batches")


def test_a_run_resumes_that_was_stopped_before_the_first_match(tmp_path):
    """A_f had no gradient until then, and the optimizer no state for it."""
    data, config = late_match(), replace(CONFIG, tokens=12 * CONFIG.tokens_per_step)
    whole_model = scone()
    whole = train_model(whole_model, data, config)
    train_model(scone(), data, config, out=tmp_path, stop_after=2)
    model = scone(seed=99)
    assert train_model(model, data, config, out=tmp_path, resume=True).losses == whole.losses
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in whole_model.state_dict().items())


def test_the_optimizers_state_goes_where_the_parameters_are():
    """AdamW's fused kernel on an accelerator reads the count of steps there too, as float32."""
    model = scone().to("meta")
    optimizer = train_module.make_optimizer(model, CONFIG)
    tensors = {"losses": torch.zeros(1)}
    for name, parameter in model.named_parameters():
        tensors[f"step/{name}"] = torch.ones((), dtype=torch.float64)
        tensors[f"exp_avg/{name}"] = tensors[f"exp_avg_sq/{name}"] = torch.ones(parameter.shape)
    checkpoint.restore_optimizer(model, optimizer, tensors)
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert {value.device.type for value in state.values()} == {"meta"}
        assert state["step"].dtype == torch.float32


def test_a_checkpoint_is_of_the_cpu_whatever_the_default_device(data, tmp_path):
    model = scone()
    done = train_model(model, data, CONFIG, out=tmp_path, stop_after=1)
    with torch.device("meta"):
        saved = checkpoint.load(tmp_path)
        optimizer = train_module.make_optimizer(model, CONFIG)
        losses = checkpoint.optimizer_tensors(model, optimizer, done.losses)["losses"]
    assert all(torch.equal(value, saved.model.state_dict()[name]) for name, value in model.state_dict().items())
    assert losses.tolist() == done.losses


def test_a_restored_state_is_a_copy():
    """The optimizer counts in place; what was read from a file stays as it was."""
    model = plain()
    tensors = {"losses": torch.zeros(1)}
    for name, parameter in model.named_parameters():
        tensors[f"step/{name}"] = torch.ones(())
        tensors |= {f"{key}/{name}": torch.ones(parameter.shape) for key in ("exp_avg", "exp_avg_sq")}
    optimizer = train_module.make_optimizer(model, CONFIG)
    checkpoint.restore_optimizer(model, optimizer, tensors)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all((value == 1).all() for name, value in tensors.items() if name != "losses")


def test_half_a_state_of_a_parameter_is_a_damaged_file():
    model = scone()
    optimizer = train_module.make_optimizer(model, CONFIG)
    name = next(name for name, _ in model.named_parameters())
    half = {f"step/{name}": torch.ones(()), f"exp_avg/{name}": torch.ones(1), "losses": torch.zeros(1)}
    with pytest.raises(FormatError, match=f"lacks exp_avg_sq of {name}"):
        checkpoint.restore_optimizer(model, optimizer, half)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_ctrl_c_or_sigterm_saves_a_checkpoint_that_resumes(data, tmp_path, number):
    config = replace(CONFIG, tokens=10 * CONFIG.tokens_per_step)
    before = signal.signal(number, signal.default_int_handler)  # a shell's background job ignores Ctrl-C

    def interrupt(step: int, loss: float) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    try:
        cut = train_model(scone(), data, config, out=tmp_path, on_step=interrupt)
        assert signal.getsignal(number) == signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert cut.interrupted and cut.step == 4
    assert checkpoint.load(tmp_path).step == 4
    resumed = train_model(scone(), data, config, out=tmp_path, resume=True)
    assert resumed.losses == train_model(scone(), data, config).losses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(number):
    """As Ctrl-C is in a run that a script started in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with interrupt_flag() as flag:
            os.kill(os.getpid(), number)
            assert flag == [] and signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_gradient_accumulation_is_the_larger_batch(data):
    large = train_model(scone(), data, replace(CONFIG, tokens=4 * 256, batch_size=16)).losses
    small = train_model(scone(), data, replace(CONFIG, tokens=4 * 256, batch_size=4, accumulate=4)).losses
    np.testing.assert_allclose(small, large, atol=1e-4)


def test_the_fgram_model_has_a_rate_of_its_own(data):
    model = scone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_model(model, data, replace(CONFIG, fgram_lr=1e-9), stop_after=3)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in model.named_parameters()}
    assert all(change < 1e-9 for name, change in moved.items() if name.startswith("fgram_model."))
    assert all(change > 1e-4 for name, change in moved.items() if not name.startswith("fgram_model."))
    assert sum(name.startswith("fgram_model.") for name in moved) > 5


def test_bf16_training_follows_the_float32_curve(data):
    exact = train_model(scone(), data, CONFIG).losses
    rough = train_model(scone(), data, replace(CONFIG, bf16=True)).losses
    assert rough != exact
    np.testing.assert_allclose(rough[-10:], exact[-10:], atol=0.1)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_run_has_the_losses_of_the_plain_one_and_each_resumes_the_other(
    data, tmp_path, monkeypatch, backend
):
    """ "eager" traces the models as torch.compile does and runs what it traced without generating code for it."""
    compiled = []
    compile_module = torch.nn.Module.compile

    def with_backend(module: torch.nn.Module, **options) -> None:
        compiled.append(type(module).__name__)
        compile_module(module, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", with_backend)
    torch._dynamo.reset()
    config = replace(CONFIG, tokens=8 * CONFIG.tokens_per_step)
    whole = train_model(scone(), data, config).losses
    assert not compiled
    train_model(scone(), data, replace(config, compile=True), out=tmp_path, stop_after=5)
    assert compiled == ["Decoder", "FgramModel"]
    resumed = train_model(scone(seed=1), data, config, out=tmp_path, resume=True, stop_after=6)
    np.testing.assert_allclose(resumed.losses, whole[:6], atol=1e-4)
    again = train_model(scone(seed=2), data, replace(config, compile=True), out=tmp_path, resume=True)
    np.testing.assert_allclose(again.losses, whole, atol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "hashed"])
def test_the_rivals_learn_in_the_same_loop(data, kind, tmp_path):
    torch.manual_seed(0)
    model = plain() if kind == "plain" else HashedModel(DECODER, HashedConfig(num_rows=300, max_n=4))
    losses = train_model(model, data, CONFIG, out=tmp_path).losses
    assert losses[-1] < losses[0] - 0.3
    loaded = checkpoint.load(tmp_path).model
    batch = data.batch(np.array([0, 50]), 16, history=model.history)
    assert torch.equal(loaded(batch), model(batch))


def test_any_batch_is_the_same_in_whatever_order_they_are_asked_for(data):
    def make() -> TrainingBatches:
        return TrainingBatches(data, batch_size=4, seq_len=16, seed=5)

    there, back = make(), make()
    forwards = [there[i].tokens_BT for i in range(20)]
    for i in reversed(range(20)):
        assert torch.equal(back[i].tokens_BT, forwards[i])


def test_resuming_with_other_settings_names_the_setting(data, tmp_path):
    train_model(scone(), data, CONFIG, out=tmp_path, stop_after=1)
    with pytest.raises(UsageError, match=r"train\.lr = 0\.003, this run asks for 0\.001"):
        train_model(scone(), data, replace(CONFIG, lr=1e-3), out=tmp_path, resume=True)


def test_a_checkpoint_of_another_shape_is_a_clear_error(data, tmp_path):
    train_model(scone(), data, CONFIG, out=tmp_path, stop_after=1)
    other = DecoderConfig(vocab_size=40, dim=32, num_layers=3, num_heads=2, max_positions=32)
    with pytest.raises(UsageError, match=r"model\.decoder\.num_layers = 2, this run asks for 3"):
        train_model(scone(decoder=other), data, CONFIG, out=tmp_path, resume=True)
    with pytest.raises(UsageError, match=r"model\.kind = 'scone', this run asks for 'plain'"):
        train_model(plain(), data, CONFIG, out=tmp_path, resume=True)
    weights = checkpoint.load(tmp_path).model.state_dict()
    weights["decoder.tokens.weight"] = torch.zeros(41, 32)
    with pytest.raises(UsageError, match=r"decoder\.tokens\.weight is \(41, 32\), this model's is \(40, 32\)"):
        checkpoint.load_weights(scone(), weights)


@pytest.mark.parametrize("what", ["model", "optimizer"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_file_is_named(data, tmp_path, what, damage):
    train_model(scone(), data, CONFIG, out=tmp_path, stop_after=1)
    path = next(tmp_path.glob(f"{what}-*.safetensors"))
    good = path.read_bytes()
    middle = len(good) // 2
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(good[:middle] + (bytes([good[middle] ^ 1]) + good[middle + 1 :] if damage == "flip" else b""))
    with pytest.raises(FormatError, match=path.name):
        checkpoint.load(tmp_path, with_optimizer=True)


def test_a_checkpoint_file_that_names_a_file_elsewhere_is_refused(data, tmp_path):
    train_model(scone(), data, CONFIG, out=tmp_path, stop_after=1)
    with changed_description(tmp_path) as description:
        description["files"]["model"]["name"] = "../model.safetensors"
    with pytest.raises(FormatError, match="outside its own folder"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("dim", [0, 64])
def test_a_checkpoint_file_of_other_sizes_than_its_weights_is_a_format_error(tmp_path, dim):
    checkpoint.save(tmp_path, plain(), step=1, optimizer={"losses": torch.zeros(1)}, train={}, data={})
    with changed_description(tmp_path) as description:
        description["model"]["decoder"]["dim"] = dim
    with pytest.raises(FormatError, match=r"checkpoint\.json does not describe its weights"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": "x"}', "null", '{"format": "ngramstore-checkpoint"}']
)
def test_a_checkpoint_file_of_nonsense_is_a_format_error(tmp_path, text):
    (tmp_path / checkpoint.FILE_NAME).write_text(text)
    with pytest.raises(FormatError):
        checkpoint.load(tmp_path)


def test_every_flipped_bit_of_checkpoint_json_is_noticed_or_changes_nothing(tmp_path):
    """The digests of the files say nothing of the heads that their weights are split into."""
    settings = {"lr": 0.002, "betas": (0.9, 0.95), "compile": False}
    data = {"corpus": "é", "more": {10: [1, None], 9: {}}}
    checkpoint.save(tmp_path, scone(), step=7, optimizer={}, train=settings, data=data)
    path = tmp_path / checkpoint.FILE_NAME
    good, text = checkpoint.load_description(tmp_path), path.read_bytes()
    num_unharmed = 0
    for bit in range(8 * len(text)):
        bad = bytearray(text)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            found = checkpoint.load_description(tmp_path)
        except FormatError:
            continue
        num_unharmed += 1
        assert {name: found[name] for name in good if name != "crc32"} == {
            name: value for name, value in good.items() if name != "crc32"
        }
    assert num_unharmed < 100  # the checksum's own name, white space, the case of a digit


def test_a_checkpoint_without_a_checksum_is_read(tmp_path):
    """As earlier releases wrote it."""
    checkpoint.save(tmp_path, plain(), step=3, optimizer={}, train={}, data={})
    whole = checkpoint.load(tmp_path)
    assert "crc32" in whole.description
    with changed_description(tmp_path):
        pass
    older = checkpoint.load(tmp_path)
    assert "crc32" not in older.description
    assert older.step == 3 and older.identity == whole.identity


def test_a_checkpoint_file_that_was_changed_by_hand_says_how_to_keep_the_change(tmp_path):
    checkpoint.save(tmp_path, plain(), step=3, optimizer={}, train={}, data={})
    path = tmp_path / checkpoint.FILE_NAME
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 4'))
    with pytest.raises(FormatError, match=r"checkpoint\.json is damaged, or was changed") as refused:
        checkpoint.load(tmp_path)
    assert 'take "crc32" out' in refused.value.hint


def test_a_second_training_in_one_folder_is_refused_and_takes_nothing_of_the_first(data, tmp_path):
    """Each save removes the files of every other checkpoint."""
    config = replace(CONFIG, tokens=4 * CONFIG.tokens_per_step, checkpoint_every=1)
    refused = []

    def another(step: int, loss: float) -> None:
        for resume in (False, True) if step > 1 else (False,):
            with pytest.raises(WriterLocked, match="another training is at work in") as error:
                train_model(plain(), data, config, out=tmp_path, resume=resume)
            refused.append(error.value.hint)

    assert train_model(plain(), data, config, out=tmp_path, on_step=another).step == 4
    assert len(refused) == 7 and "--out" in refused[0]
    assert checkpoint.load(tmp_path).step == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.json",
        "model-00000004.safetensors",
        "optimizer-00000004.safetensors",
    ]


def test_a_run_that_failed_or_was_killed_keeps_nobody_out_of_its_folder(data, tmp_path):
    config = replace(CONFIG, tokens=2 * CONFIG.tokens_per_step)
    with pytest.raises(ZeroDivisionError):
        train_model(plain(), data, config, out=tmp_path, on_step=lambda step, loss: 1 // 0)
    assert not (tmp_path / "LOCK").exists()
    (tmp_path / "LOCK").write_text("1\n")  # as a kill leaves it
    assert train_model(plain(), data, config, out=tmp_path).step == 2
    assert not (tmp_path / "LOCK").exists()


def test_a_training_whose_folder_was_moved_saves_into_no_other_and_removes_no_others_lock(data, tmp_path):
    """Its saves go by path: there may be another training's checkpoint by now."""
    config, run, moved = replace(CONFIG, tokens=4 * CONFIG.tokens_per_step), tmp_path / "run", tmp_path / "moved"

    def move(step: int, loss: float) -> None:
        if step == 2:
            run.rename(moved)
            train_model(plain(), data, replace(config, tokens=CONFIG.tokens_per_step), out=run)
            (run / "LOCK").write_text("of a third\n")

    with pytest.raises(UsageError, match="was moved, removed or replaced"):
        train_model(plain(), data, replace(config, checkpoint_every=1), out=run, on_step=move)
    assert checkpoint.load(run).step == checkpoint.load(moved).step == 1
    assert (run / "LOCK").read_text() == "of a third\n"


def test_a_new_training_that_must_be_new_is_refused_where_another_has_ended_meanwhile(data, tmp_path):
    config = replace(CONFIG, tokens=CONFIG.tokens_per_step)
    train_model(plain(), data, config, out=tmp_path)
    with pytest.raises(UsageError, match="already holds a run"):
        train_model(plain(), data, config, out=tmp_path, must_be_new=True)
    assert train_model(plain(), data, config, out=tmp_path).step == 1


def test_a_folder_with_nothing_to_resume_is_not_made(data, tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint in"):
        train_model(plain(), data, CONFIG, out=tmp_path / "no" / "run", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_without_locks_can_be_trained_on(data, tmp_path, monkeypatch):
    def no_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert train_model(plain(), data, CONFIG, out=tmp_path, stop_after=1).step == 1
    assert not (tmp_path / "LOCK").exists()


def test_only_the_newest_checkpoint_is_kept(data, tmp_path):
    train_model(scone(), data, replace(CONFIG, checkpoint_every=2), out=tmp_path, stop_after=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.json",
        "model-00000005.safetensors",
        "optimizer-00000005.safetensors",
    ]


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint"):
        checkpoint.load(tmp_path)


def test_a_corpus_smaller_than_a_batch_says_so(data):
    with pytest.raises(UsageError, match="do not fill one batch of 4096 x 16"):
        train_model(scone(), data, replace(CONFIG, batch_size=4096))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_weights_that_are_no_numbers_never_replace_a_checkpoint(data, tmp_path, monkeypatch, device):
    """On an accelerator losses are read ten at a time: one that is due before a checkpoint is read before it."""
    config = replace(CONFIG, tokens=9 * CONFIG.tokens_per_step, checkpoint_every=2, device=device)
    step_of = train_module.train_step

    def spoiled(model, optimizer, feed, config, step):
        loss = step_of(model, optimizer, feed, config, step)
        return loss * torch.nan if step >= 3 else loss

    monkeypatch.setattr(train_module, "train_step", spoiled)
    with pytest.raises(UsageError, match="the loss became nan at step 4"):
        train_model(plain(), data, config, out=tmp_path)
    assert checkpoint.load(tmp_path).step == 2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_no_number_never_replaces_a_checkpoint(data, tmp_path, device, bad):
    """The loss of its step was computed before the update, and is finite."""
    config = replace(CONFIG, device=device)
    train_model(plain(), data, config, out=tmp_path, stop_after=1)
    before = checkpoint.load(tmp_path).identity
    model = plain()
    model.decoder.norm.weight.register_hook(lambda gradient: gradient * bad)
    with pytest.raises(UsageError, match=r"the gradient became (nan|inf) at step 2"):
        train_model(model, data, config, out=tmp_path, resume=True, stop_after=2)
    assert checkpoint.load(tmp_path).identity == before


def test_the_step_that_is_named_is_the_first_bad_one_of_those_read_together():
    losses = train_module._Losses()
    for loss, norm in ((1.0, 2.0), (1.0, torch.nan), (torch.nan, torch.nan)):
        losses.add(torch.tensor([loss, norm]))
    with pytest.raises(UsageError, match="the gradient became nan at step 7"):
        losses.read(8)


def test_what_a_run_left_that_was_killed_while_it_saved_goes_with_the_next_save(data, tmp_path):
    names = ("model-00000003.safetensors", "optimizer-00000003-2.safetensors", "model-123456789.safetensors.tmp")
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    train_model(plain(), data, CONFIG, out=tmp_path, stop_after=1)
    assert not any((tmp_path / name).exists() for name in names) and checkpoint.load(tmp_path).step == 1


FOREIGN = (
    "model-00001-of-00002.safetensors",
    "model-00000001-of-00000002.safetensors",
    "model-best.safetensors",
    "optimizer-best.safetensors",
    "model-00000001.safetensors.bak",
    "model-00000001.safetensors.index.json",
)


def test_a_save_removes_no_file_that_a_save_did_not_make(data, tmp_path):
    for name in FOREIGN:
        (tmp_path / name).write_bytes(b"of somebody else")
    train_model(plain(), data, CONFIG, out=tmp_path, stop_after=1)
    assert [name for name in FOREIGN if not (tmp_path / name).exists()] == []


def test_a_save_that_fails_removes_no_file_that_it_did_not_make(tmp_path, monkeypatch):
    def full(path: Path, data: bytes) -> None:
        raise DiskFull("no space")

    for name in FOREIGN:
        (tmp_path / name).write_bytes(b"of somebody else")
    monkeypatch.setattr(checkpoint, "publish", full)
    with pytest.raises(DiskFull):
        checkpoint.save(tmp_path, plain(), step=1, optimizer={"losses": torch.zeros(1)}, train={}, data={})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FOREIGN)


def test_a_checkpoint_saved_again_at_its_step_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    def save(seed: int) -> None:
        checkpoint.save(tmp_path, plain(seed), step=7, optimizer={"losses": torch.zeros(seed)}, train={}, data={})

    save(1)
    before = checkpoint.load(tmp_path).identity
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "publish", lambda path, data: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(2)
    assert checkpoint.load(tmp_path, with_optimizer=True).identity == before
    save(3)
    assert checkpoint.load(tmp_path, with_optimizer=True).identity != before
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("moment", ["build", "load_weights"])
@pytest.mark.parametrize("steps", [[8], [7, 7]], ids=["a file is gone", "a file's name is used again"])
def test_a_checkpoint_that_is_saved_while_it_is_read_is_the_newer_one(tmp_path, monkeypatch, moment, steps):
    def save(seed: int, step: int) -> None:
        checkpoint.save(tmp_path, plain(seed), step=step, optimizer={"losses": torch.zeros(seed)}, train={}, data={})

    def and_then_save(*arguments, **options):
        try:
            return inner(*arguments, **options)
        finally:
            while steps_left:
                save(10 + len(steps_left), steps_left.pop())

    save(1, 7)
    inner, steps_left = getattr(checkpoint, moment), steps.copy()
    monkeypatch.setattr(checkpoint, moment, and_then_save)
    loaded = checkpoint.load(tmp_path, with_optimizer=True)
    assert loaded.step == steps[-1] and len(loaded.optimizer["losses"]) == 11
    assert torch.equal(loaded.model.decoder.tokens.weight, plain(11).decoder.tokens.weight)


def test_a_run_folder_that_cannot_be_is_refused_before_the_first_step(data, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="run is a file"):
        train_model(plain(), data, CONFIG, out=tmp_path / "run", on_step=lambda step, loss: pytest.fail("trained"))


@pytest.mark.parametrize("bad", [Path("corpus"), np.int64(9), float("nan"), {1, 2}], ids=str)
def test_an_identity_that_no_checkpoint_can_keep_is_refused_before_training(data, tmp_path, bad):
    with pytest.raises(UsageError, match=r"data_identity\['corpus_id'\]"):
        train_model(
            plain(), data, CONFIG, out=tmp_path / "run", data_identity={"corpus_id": bad},
            on_step=lambda step, loss: pytest.fail("trained"),
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("unread", [1, 4, 10])
def test_each_step_is_told_with_its_own_loss(data, monkeypatch, unread):
    """On an accelerator losses are fetched some at a time, so they are told later, not under other numbers."""
    monkeypatch.setattr(train_module, "_unread_on", lambda device: unread)
    told = []
    result = train_model(
        plain(), data, replace(CONFIG, tokens=13 * CONFIG.tokens_per_step), on_step=lambda *pair: told.append(pair)
    )
    assert told == list(enumerate(result.losses, 1)) and len(told) == 13


@pytest.mark.parametrize(
    "bad",
    [
        {"tokens": 1e6},
        {"accumulate": 2.0},
        {"seed": 1.5},
        {"batch_size": True},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
    ],
    ids=str,
)
def test_settings_that_no_run_could_follow_are_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        TrainConfig(**bad)
