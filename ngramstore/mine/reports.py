"""What a vocabulary holds and how much of a corpus it matches: as text, as JSON, as a plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ngramstore.errors import MissingExtra, UsageError
from ngramstore.mine.shards import TokenShards, held_out_spans, inside
from ngramstore.mine.vocab import Vocabulary


@dataclass(frozen=True)
class Matches:
    """How many positions of some text end in an n-gram of each length; length 0 is no match."""

    num_tokens: int
    by_length: dict[int, int]

    @property
    def coverage(self) -> float:
        """Share of positions with a match; 0 for no text."""
        return 1 - self.by_length[0] / self.num_tokens if self.num_tokens else 0.0


@dataclass(frozen=True)
class Report:
    """A vocabulary in numbers. `mined` is the text it was mined from, `held_out` the part that mining left out."""

    num_ngrams: int
    ngrams_by_length: dict[int, int]
    num_frequent: int
    min_count: int
    cutoff_count: int
    top_count: int
    corpus_tokens: int
    mined: Matches
    held_out: Matches

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        whole = asdict(self)
        for name in ("mined", "held_out"):
            whole[name]["coverage"] = getattr(self, name).coverage
        return whole

    def text(self) -> str:
        """A table for people."""
        lines = [
            f"n-grams          {self.num_ngrams:,} of {self.num_frequent:,} that occur at least {self.min_count} times",
            f"counts           {self.top_count:,} down to {self.cutoff_count:,} (the cut-off)",
            f"coverage         {self.mined.coverage:.1%} of {self.mined.num_tokens:,} mined tokens",
        ]
        if self.held_out.num_tokens:
            lines.append(f"held out         {self.held_out.coverage:.1%} of {self.held_out.num_tokens:,} tokens")
        lines += ["", "length     n-grams   longest match, mined" + ("   held out" if self.held_out.num_tokens else "")]
        for n, num in self.mined.by_length.items():
            cells = f"{n or 'none':>6}  {self.ngrams_by_length.get(n, 0):>10,}  {_share(num, self.mined):>21}"
            if self.held_out.num_tokens:
                cells += f"  {_share(self.held_out.by_length[n], self.held_out):>9}"
            lines.append(cells)
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw both tables; the suffix of the path names the format. Raises MissingExtra, UsageError."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise MissingExtra("matplotlib", "mine") from None
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        left.bar([str(n) for n in self.ngrams_by_length], list(self.ngrams_by_length.values()), color="#4477aa")
        left.set(title=f"{self.num_ngrams:,} n-grams", xlabel="length", ylabel="n-grams")
        shown = [("mined", self.mined, -0.2, "#4477aa"), ("held out", self.held_out, 0.2, "#ee6677")]
        for name, matches, shift, color in shown:
            if matches.num_tokens:
                places = np.arange(len(matches.by_length)) + shift
                shares = [num / matches.num_tokens for num in matches.by_length.values()]
                right.bar(places, shares, 0.4, label=f"{name}: {matches.coverage:.1%} covered", color=color)
        right.set_xticks(range(len(self.mined.by_length)), [str(n or "none") for n in self.mined.by_length])
        right.set(title="longest match at a position", xlabel="length", ylabel="share of positions")
        right.legend()
        try:
            figure.savefig(path, dpi=120)
        except (ValueError, OSError) as error:
            raise UsageError(f"the plot cannot be written to {str(path)!r}: {error}") from None


def check_plot(path: Path) -> None:
    """Raise what `Report.plot` would for a path of this name, before there is anything to draw."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise MissingExtra("matplotlib", "mine") from None
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:].lower() not in known:
        raise UsageError(f"the plot cannot be written to {str(path)!r}", hint=f"its ending is one of {' '.join(known)}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the plot cannot be written to {str(path)!r}: there is no folder {str(path.parent)!r}")


def report(
    vocabulary: Vocabulary, corpus: TokenShards, held_out: float | None = None, *, progress: bool = False
) -> Report:
    """Tag the corpus and count: held_out is the fraction that mining left out (None: what the vocabulary says).
    progress: a bar on stderr.

    Raises UsageError where the vocabulary and the corpus have different tokenizers.
    """
    vocabulary.require_tokenizer(corpus.tokenizer_id)
    fraction = vocabulary.held_out if held_out is None else held_out
    lengths_M = vocabulary.ngrams[1]
    mined, left_out = np.zeros(vocabulary.max_n + 1, np.int64), np.zeros(vocabulary.max_n + 1, np.int64)
    with tqdm(total=corpus.num_tokens, unit="token", unit_scale=True, desc="coverage", disable=not progress) as bar:
        for shard, spans in zip(corpus.shards, held_out_spans(corpus, fraction), strict=True):
            for begin, matched_T, _ in vocabulary.tag_pieces(shard.tokens(), shard.starts()):
                is_out_T = inside(spans, begin, begin + len(matched_T))
                mined += np.bincount(matched_T[~is_out_T], minlength=len(mined))
                left_out += np.bincount(matched_T[is_out_T], minlength=len(mined))
                bar.update(len(matched_T))
    by_length = np.bincount(lengths_M, minlength=vocabulary.max_n + 1)
    return Report(
        num_ngrams=len(vocabulary),
        ngrams_by_length={n: int(by_length[n]) for n in range(2, vocabulary.max_n + 1)},
        num_frequent=vocabulary.num_frequent,
        min_count=vocabulary.min_count,
        cutoff_count=vocabulary.cutoff,
        top_count=int(vocabulary.counts[0]) if len(vocabulary) else 0,
        corpus_tokens=corpus.num_tokens,
        mined=_matches(mined),
        held_out=_matches(left_out),
    )


def _matches(by_length: np.ndarray) -> Matches:
    numbers = {n: int(num) for n, num in enumerate(by_length) if n != 1}
    return Matches(int(by_length.sum()), numbers)


def _share(num: int, matches: Matches) -> str:
    return f"{num / matches.num_tokens:.1%}" if matches.num_tokens else "-"
