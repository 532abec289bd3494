"""`ngramstore generate`: text from a trained decoder served by a store, with what serving cost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ngramstore.cli.common import ByteSize, emit, say
from ngramstore.errors import UsageError
from ngramstore_torch.cli.device import choose_device, device_option
from ngramstore_torch.cli.stores import require_exported_from
from ngramstore_torch.data.identities import require_tokenizer

if TYPE_CHECKING:
    import numpy as np

    from ngramstore.mine import Tokenizer
    from ngramstore_torch.model.decoder import Decoder
    from ngramstore_torch.serving.embedding import NGramEmbedding

_LOADING_S = 60.0


@click.command(name="generate", short_help="Generate text from a checkpoint served by a store.")
@click.option("--checkpoint", "run", required=True, type=click.Path(path_type=Path), help="Run folder of `train`.")
@click.option("--store", "path", required=True, type=click.Path(path_type=Path), help="Store exported from it.")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--tokenizer", help="A tokenizer.json.  [default: the one in the run folder]")
@click.option(
    "--max-new-tokens",
    default=100,
    show_default=True,
    type=click.IntRange(1),
    help="Tokens to add; with the prompt at most the --seq-len of training.",
)
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0),
    help="More draws less likely tokens; 0 takes the likeliest.",
)
@click.option(
    "--top-k",
    default=50,
    show_default=True,
    type=click.IntRange(1),
    help="Draw among this many of the likeliest tokens.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Seed of the draws: another seed, another text.",
)
@click.option(
    "--candidates",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Fetch ahead of time the rows that this many likely next tokens would need; try 8.",
)
@click.option(
    "--cache-bytes", default="256MiB", show_default=True, type=ByteSize(), help="Size of the row cache; 0: none."
)
@click.option(
    "--timeout",
    default=None,
    type=float,
    help="Give up on a look-up after this many seconds; on the first ones, which compile, after 60 or more.  [default: never]",
)
@device_option
@click.option("--any-store", is_flag=True, help="Accept a store that says it was exported from another checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the text.")
@click.option("--quiet", is_flag=True, help="No statistics on stderr.")
def command(run: Path, path: Path, prompt: str, tokenizer: str | None, as_json: bool, quiet: bool, **o: Any) -> None:
    """Continue a text; each token's embedding comes from the store where an f-gram ends at it.

    Text goes to stdout as it is made; tokens/s, look-ups/s, hit rate and waiting times go to stderr, live.

    \b
    Examples:
      ngramstore generate --checkpoint scone/ --store table/ --prompt "Once upon a time"
    """
    # Imported here so that --help needs no torch.
    import ngramstore
    from ngramstore.mine import load_tokenizer
    from ngramstore_torch.data.batches import require_ids
    from ngramstore_torch.serving.embedding import NGramEmbedding
    from ngramstore_torch.serving.loop import generate_served
    from ngramstore_torch.training import checkpoint

    if o["candidates"] and not o["cache_bytes"]:
        raise UsageError("--candidates fetches into the row cache, and --cache-bytes is 0", hint="give the cache room")
    saved = checkpoint.load(run)
    if saved.model.kind != "scone":
        raise UsageError(f"{run} holds a model of kind {saved.model.kind!r}; a store serves one of kind 'scone'")
    words = load_tokenizer(tokenizer or run)
    require_tokenizer(str(run), saved.description["data"], words.id)
    tokens = words.encode(prompt)
    decoder = saved.model.decoder.to(choose_device(o["device"])).eval()
    with ngramstore.open(path, cache_bytes=o["cache_bytes"]) as store:
        again = "export the table again, or give --any-store"
        require_exported_from(store, saved, hint=again, may_be_other=o["any_store"])
        require_tokenizer(str(store.path), store.metadata, words.id)
        require_ids(tokens, decoder.config.vocab_size, "the tokens of the prompt")
        embedding = NGramEmbedding(store, decoder.tokens, timeout_s=o["timeout"])
        if len(tokens):
            _load_kernels(path, decoder, tokens, o["timeout"])
        embedding.stats.reset()
        answer = _Answer(words, tokens, embedding)
        options = {name: o[name] for name in ("temperature", "top_k", "seed", "candidates")}
        for token in generate_served(decoder, embedding, tokens, o["max_new_tokens"], **options):
            answer.made.append(token)
            if not as_json:
                answer.show(with_statistics=not quiet)
        found = answer.statistics()
    if as_json:
        emit({"text": answer.text(), "prompt_tokens": len(tokens), "tokens": answer.made, **found})
        return
    answer.end()
    if not quiet:
        say(_line(found))


class _Answer:
    """The text as it grows, and what serving it cost since it began."""

    def __init__(self, words: Tokenizer, prompt: np.ndarray, embedding: NGramEmbedding) -> None:
        self.words, self.prompt, self.embedding = words, prompt, embedding
        self.made: list[int] = []
        self._shown = ""
        self._began = self._shown_at = time.perf_counter()

    def text(self) -> str:
        """Prompt and answer so far."""
        return self.words.decode([*self.prompt.tolist(), *self.made])

    def show(self, *, with_statistics: bool) -> None:
        """Print what is new, and once a second what it cost."""
        text = self.text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # else in the middle of a character
            self._print(text)
        if with_statistics and time.perf_counter() - self._shown_at > 1:
            self._shown_at = time.perf_counter()
            say("\n" + _line(self.statistics()))

    def end(self) -> None:
        """Print what `show` held back, now that no token can end the character, and end the line."""
        self._print(self.text())
        click.echo()

    def _print(self, text: str) -> None:
        click.echo(text[len(self._shown) :], nl=False)
        self._shown = text

    def statistics(self) -> dict[str, Any]:
        """Speed, hit rate and waiting times since the first token was asked for."""
        seconds = time.perf_counter() - self._began
        stats, store = self.embedding.stats.as_dict(), self.embedding.store.stats()
        return {
            "seconds": seconds,
            "tokens_per_s": len(self.made) / seconds,
            "lookups_per_s": stats["positions"] / seconds,
            "ngram_share": stats["found_share"],
            "hit_rate": store["hit_rate"],
            "wait_p50_us": stats["wait_p50_us"],
            "wait_p99_us": stats["wait_p99_us"],
            "wait_share": stats["wait_total_s"] / seconds,
            "rows_read": store["rows_read"],
            "bytes_read": store["bytes_read"],
        }


def _load_kernels(path: Path, decoder: Decoder, tokens: np.ndarray, timeout_s: float | None) -> None:
    """Compile or load what look-ups call, through a handle of its own, so that statistics show look-ups alone. It reads the
    prompt's rows: on a cold disk their pages are then in memory, those of the tokens to come are not.

    timeout_s: what look-ups are allowed. Here they have _LOADING_S at least: compiling is no sign of a slow disk.
    """
    import torch

    import ngramstore
    from ngramstore_torch.serving.embedding import NGramEmbedding

    if timeout_s is not None:
        timeout_s = max(timeout_s, _LOADING_S)
    with ngramstore.open(path) as store, torch.inference_mode():
        embedding = NGramEmbedding(store, decoder.tokens, timeout_s=timeout_s)
        line = torch.from_numpy(tokens.astype("int64"))[None].to(decoder.tokens.weight.device)
        embedding(line, ticket=embedding.prefetch(line, timeout_s=timeout_s))
        history = embedding.new_history(1, max_rollback=0)
        for token_11 in line[:, -8:].split(1, dim=1):
            embedding(token_11, history=history)


def _line(found: dict[str, Any]) -> str:
    rate = "no cache" if found["hit_rate"] is None else f"{found['hit_rate']:.0%} cache hits"
    return (
        f"{found['tokens_per_s']:.1f} tokens/s, {found['lookups_per_s']:.1f} look-ups/s, "
        f"{found['ngram_share']:.0%} with an f-gram, {rate}, "
        f"wait p50 {found['wait_p50_us']:.0f} us, p99 {found['wait_p99_us']:.0f} us"
    )
