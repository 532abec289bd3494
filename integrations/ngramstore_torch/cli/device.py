"""The device a command runs on: what was asked for, or the best there is."""

from __future__ import annotations

import click

from ngramstore.errors import UsageError

device_option = click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...")


def choose_device(name: str) -> str:
    """ "auto" is CUDA where there is one, else the CPU. Raises UsageError for a device that PyTorch does not have."""
    import torch  # here: --help needs no torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"there is no device {name!r} here: {reason}", hint='use "cpu", "cuda" or "auto"') from None
    return name
