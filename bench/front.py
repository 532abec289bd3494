"""What opens docs/results.md: every target with its verdict, where a peer is faster and why, the plots, the paper's tables."""

from __future__ import annotations

from pathlib import Path

from bench import claims, exceptions, paper_tables, plots, saved


def head(folder: Path = saved.RESULTS) -> str:
    """Markdown, computed from the JSON files alone."""
    return "\n".join(
        (
            "## Targets\n",
            "What the project set itself to reach. A ratio is ngramstore's value divided by the other's in the same round, the median over the rounds, with "
            "the least and the largest round in parentheses; below 1 x is faster or smaller. Nothing is rounded in favour of a target. Losses and "
            "perplexities are of held-out text; a tokenizer made by `train:SIZE` has seen all of the text.\n",
            claims.table(folder),
            "\n## Where a peer is faster\n",
            "Every column of the workloads `store` and `paper` in which a peer needs over 5 % less than `ngramstore` with default options. "
            "`floor` and `flat_*` are told the row numbers: they are bounds, not peers. A column with values of 0 or less, such as what memory exceeds "
            "a budget by, has no ratio.\n",
            exceptions.table(folder),
            "\n## Plots\n",
            *(f"![{caption}](images/{name})\n" for name, caption in plots.names(folder)),
            "## The paper's tables\n",
            paper_tables.section(folder),
            "",
        )
    )
