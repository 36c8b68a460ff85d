"""Draws the README's figures from a results file, and with --table prints the README's tables.

    python benchmarks/plot.py RESULTS.json [--out FOLDER] [--table]

Figures: speed.png and memory.png of every operation at Amazon-Book's size, scaling.png, end_to_end.png. One whose
section is not in the file is left out. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from record import read
from sizes import COMPILED, OURS
from speed_table import TABLES, TRAININGS, Row, called, epoch_s, rows, two_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

FIGURES = Path(__file__).parent / "figures"
# Okabe and Ito's colours: whoever sees fewer colours tells them apart, too.
BLUE, ORANGE, VERMILION, GREEN, PURPLE = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7"
STOCK = "best other form or library"
MEANING = {
    "N": "items", "M": "users", "nodes": "nodes", "edges": "edges", "d": "width", "B": "batch", "K": "profiles",
    "E": "environments",
}  # fmt: skip
LEAST_MIB = 0.1  # that is told apart: pages and what the allocator keeps are more
# Of all that scaling.py measures, what is drawn where all of it is there.
SHOWN = (
    ("distribution_kl", "N"), ("distribution_kl", "B"), ("distribution_kl", "d"), ("info_nce", "B"),
    ("propagate", "edges"), ("propagate", "nodes"), ("sample_negatives", "edges"), ("topk", "M"),
    ("environment_bpr", "B"), ("environment_bpr", "K"), ("environment_bpr", "E"), ("multinomial_nll", "N"),
)  # fmt: skip


def usual(content: dict[str, Any]) -> list[Row]:
    """Without variants, of which there are as many again."""
    return [row for row in rows(content) if not row.variant]


def speed(content: dict[str, Any]) -> Figure | None:
    """How many times as long as ours the others take."""
    series: list[tuple[str, dict[str, float]]] = []
    for row in usual(content):
        ratios = {
            f"eager PyTorch, {mode}": times[row.definition] / times[OURS]
            for mode, times in zip(called(content), (row.first, row.second), strict=True)
            if row.definition in times
        }
        for name, compiled in ((COMPILED, True), (STOCK, False)):
            if others := row.others(row.second, compiled):
                ratios[name] = min(others.values()) / row.second[OURS]
        series.append((row.title, ratios))
    return dots(series, "time, as a multiple of ours", [VERMILION, ORANGE, GREEN, PURPLE], 1.0)


def memory(content: dict[str, Any]) -> Figure | None:
    """What a call holds beyond its inputs."""
    series = []
    for row in usual(content):
        found = {OURS: row.extra_mib.get(OURS), "eager PyTorch": row.extra_mib.get(row.definition)}
        for name, compiled in ((COMPILED, True), (STOCK, False)):
            found[name] = min(row.others(row.extra_mib, compiled).values(), default=None)
        found = {name: max(value, LEAST_MIB) for name, value in found.items() if value is not None}
        if len(found) > 1:
            series.append((row.title, found))
    title = f"MiB held beyond the inputs (at the left edge: {LEAST_MIB} or less)"
    return dots(series, title, [BLUE, VERMILION, GREEN, PURPLE])


def dots(
    series: list[tuple[str, dict[str, float]]], title: str, colours: list[str], start: float | None = None
) -> Figure | None:
    """A line for every operation with a mark for every provider, on a logarithmic scale."""
    if not series:
        return None
    figure, (axes,) = canvas(1, 1, 9, 1.4 + 0.3 * len(series))
    names = list(dict.fromkeys(name for _, values in series for name in values))
    for place, (_, values) in enumerate(series):
        low = min(values.values()) if start is None else min(start, *values.values())
        axes.plot([low, max(values.values())], [place, place], color="0.85", linewidth=2, zorder=1)
    for name, colour, marker in zip(names, colours, "osD^", strict=False):
        points = [(values[name], place) for place, (_, values) in enumerate(series) if name in values]
        axes.scatter(*zip(*points, strict=True), s=42, color=colour, marker=marker, label=name, zorder=2, alpha=0.95)
    if start is not None:
        axes.axvline(start, color=BLUE, linewidth=1.5, label=OURS, zorder=0)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_yticks(range(len(series)), [name.replace("`", "") for name, _ in series])
    axes.set_ylim(len(series) - 0.4, -0.6)
    axes.set_xlabel(title)
    axes.grid(axis="x", color="0.9")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    return figure


def scaling(content: dict[str, Any]) -> Figure | None:
    """Time above, memory below, for every operation and axis."""
    measured = content.get("scaling", {})
    found = [(operation, axis) for operation, axes in measured.items() for axis in axes]
    found = list(SHOWN) if set(SHOWN) <= set(found) else found
    if not found:
        return None
    columns = min(4, len(found))
    figure, panels = canvas(2 * -(-len(found) // columns), columns, 3.1 * columns, 4.4 * -(-len(found) // columns))
    for place, (operation, axis) in enumerate(found):
        above = place // columns * 2 * columns + place % columns
        for panel, what, measure in ((above, "time", "median_ms"), (above + columns, "memory", "extra_mib")):
            curves(panels[panel], measured[operation][axis], axis, what, measure)
        panels[above].set_title(f"{operation}, {MEANING.get(axis, axis)}", fontsize=10)
    for panel in panels:
        panel.set_visible(panel.has_data())
    figure.supxlabel("crossed out where the next call would take too long, or not fit", fontsize=9)
    return figure


def curves(panel: Axes, entry: dict[str, Any], axis: str, what: str, measure: str) -> None:
    """A provider's time or memory; crossed out where it went no further because of that."""
    providers = [name for name, found in entry.items() if isinstance(found, dict) and measure in found]
    for name, colour, marker in zip(sorted(providers, key=OURS.__eq__), (VERMILION, BLUE), "so", strict=False):
        points = [(v, m) for v, m in zip(entry["values"], entry[name][measure], strict=False) if m]
        slope = entry["exponents"].get(name, {}).get(what)
        label = ("ours" if name == OURS else "eager") + (f" ~ {axis}$^{{{slope:.2f}}}$" if slope is not None else "")
        if points:
            panel.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.5, label=label
            )
            if entry.get("stopped", {}).get(name, "").startswith(what):
                panel.plot(*points[-1], color=colour, marker="x", markersize=11, markeredgewidth=2)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    plain_ticks(panel.xaxis, 2)
    plain_ticks(panel.yaxis, 10)
    panel.set_ylabel("ms" if what == "time" else "MiB", fontsize=9)
    panel.set_xlabel(axis, fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(color="0.92")
    if panel.has_data():
        panel.legend(fontsize=8, frameon=False)


def end_to_end(content: dict[str, Any]) -> Figure | None:
    """Seconds of an epoch."""
    bars = []
    for data, trainings in content.get("end_to_end", {}).items():
        for name, found in trainings.items():
            times = {OURS: epoch_s(found.get("ours", {}))}
            for allocator, baseline in found.get("baseline", {}).items():
                times[f"plain PyTorch, {allocator}"] = epoch_s(baseline)
            bars.append((f"{TRAININGS.get(name, name)}\n{data}", {key: s for key, s in times.items() if s}))
    bars = [(name, times) for name, times in bars if OURS in times]
    if not bars:
        return None
    figure, (axes,) = canvas(1, 1, 9, 1.2 + 0.9 * len(bars))
    names = list(dict.fromkeys(key for _, times in bars for key in times))
    for row, name in enumerate(names):
        drawn = [(place + 0.27 * (row - 1), times) for place, (_, times) in enumerate(bars) if name in times]
        colour = (BLUE, VERMILION, ORANGE)[row % 3]
        axes.barh([y for y, _ in drawn], [times[name] for _, times in drawn], 0.25, color=colour, label=name)
        for y, times in drawn:
            text = f"{two_digits(times[name])} s" + (
                "" if name == OURS else f"  ({two_digits(times[name] / times[OURS])} x)"
            )
            axes.annotate(text, (times[name], y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    every = [s for _, times in bars for s in times.values()]
    axes.set_xlim(min(every) / 2, max(every) * 3)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel("seconds of an epoch")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def canvas(down: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain_ticks(axis: Axis, base: int = 10) -> None:
    """A logarithmic axis's: 20 and not 2 x 10^1, 64k and not 2^16."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    def text(value: float, _: int) -> str:
        if base == 10 or value < 1024:
            return f"{value:g}"
        return f"{value / 2**20:g}M" if value >= 2**20 else f"{value / 2**10:g}k"

    few = {"base": 10, "subs": (1, 2, 5)} if base == 10 else {"base": base, "numticks": 8}
    axis.set_major_locator(LogLocator(**few))
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_formatter(NullFormatter())


DRAWN: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "speed.png": ("cases", speed),
    "memory.png": ("cases", memory),
    "scaling.png": ("scaling", scaling),
    "end_to_end.png": ("end_to_end", end_to_end),
}


def save(figure: Figure, file: Path) -> None:
    """In 64 colours: a third of the size."""
    from PIL import Image

    figure.set_dpi(110)
    figure.canvas.draw()
    size = figure.canvas.get_width_height()
    picture = Image.frombytes("RGBA", size, bytes(figure.canvas.buffer_rgba())).convert("RGB")
    temporary = file.with_suffix(".tmp")
    picture.quantize(64).save(temporary, "PNG", optimize=True)
    os.replace(temporary, file)


def draw(content: dict[str, Any], folder: Path, only: Iterable[str] = DRAWN) -> list[Path]:
    """The files written."""
    written = []
    for name in only:
        section, make = DRAWN[name]
        figure = make(content)
        if figure is None:
            print(f"plot.py: without {name}: the results file has no {section!r} for it", file=sys.stderr)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        save(figure, folder / name)
        written.append(folder / name)
    return written


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, default=FIGURES, metavar="FOLDER", help="default: benchmarks/figures")
    parser.add_argument("--table", action="store_true", help="print the tables, and draw nothing")
    arguments = parser.parse_args()
    try:
        content = read(arguments.results)
    except (OSError, ValueError) as error:
        parser.error(f"RESULTS.json: {error}")
    if arguments.table:
        print("\n\n".join("\n".join(table(content)) for table in TABLES))
    else:
        print(*draw(content, arguments.out), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
