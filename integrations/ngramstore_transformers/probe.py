"""Does a model read token ids for nothing but its input embeddings? If not, a store in front of it changes what it computes.

Two ordinary tokens go through the model's own `forward`, as ids and as the vectors that its input embeddings give, behind
padding where the configuration names an id for it. Both calls must run the same modules and agree in the logits: new
weights may hide a second table behind a factor of zero, and an id may be read without a module. A third call has vectors
that belong to no id, as the store's do: Gemma 4 would look for theirs. A call before them all lets a model settle that
takes other
modules for few tokens: BigBird does, and would never go back.

Shapes: B batch (1), T positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from ngramstore.errors import UsageError

_TAKEN = "attach takes models that compute everything from inputs_embeds (docs/serving.md)"
_OMIT = "attach(..., probe=False) leaves this check out, where you know that the model reads ids for nothing else"


def require_ids_for_embeddings_only(model: Any) -> None:
    """Run the model four times on two tokens, without gradients and as in `eval`. UsageError says what differs.

    Modules, training flags, hooks and random numbers are afterwards as they were.
    """
    name, embed = type(model).__name__, model.get_input_embeddings()
    if embed.weight.is_meta:
        raise UsageError(
            f"{name} has no weights yet: its embeddings are on device meta", hint=f"load them first; {_OMIT}"
        )
    inputs = _inputs(model, embed)
    ids_BT = inputs.pop("input_ids")
    with torch.no_grad(), _keeping_modules(model), _evaluating(model):
        try:
            _run(model, embed, input_ids=ids_BT, **inputs)
            want, with_ids = _run(model, embed, input_ids=ids_BT, **inputs)
        except Exception as error:
            raise UsageError(f"{name} gives no answer to two token ids: {error!r}", hint=_OMIT) from error
        try:
            got, with_vectors = _run(model, embed, inputs_embeds=embed(ids_BT), **inputs)
        except Exception as error:
            raise UsageError(f"{name} takes no inputs_embeds in the place of ids: {error!r}", hint=_TAKEN) from error
        try:
            _run(model, embed, inputs_embeds=embed(ids_BT) + 1, **inputs)
        except Exception as error:
            raise UsageError(f"{name} takes only vectors of its own table: {error!r}", hint=_TAKEN) from error
    more = f"{name} reads token ids for more than its input embeddings: given vectors, "
    if with_ids != with_vectors:
        others = ", ".join(sorted(with_ids ^ with_vectors)[:4])
        raise UsageError(f"{more}it differs in whether it runs {others}", hint=_TAKEN)
    if not _agree(want, got):
        raise UsageError(f"{more}its logits differ", hint=f"{_TAKEN}; {_OMIT}")


def _inputs(model: Any, embed: Any) -> dict[str, Tensor]:
    """input_ids of two tokens that are no special ones, and, where the model takes a mask, padding in front of them."""
    size, where = len(embed.weight), embed.weight.device
    config = model.config.get_text_config()
    values = {**config.to_dict(), **model.config.to_dict()}.items()
    special = {value for name, value in values if name.endswith(("token_id", "token_index")) and isinstance(value, int)}
    ordinary = (i for i in chain(range(size // 2, size), range(size // 2)) if i not in special)
    ids = (list(islice(ordinary, 2)) or [0]) * 2
    padding = getattr(config, "pad_token_id", None)
    is_padded = isinstance(padding, int) and 0 <= padding < size
    if not is_padded or "attention_mask" not in inspect.signature(model.forward).parameters:
        return {"input_ids": torch.tensor([ids[:2]], device=where)}
    return {
        "input_ids": torch.tensor([[padding, *ids[:2]]], device=where),
        "attention_mask": torch.tensor([[0, 1, 1]], device=where),
    }


def _run(model: Any, embed: Any, **inputs: Any) -> tuple[Tensor, set[str]]:
    """Logits (B, 2, V) of the two tokens, and the names of the modules that ran, without those of the embeddings."""
    ran: set[str] = set()
    own = set(embed.modules())

    def noting(name: str) -> Any:
        return lambda *_: ran.add(name)

    others = [(name, module) for name, module in model.named_modules() if module not in own]
    hooks = [module.register_forward_pre_hook(noting(name)) for name, module in others]
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next((device.type for device in devices), "cuda")
    try:
        with torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind):
            output = model.forward(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return output[0][:, -2:], ran


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """As after `model.eval()`; set one by one, since `train` and `eval` of some modules do more."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _keeping_modules(model: Any) -> Iterator[None]:
    """Where modules were put in the place of others, all are put back, and so is what they had noted of it."""
    before = [(module, dict(vars(module)), dict(module._modules)) for module in model.modules()]
    try:
        yield
    finally:
        if any(module._modules != children for module, _, children in before):
            for module, attributes, children in before:
                vars(module).clear()
                vars(module).update(attributes)
                module._modules.clear()
                module._modules.update(children)


def _agree(want: Tensor, got: Tensor) -> bool:
    """Up to rounding: an accelerator may add in another order from call to call."""
    scale = want.float().nan_to_num(posinf=0, neginf=0).abs().max().item()
    tolerance = torch.finfo(want.dtype).eps ** 0.5 * scale
    is_alike = want.shape == got.shape
    return is_alike and torch.allclose(want.float(), got.float(), rtol=0, atol=tolerance, equal_nan=True)
