"""`attach`: a model's input embeddings come from a store, in `forward` and in `generate`.

The model's modules and weights stay as they are; its class gets a subclass of the same name in front, which computes
`inputs_embeds` from token ids and hands them to the model's own code. What an n-gram may reach back to comes from the ids
that `generate` hands over, or from the record of ids that stands beside a key-value cache (record.py).

Shapes: B batch, T new positions, S positions in all, K longest n-gram, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ngramstore.errors import MissingExtra, UsageError
from ngramstore_torch import NGramEmbedding
from ngramstore_transformers.in_front import is_in_front, put_in_front, take_away

try:
    from transformers import GenerationMixin, PreTrainedModel

    from ngramstore_transformers import record
    from ngramstore_transformers.probe import require_ids_for_embeddings_only
except ImportError:
    raise MissingExtra("transformers", "transformers") from None

_KEY = "_ngramstore_embedding"


def attach(model: PreTrainedModel, store: Any, *, probe: bool = True, **options: Any) -> NGramEmbedding:
    """Make a causal language model read its input embeddings from an open store; returns the look-up module.

    The store's rows stand for what the model's input embedding module gives, in its type and on its device; where no
    n-gram matches, that module answers, and it trains as before. options: those of NGramEmbedding (min_length, timeout_s).
    Works with `forward`, also step by step with a cache, and with `generate`; `save_pretrained` saves the plain model.
    A state that is no Cache (RWKV's) cannot be continued in `forward`: UsageError. `generate` hands over all ids.
    probe: run the model on two tokens first, and refuse it if it reads token ids for more than its input embeddings
    (Gemma 3n's table for each layer): behind the store those would go missing.
    Raises UsageError where widths differ, for encoder-decoders, for what does not generate, for what wraps a model, and for a
    model that has a store already; the model is then as it was.
    """
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"{type(model).__name__} is no model of Transformers",
            hint="attach the model itself, then compile it or wrap it for several devices",
        )
    if attached(model) is not None:
        raise UsageError("the model has a store already", hint="call detach(model) first")
    if model.config.is_encoder_decoder:
        raise UsageError(f"{type(model).__name__} is an encoder-decoder", hint="attach takes decoder-only models")
    if not hasattr(model, "prepare_inputs_for_generation"):
        raise UsageError(
            f"{type(model).__name__} does not generate",
            hint="attach takes models with a language modelling head; some others read token ids behind the embeddings",
        )
    embedding = NGramEmbedding(store, model.get_input_embeddings(), **options)
    if probe:
        require_ids_for_embeddings_only(model)
    put_in_front(model, _methods)
    if "forward" in model.__dict__:  # spread over devices or compiled in place: it goes past the class
        theirs = model.__dict__["forward"]
        model.__dict__["forward"] = functools.update_wrapper(functools.partial(_forward, theirs, model), theirs)
    model.__dict__[_KEY] = embedding  # past nn.Module's registry: T must not be saved twice
    return embedding


def detach(model: PreTrainedModel) -> None:
    """Undo `attach`: the model is of its own class again. UsageError where it has no store."""
    if attached(model) is None:
        raise UsageError("the model has no store")
    if not is_in_front(model, _methods):
        raise UsageError(
            f"{type(model).__name__} is not the class that attach gave the model",
            hint="undo what replaced the class since then, last first, and call detach again",
        )
    take_away(model)
    ours = model.__dict__.get("forward")
    if isinstance(ours, functools.partial) and ours.func is _forward:
        model.__dict__["forward"] = ours.args[0]
    del model.__dict__[_KEY]


def attached(model: PreTrainedModel) -> NGramEmbedding | None:
    """The look-up module that `attach` gave this model, or None."""
    return model.__dict__.get(_KEY)


def _methods(own: Any) -> dict[str, Any]:
    """Of a model with a store; wrapped methods keep the signatures that `generate` looks at."""

    @functools.wraps(own.prepare_inputs_for_generation)
    def prepare_inputs_for_generation(self: Any, input_ids: Tensor, *arguments: Any, **options: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = own.prepare_inputs_for_generation(self, input_ids, *arguments, **options)
        new_BT = inputs.get("input_ids")
        if new_BT is not None and attached(self) is not None:
            _require_end_of(input_ids, new_BT, own)
            past, mask = record.cache_among(inputs.values()), options.get("attention_mask")
            inputs["inputs_embeds"], *positions = _embed(self, input_ids, new_BT.shape[1], mask, past)
            inputs["input_ids"] = None
            _note(past, *positions)
        return inputs

    @functools.wraps(own.forward)
    def forward(self: Any, input_ids: Tensor | None = None, *arguments: Any, **options: Any) -> Any:
        return _forward(functools.partial(own.forward, self), self, input_ids, *arguments, **options)

    return {"prepare_inputs_for_generation": prepare_inputs_for_generation, "forward": forward}


def _forward(plain: Any, model: Any, input_ids: Tensor | None = None, *arguments: Any, **options: Any) -> Any:
    """What `plain`, a model's forward without a store, makes of the store's vectors.

    No store: something that stands in front of the model's forward since `attach` still holds this one after `detach`.
    """
    if attached(model) is None or input_ids is None or options.get("inputs_embeds") is not None:
        return plain(input_ids, *arguments, **options)
    if arguments:
        raise UsageError("a model with a store takes all arguments but input_ids by keyword")
    record.require_recordable(options)
    _require_positions(model, options)
    past, mask = record.cache_among(options.values()), options.get("attention_mask")
    is_one_call = past is None and mask is None
    starts_BT = _document_starts(options, input_ids) if is_one_call else None
    options["inputs_embeds"], *positions = _embed(model, input_ids, input_ids.shape[1], mask, past, starts_BT)
    output = plain(**options)
    if past is None and starts_BT is None:  # of several documents, which one goes on?
        past = record.cache_among(output if isinstance(output, tuple) else output.values())
    _note(past, *positions)  # last: a step that failed before it reached the cache can be tried again
    return output


@torch.compiler.disable
def _embed(
    model: Any, ids_BS: Tensor, num_new: int, mask: Tensor | None, past: Any, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors (B, T, D) of the last T of the ids; ids and mask of all positions, which the cache holds behind this step.

    ids, on any device, are the whole sequence, or what follows the cache's content (then the record says what came
    before). starts: true where a document begins; only without a cache.
    """
    embedding = _up_to_date(model)
    _require_plain(mask, ids_BS)
    past_length = 0 if past is None else record.length(past)
    if past_length and ids_BS.shape[1] != past_length + num_new:
        ids_BS, mask_BS = record.continued(past, past_length, ids_BS[:, ids_BS.shape[1] - num_new :], mask)
    else:
        mask_BS = _ones_or(mask, ids_BS)
    begin = ids_BS.shape[1] - num_new
    recent = max(0, begin - embedding.max_n + 1)
    is_masked = mask_BS is not None and not bool(mask_BS[:, recent:].all())
    used_BS = mask_BS if is_masked else None
    if is_masked:
        recent = 0  # masked positions count for nothing: look further back
    history, device = embedding.new_history(len(ids_BS), max_rollback=0), model.get_input_embeddings().weight.device
    if begin:
        history.push(ids_BS[:, recent:begin].cpu().numpy(), None if used_BS is None else used_BS[:, recent:begin])
    made_BTD = embedding(
        ids_BS[:, begin:].to(device),  # `generate` leaves ids where its caller had them
        history=history,
        attention_mask=None if used_BS is None else used_BS[:, begin:],
        starts=starts_BT,
    )
    return made_BTD, ids_BS, mask_BS


@torch.compiler.disable
def _note(cache: Any, ids_BS: Tensor, mask_BS: Tensor | None) -> None:
    """Bring a cache's record up to what it holds."""
    if cache is not None:
        record.write(cache, ids_BS, mask_BS)


def _up_to_date(model: Any) -> NGramEmbedding:
    """The look-up module, reading T where the model has it now: `set_input_embeddings` may have put another there."""
    embedding, own = attached(model), model.get_input_embeddings()
    assert embedding is not None
    if embedding.token_embedding is not own:
        if own.weight.shape[1] != embedding.dim:
            raise UsageError(
                f"the model's token embedding is {own.weight.shape[1]} wide now, the store's rows are {embedding.dim}",
                hint="call detach(model), or attach a store of that width",
            )
        if model.__dict__.get("_is_replica"):  # of DataParallel, in a thread of its own: all replicas share our module
            embedding = embedding._replicate_for_data_parallel()
            model.__dict__[_KEY] = embedding
        embedding.token_embedding = own
    return embedding


@torch.compiler.disable
def _document_starts(options: Mapping[str, Any], ids_BT: Tensor) -> Tensor | None:
    """Where the documents of packed lines begin: (B, T) bool, or None for lines of one document.

    What Transformers goes by when it keeps them apart, if there is no mask and no cache: positions that do not go on from
    the one before, or cumulative lengths, of a line that holds the whole batch.
    """
    position, begins = options.get("position_ids"), options.get("cu_seq_lens_q")
    starts_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    if position is not None and position.ndim == 2 and position.shape[1] == ids_BT.shape[1]:
        starts_BT[:, 1:] |= (position.diff(dim=1) != 1).to(starts_BT.device)
    if begins is not None and len(ids_BT) == 1:
        starts_BT[0, begins[1:-1].long().to(starts_BT.device)] = True
    return starts_BT if bool(starts_BT.any()) else None


def _require_end_of(ids_BS: Tensor, new_BT: Tensor, own: Any) -> None:
    """UsageError where a model's own way to prepare a step gives other tokens to the model than the last of the ids
    (XLM, XLNet)."""
    if own.prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return
    num_new = new_BT.shape[1]
    if num_new > ids_BS.shape[1] or not torch.equal(new_BT, ids_BS[:, ids_BS.shape[1] - num_new :].to(new_BT.device)):
        raise UsageError(
            f"{own.__name__} generates from other tokens than the last of its ids",
            hint="attach takes models that go on from the sequence as it is (docs/serving.md)",
        )


def _require_positions(model: Any, options: Mapping[str, Any]) -> None:
    """UsageError where the model would take positions in an image from token ids, which it does not see behind the store."""
    inner = model.base_model
    if not hasattr(inner, "compute_3d_position_ids") or options.get("position_ids") is not None:
        return
    has_images = any(options.get(name) is not None for name in ("image_grid_thw", "video_grid_thw"))
    past, deltas = record.cache_among(options.values()), getattr(inner, "rope_deltas", None)  # zeros: of text alone
    if has_images or (deltas is not None and bool(deltas.any()) and (past is None or not record.length(past))):
        raise UsageError(
            f"{type(model).__name__} places text around images by token ids, which a store in front of it keeps",
            hint="give position_ids (the model's get_rope_index makes them), or use generate()",
        )


def _require_plain(mask: Any, ids_BS: Tensor) -> None:
    """UsageError for a mask that says more than which positions are tokens."""
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == len(ids_BS)):
        return
    what = f"shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else f"type {type(mask).__name__}"
    raise UsageError(f"attention_mask has {what}, ids have shape {tuple(ids_BS.shape)}: wanted (B, S)")


def _ones_or(mask: Tensor | None, ids_BS: Tensor) -> Tensor | None:
    """A mask for exactly these ids, or None: all are tokens. Of a wider one, made for all that will come, the first
    columns count."""
    if mask is None:
        return None
    if mask.shape[1] < ids_BS.shape[1]:
        raise UsageError(f"attention_mask has shape {tuple(mask.shape)}, ids have {tuple(ids_BS.shape)}: wanted (B, S)")
    return mask[:, : ids_BS.shape[1]]
