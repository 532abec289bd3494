"""The last tokens of each sequence: what an n-gram that ends at the next token may reach back to.

One rule covers padding, masks and documents: a masked position holds no token, so n-grams run over it as if it were not
there; a start marks the first token of a document, and no n-gram reaches across it. Tokens are added by `push` (the
embedding does it), taken back by `truncate`, and sequences are moved about by `select`, `reorder` and `reset`.

Beside each held token stands its room: how many tokens, itself included, an n-gram that ends there may have. So a
roll-back over a document's start finds the document before it again.

Shapes: B sequences, T new positions, C tokens held, K longest n-gram, S = K - 1 + T.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.hashing import MAX_N
from ngramstore.windows import as_tokens
from ngramstore_torch.serving.windows import Windows

_SPARE = 256
"""Columns that single steps fill before they are moved to the front."""


class NGramHistory:
    """The last tokens of B sequences, on the host.

    max_n: the store's K. max_rollback: how many tokens `truncate` can take back in a row and still know the K - 1 before
    them; 5 bytes a token and sequence. Threads: one at a time.
    """

    def __init__(self, batch_size: int, max_n: int, *, max_rollback: int = 64) -> None:
        if batch_size < 0 or not 1 <= max_n <= MAX_N or max_rollback < 0:
            raise UsageError(f"a history of {batch_size} sequences, max_n {max_n}, max_rollback {max_rollback}")
        self.max_n = max_n
        self.max_rollback = max_rollback
        self._line: tuple[np.ndarray, np.ndarray] | None = None
        self._hold(
            np.zeros((batch_size, max_n + max_rollback), np.uint32),
            np.zeros((batch_size, max_n + max_rollback), np.uint8),
        )
        self._num_B = np.zeros(batch_size, np.int64)
        self.batch_size = batch_size
        """B."""
        self.scratch: Any = None
        """A place for one caller's buffers; copies, pickles and selections begin without it."""

    @property
    def lengths(self) -> np.ndarray:
        """(B,) i64: tokens pushed and not taken back; masked positions do not count."""
        return self._num_B

    @property
    def room(self) -> np.ndarray:
        """(B,) u8: how many tokens an n-gram that ends at the last one may have, up to K; 0: there is no token yet."""
        return self._room[:, -1].copy()

    @property
    def context(self) -> np.ndarray:
        """(B, K - 1) u32: the last tokens, newest last; zeros where a sequence is younger."""
        return self._tokens[:, self._tokens.shape[1] - self.max_n + 1 :].copy()

    def windows(self, tokens_BT: np.ndarray, mask_BT: Any = None, starts_BT: Any = None) -> Windows:
        """Context and new tokens of T new positions. Changes nothing.

        tokens_BT: integers; masked ones may be anything. mask_BT: true where there is a token. starts_BT: true at the
        first token of a document. Raises UsageError.
        """
        mask_BT, starts_BT = self._check(tokens_BT, mask_BT, starts_BT)
        room_BT = self._new_room(tokens_BT.shape, mask_BT, starts_BT)
        if mask_BT is None:
            return Windows(np.concatenate((self.context, as_tokens(tokens_BT)), 1), room_BT)
        before = self.max_n - 1
        tokens_BS = np.concatenate((self.context, as_tokens(np.where(mask_BT, tokens_BT, 0))), 1)
        # Masked positions go to the left of the context where the last position is a token, else to the right of all: so
        # tokens stay in place under left padding and under right padding alike.
        side_B = np.where(mask_BT[:, -1:], 0, 2)
        order_BS = np.argsort(_beside(before, np.where(mask_BT, 1, side_B)), axis=1, kind="stable")
        place_BT = np.where(mask_BT, np.argsort(order_BS, axis=1)[:, before:] - before, -1)
        tokens_BS = np.take_along_axis(tokens_BS, order_BS, 1)
        if (place_BT == np.arange(tokens_BT.shape[1]))[mask_BT].all():
            return Windows(tokens_BS, room_BT)
        packed_BT = np.zeros_like(room_BT)
        line_B, column_T = np.nonzero(mask_BT)
        packed_BT[line_B, place_BT[line_B, column_T]] = room_BT[line_B, column_T]
        return Windows(tokens_BS, packed_BT, place_BT)

    def push(self, tokens_BT: np.ndarray, mask_BT: Any = None, starts_BT: Any = None) -> None:
        """The T positions are part of the sequences now; arguments as for `windows`."""
        mask_BT, starts_BT = self._check(tokens_BT, mask_BT, starts_BT)
        room_BT = self._new_room(tokens_BT.shape, mask_BT, starts_BT)
        tokens_BT = as_tokens(tokens_BT if mask_BT is None else np.where(mask_BT, tokens_BT, 0))
        held, num_new = self._tokens.shape[1], tokens_BT.shape[1]
        tokens = np.concatenate((self._tokens, tokens_BT), 1)
        room = np.concatenate((self._room, room_BT), 1)
        if mask_BT is not None:
            order = np.argsort(_beside(held, mask_BT), axis=1, kind="stable")
            tokens, room = np.take_along_axis(tokens, order, 1), np.take_along_axis(room, order, 1)
        self._hold(tokens[:, num_new:].copy(), room[:, num_new:].copy())
        self._num_B += num_new if mask_BT is None else mask_BT.sum(1)

    def truncate(self, count: Any) -> None:
        """Take back the last tokens: a number for all sequences, or (B,) numbers in an array or a tensor.

        Raises UsageError for more tokens than there are, or where the tokens before them are not held any more.
        """
        count_B = np.asarray(count.detach().cpu() if hasattr(count, "detach") else count)
        if count_B.shape not in ((), (self.batch_size,)):
            raise UsageError(f"truncate by {count}: this history holds {self.batch_size} sequences")
        count_B = np.broadcast_to(count_B, (self.batch_size,))
        if count_B.dtype.kind not in "iu" or (count_B < 0).any() or (count_B > self._num_B).any():
            raise UsageError(f"truncate by {count}, the sequences have {self._num_B.tolist()} tokens")
        count_B = count_B.astype(np.int64)
        held_B = (self._room > 0).sum(1)
        left_B = self._num_B - count_B
        if (held_B - count_B < np.minimum(left_B, self.max_n - 1)).any():
            raise UsageError(
                f"truncate by {int(count_B.max())} tokens: too few are held before them",
                hint=f"make the history with a max_rollback above {self.max_rollback}",
            )
        at_BC = np.arange(self._tokens.shape[1]) - count_B[:, None]
        is_there_BC = at_BC >= 0
        at_BC = np.maximum(at_BC, 0)
        self._hold(
            np.where(is_there_BC, np.take_along_axis(self._tokens, at_BC, 1), np.uint32(0)),
            np.where(is_there_BC, np.take_along_axis(self._room, at_BC, 1), np.uint8(0)),
        )
        self._num_B = left_B

    def select(self, lines: Any) -> NGramHistory:
        """A new history whose sequence i is sequence lines[i] of this one: indices, in any number and order, or a mask."""
        lines = self._lines(lines)
        chosen = NGramHistory(0, self.max_n, max_rollback=self.max_rollback)
        chosen._hold(self._tokens[lines], self._room[lines])
        chosen._num_B = self._num_B[lines]
        chosen.batch_size = len(chosen._num_B)
        return chosen

    def reorder(self, lines: Any) -> None:
        """In place: sequence i becomes what sequence lines[i] was. Beam search does so after each step."""
        self.__dict__.update(self.select(lines).__dict__)

    def reset(self, lines: Any = None) -> None:
        """Forget all sequences, or those at these indices: their next token is the first one."""
        chosen = slice(None) if lines is None else self._lines(lines)
        self._tokens[chosen] = 0
        self._room[chosen] = 0
        num_B = self._num_B
        num_B[chosen] = 0
        self._num_B = num_B

    def __repr__(self) -> str:
        return f"<NGramHistory of {self.batch_size} sequences, max_n {self.max_n}, lengths {self._num_B.tolist()}>"

    def __copy__(self) -> NGramHistory:
        return self.select(np.arange(self.batch_size))  # single steps write into the arrays: they are not shared

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "scratch": None, "_line": None}  # a line is a view

    # For embeddings, one token more: `_next_one` or `_next_each`, and `_push_one` once the look-up has gone well

    def _next_one(self, token: int) -> tuple[np.ndarray, int, int]:
        """What `Store.lookup_one` needs for one token more of one sequence: tokens (S,) u32, where they end, and room.

        The token is not part of the sequence before `_push_one`.
        """
        if type(token) is not int or not 0 <= token < 1 << 32:
            token = _as_token(token)
        end, line = self._end, self._line
        if line is None or end == len(line[0]):
            if end == self._wide_room.shape[1]:
                self._lengthen()
                end = self._end
            line = self._wide_tokens[0], self._wide_room[0]
            self._line = line
        tokens, room = line
        tokens[end] = token
        longest = min(room.item(end - 1) + 1, self.max_n)
        room[end] = longest
        return tokens, end + 1, longest

    def _next_each(self, tokens_B1: np.ndarray) -> Windows:
        """As `windows` for one token more of each sequence. They are not part of the sequences before `_push_one`."""
        if self._end == self._wide_room.shape[1]:
            self._lengthen()
        end = self._end
        self._wide_tokens[:, end : end + 1] = as_tokens(tokens_B1)
        room_B1 = np.minimum(self._wide_room[:, end - 1 : end] + np.uint8(1), np.uint8(self.max_n))
        self._wide_room[:, end : end + 1] = room_B1
        return Windows(self._wide_tokens[:, end + 1 - self.max_n : end + 1].copy(), room_B1)

    def _push_one(self) -> None:
        """The token of the last `_next_one`, or those of the last `_next_each`, are part of the sequences now."""
        self._end += 1
        self._num_more += 1

    # Inside

    def _hold(self, tokens_BC: np.ndarray, room_BC: np.ndarray) -> None:
        """These are the tokens held now. Behind them single steps make room for more, so they are a part of wider arrays."""
        self._wide_tokens, self._wide_room, self._end = tokens_BC, room_BC, tokens_BC.shape[1]
        self._line = None

    def _lengthen(self) -> None:
        """Make room behind the tokens held, so that holding the next ones moves nothing."""
        spare = ((0, 0), (0, _SPARE))
        self._hold(np.pad(self._tokens, spare), np.pad(self._room, spare))
        self._end -= _SPARE

    @property
    def _tokens(self) -> np.ndarray:
        """(B, C) u32, newest last: a view."""
        return self._wide_tokens[:, self._end - self.max_n - self.max_rollback : self._end]

    @property
    def _room(self) -> np.ndarray:
        """(B, C) u8, beside the tokens: a view; 0: no token is held there."""
        return self._wide_room[:, self._end - self.max_n - self.max_rollback : self._end]

    @property
    def _num_B(self) -> np.ndarray:
        """(B,) i64, a new array: tokens pushed and not taken back."""
        return self._num_before_B + self._num_more

    @_num_B.setter
    def _num_B(self, num_B: np.ndarray) -> None:
        self._num_before_B, self._num_more = num_B, 0  # single tokens count in a plain number: no array to touch

    def _lines(self, lines: Any) -> np.ndarray:
        """Indices 0 .. B - 1, or a mask (B,), as an array. UsageError for anything else."""
        array = lines.detach().cpu().numpy() if hasattr(lines, "detach") else np.asarray(lines)
        array = array.astype(np.int64) if array.size == 0 and array.dtype.kind == "f" else array  # an empty list
        is_mask = array.dtype.kind == "b" and array.shape == (self.batch_size,)
        is_index = array.dtype.kind in "iu" and array.ndim == 1 and ((array >= 0) & (array < self.batch_size)).all()
        if not (is_mask or is_index):
            raise UsageError(
                f"lines {lines!r:.200} of {self.batch_size} sequences",
                hint=f"give indices 0 .. {self.batch_size - 1}, or a mask of {self.batch_size}",
            )
        return array

    def _check(self, tokens_BT: np.ndarray, mask_BT: Any, starts_BT: Any) -> tuple[np.ndarray | None, ...]:
        if tokens_BT.ndim != 2 or len(tokens_BT) != self.batch_size:
            raise UsageError(f"tokens have shape {tokens_BT.shape}, this history holds {self.batch_size} sequences")
        return _as_bool("mask", mask_BT, tokens_BT.shape), _as_bool("starts", starts_BT, tokens_BT.shape)

    def _new_room(self, shape: tuple[int, ...], mask_BT: np.ndarray | None, starts_BT: np.ndarray | None) -> np.ndarray:
        """Room of new positions, in the order they were given; 0 where masked."""
        before_B1 = self._room[:, -1:].astype(np.int64)
        if mask_BT is None:
            number_BT = np.broadcast_to(np.arange(shape[1]), shape)
        else:
            number_BT = np.cumsum(mask_BT, 1) - 1
        begin_BT: np.ndarray = -before_B1
        if starts_BT is not None and shape[1]:
            if mask_BT is not None:
                starts_BT = starts_BT & mask_BT
            begin_BT = np.maximum.accumulate(np.where(starts_BT, number_BT, -before_B1), axis=1)
        room_BT = np.minimum(number_BT - begin_BT + 1, self.max_n).astype(np.uint8)
        if mask_BT is not None:
            room_BT[~mask_BT] = 0
        return room_BT


def _as_token(token: Any) -> int:
    """An integer of any type, such as numpy's; UsageError for what is no token id."""
    if not isinstance(token, Integral) or isinstance(token, bool) or not 0 <= int(token) < 1 << 32:
        raise UsageError(f"token {token!r}", hint="token ids are integers 0 .. 2**32 - 1")
    return int(token)


def _beside(width: int, keys_BT: np.ndarray) -> np.ndarray:
    """Sort keys of `width` columns (1) in front of the given ones."""
    return np.concatenate((np.ones((len(keys_BT), width), np.int8), keys_BT.astype(np.int8)), 1)


def _as_bool(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    if values is None:
        return None
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "biu":
        raise UsageError(
            f"{name} is {array.dtype} of shape {array.shape}, tokens have {shape}", hint="give bool or 0 and 1"
        )
    return array.astype(bool)
