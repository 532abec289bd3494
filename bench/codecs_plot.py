"""The plot of `python -m bench codecs`: what perplexity costs against bits a value on disk, from the JSON."""

from __future__ import annotations

from pathlib import Path

_LEAST_PERCENT = 0.003


def plot(result: dict, path: Path) -> None:
    """Means over the tables; bits as stored or with zstd, what is less, on the left at the tables' row width, on the right
    in frames as long as those of wide rows. Costs below 0.003 % are drawn there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    families: dict[str, list[dict]] = {}
    for line in result["summary"]:
        families.setdefault("int4" if line["family"] == "codec int4" else line["family"], []).append(line)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    titles = (f"rows of {result['settings']['dim']} values", "frames of 1,024 values and more")
    for axis, column, title in zip(axes, ("zstd_bits", "wide_bits"), titles, strict=True):
        for family, lines in families.items():
            lines = sorted(lines, key=lambda line: line["raw_bits"])
            bits = [min(line["raw_bits"], line[column]) for line in lines]
            cost = [max(_LEAST_PERCENT, line["perplexity_percent"]) for line in lines]
            axis.plot(bits, cost, "o-" if lines[0]["is_codec"] else "x--", label=family, markersize=6)
        axis.axhline(0.2, color="grey", linewidth=0.8)
        axis.axvline(4.5, color="grey", linewidth=0.8)
        axis.set(xlabel="bits a value on disk", yscale="log", xscale="log", title=title, xlim=(2.5, 34))
        axis.set_xticks([3, 4, 5, 6, 8, 16, 32], ["3", "4", "5", "6", "8", "16", "32"], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out perplexity above f32, %")
    axes[1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
