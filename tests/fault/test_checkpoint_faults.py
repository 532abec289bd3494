"""The N-th write, fsync, rename or unlink of a checkpoint fails, for every N: the last good one is there, and training
goes on."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402
from torch_cases import plain, tagged  # noqa: E402

from ngramstore import files  # noqa: E402
from ngramstore.errors import DiskFull, UsageError  # noqa: E402
from ngramstore_torch import TrainConfig, train_model  # noqa: E402
from ngramstore_torch.training import checkpoint  # noqa: E402
from ngramstore_torch.training.tensor_file import write_tensors  # noqa: E402

CONFIG = TrainConfig(tokens=6 * 8 * 16, batch_size=8, seq_len=16, lr=3e-3, checkpoint_every=2)


class Failing:
    """Lets the N-th operation fail; with `for_good` all later writes and fsyncs as well, as on a full disk."""

    def __init__(self, nth: int, code: int, *, for_good: bool) -> None:
        self.nth, self.code, self.for_good = nth, code, for_good
        self.log: list[str] = []

    def __call__(self, operation: str, path: Path) -> None:
        number = len(self.log)
        self.log.append(f"{operation} {path.name}")
        is_later = self.for_good and number > self.nth and operation in ("write", "fsync")
        if number == self.nth or is_later:
            raise OSError(self.code, "injected", str(path))


def save(folder: Path, seed: int, step: int) -> None:
    optimizer = {"losses": torch.full((step,), float(seed)), "step/x": torch.tensor(float(step))}
    checkpoint.save(folder, plain(seed), step=step, optimizer=optimizer, train={}, data={})


def holds(folder: Path, seed: int, step: int) -> bool:
    """Whether the folder's checkpoint is this one; it must be whole, whichever it is."""
    found = checkpoint.load(folder, with_optimizer=True)
    assert len(found.optimizer["losses"]) == found.step
    weights = found.model.state_dict()
    return found.step == step and all(torch.equal(weights[name], w) for name, w in plain(seed).state_dict().items())


@pytest.mark.parametrize(("code", "for_good"), [(errno.EIO, False), (errno.ENOSPC, True)], ids=["once", "full disk"])
@pytest.mark.parametrize("again", [5, 7], ids=["the same step", "a later step"])
def test_a_save_that_fails_anywhere_leaves_the_last_checkpoint_and_can_be_tried_again(
    quick_path, monkeypatch, code, for_good, again
):
    nth, is_done = 0, False
    while not is_done:
        folder = quick_path / f"{nth}"
        save(folder, 1, 5)
        before = {path.name for path in folder.iterdir()}
        failing, error = Failing(nth, code, for_good=for_good), None
        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", failing)
            try:
                save(folder, 2, again)
            except OSError as caught:
                error = caught
        is_done = len(failing.log) <= nth
        if error is None:  # also where only the removal of the old files failed
            assert holds(folder, 2, again)
        else:
            assert isinstance(error, DiskFull) == (code == errno.ENOSPC)
            is_published = failing.log[nth].startswith("fsync") and failing.log[nth - 1] == "rename checkpoint.json"
            assert holds(folder, 2, again) if is_published else holds(folder, 1, 5)
            left = {path.name for path in folder.iterdir()} - before
            assert is_published or left <= {"checkpoint.json.tmp"}, f"room is taken after {failing.log[nth]}"
        save(folder, 3, 9)
        assert holds(folder, 3, 9)
        assert len(list(folder.iterdir())) - (folder / "checkpoint.json.tmp").exists() == 3
        nth += 1
    assert nth > 30, "every tensor is a write of its own"


def test_a_run_on_a_disk_that_fills_up_resumes_from_its_last_checkpoint_with_the_same_curve(tmp_path, monkeypatch):
    data = tagged()[0]
    whole = train_model(plain(), data, CONFIG).losses
    step_now = []

    def full_from_step_4(operation: str, path: Path) -> None:
        if operation == "write" and "00000004" in path.name and "optimizer" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", full_from_step_4)
        with pytest.raises(DiskFull, match="optimizer-00000004") as full:
            train_model(plain(), data, CONFIG, out=tmp_path, on_step=lambda step, loss: step_now.append(step))
    assert step_now[-1] == 4 and "--resume" in str(full.value)
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.json",
        "model-00000002.safetensors",
        "optimizer-00000002.safetensors",
    }
    resumed = train_model(plain(seed=9), data, replace(CONFIG, checkpoint_every=0), out=tmp_path, resume=True)
    assert resumed.losses == whole


TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def test_the_tensors_of_a_file_are_what_safetensors_reads(tmp_path):
    whole = torch.arange(24).reshape(2, 3, 4)
    tensors = {f"{dtype}": (whole % 2).to(dtype) for dtype in TYPES}
    tensors |= {"none": torch.zeros(0), "one": torch.tensor(3.5), "turned": whole.float().mT, "naïve/é": whole[:, 1]}
    entry = write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert entry["bytes"] == (tmp_path / "x.safetensors").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_type_that_the_file_has_no_name_for_is_refused(tmp_path):
    with pytest.raises(UsageError, match="complex64"):
        write_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(2, dtype=torch.complex64)})
