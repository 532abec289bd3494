"""What is asked of the tensors that a caller hands over: the width and type of T, token ids on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from ngramstore.errors import UsageError


def width_of(token_embedding: nn.Module) -> int:
    """Width of T's vectors."""
    weight: Any = token_embedding.weight
    return int(weight.shape[1])


def require_floats(token_embedding: nn.Module) -> None:
    """UsageError for a weight that is no matrix of floats: rows are given in its type, and mixed with its vectors."""
    dtype: Any = token_embedding.weight.dtype
    if not dtype.is_floating_point or dtype.itemsize < 2:
        raise UsageError(
            f"the weight of token_embedding is {dtype}: rows cannot be given in that type",
            hint="wrap the embedding in a module whose `weight` has the type of the vectors that it returns",
        )


def require_tensor(tokens: Any) -> None:
    """UsageError for token ids in a list or a numpy array."""
    if not isinstance(tokens, Tensor):
        raise UsageError(f"tokens are a {type(tokens).__name__}", hint="give a tensor (B, T): torch.tensor([[3, 14]])")


def on_host(tokens_BT: Tensor) -> np.ndarray:
    """Ids as a numpy array; from an accelerator this waits for it."""
    return (tokens_BT if tokens_BT.device.type == "cpu" else tokens_BT.cpu()).detach().numpy()
