"""Whether a store holds the rows of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ngramstore.cli.common import say
from ngramstore.errors import UsageError

if TYPE_CHECKING:
    import ngramstore
    from ngramstore_torch.training.checkpoint import Checkpoint


def require_exported_from(store: ngramstore.Store, saved: Checkpoint, *, hint: str, may_be_other: bool = False) -> None:
    """UsageError for a store that says it came from another checkpoint; a note where it says nothing of one.

    may_be_other: another checkpoint's store is accepted.
    """
    source = store.metadata.get("checkpoint_id")
    if source is None:
        say(
            f"note: {store.path} does not say which checkpoint its rows were computed from; whether they fit this one is not known"
        )
    elif source != saved.identity and not may_be_other:
        raise UsageError(
            f"{store.path} was exported from checkpoint {str(source)[:12]}.., this is {saved.identity[:12]}..",
            hint=hint,
        )
