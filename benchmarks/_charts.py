"""The charts: bars for what is compared, lines for what grows. SVG, the same bytes for the same figures.

They stand on pages that are light or dark: the background is left out, and the greys are between the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from benchmarks._harness import Case, Result, Samples, at, cases_of, rounded
from benchmarks.rivals import EXECUTOR, IN_PYTHON, OURS, STDLIB

GREY = "#808890"
COLOURS = {OURS: "#2f81f7", IN_PYTHON: "#7fb2fa", STDLIB: "#e08a2c", EXECUTOR: "#a371c7"}
# A bar has its name beside it; a line can be told from others by its colour alone.
LINES = COLOURS | {
    "loky": "#d4619a",
    "mpire": "#3fa45b",
    "pebble": "#b8a12e",
    "billiard": "#d6524a",
    "joblib": "#3aa6a6",
    "ray": "#8c6d5a",
}
STYLE = {
    "svg.hashsalt": "pairpool",  # otherwise names within the file are random
    "svg.fonttype": "none",  # text as text: a tenth of the bytes
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
}
DECADE = 10.0
COLUMNS = 2
FEW = 4  # lines, whose names find room among them


def draw(directory: Path, modules: Iterable[ModuleType], results: Sequence[Result]) -> None:
    """Draw a file of bars for the cases of each module, and one of lines for each case with an axis."""
    directory.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for module in modules:
            cases = cases_of(module)
            compared = [(case, each) for case in cases if not case.axis for each in results if each.title == case.title]
            if compared:
                _save(_bars(compared), directory, module.__name__.rpartition(".")[2])
            for case in cases:
                points = [each for each in results if each.title == case.title]
                if case.axis and points:
                    _save(_lines(case, points), directory, case.title)


def _save(figure: Figure, directory: Path, title: str) -> None:
    name = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    while "--" in name:
        name = name.replace("--", "-")
    figure.savefig(directory / f"{name}.svg", metadata={"Date": None, "Creator": None}, transparent=True)


def _bars(compared: Sequence[tuple[Case, Result]]) -> Figure:
    """Return a panel for each case, in each a bar for each rival that was measured."""
    rows = -(-len(compared) // COLUMNS)
    height = max(sum(bool(samples.values) for samples in result.rivals.values()) for _, result in compared)
    figure = Figure(figsize=(10, rows * (0.7 + 0.2 * height)), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for panel, (case, result) in zip(panels, compared, strict=False):
        _bar_panel(panel, case, {name: samples for name, samples in result.rivals.items() if samples.values})
    for panel in list(figure.axes)[len(compared) :]:
        panel.remove()
    return figure


def _bar_panel(panel: Any, case: Case, measured: dict[str, Samples]) -> None:
    names = list(measured)
    medians = [samples.median for samples in measured.values()]
    panel.set_title(f"{case.title}\n{_direction(case)}", fontsize=9, loc="left")
    # On a logarithmic axis zero has no place: its bar has no length there.
    positive = [median for median in medians if median > 0]
    logarithmic = bool(positive) and max(positive) / min(positive) > DECADE
    if logarithmic:
        panel.set_xscale("log")
        panel.set_xlim(min(positive) / 3, max(positive) * 6)
    else:
        panel.set_xlim(0, max(medians, default=1) * 1.25 or 1)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    panel.barh(names, medians, color=[COLOURS.get(name, GREY) for name in names], height=0.7)
    for row, (median, samples) in enumerate(zip(medians, measured.values(), strict=True)):
        least, greatest = min(samples.values), max(samples.values)
        panel.plot([least, greatest], [row, row], color=GREY, linewidth=1)
        start = panel.get_xlim()[0] if logarithmic else 0
        panel.annotate(
            rounded(median),
            (max(greatest, start), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.invert_yaxis()
    panel.tick_params(axis="y", length=0)
    panel.xaxis.set_minor_formatter(NullFormatter())


def _lines(case: Case, results: Sequence[Result]) -> Figure:
    """Return a line for each rival along the axis, with its spread."""
    many = sum(any(each.samples(name).values for each in results) for name in case.rivals) > FEW
    figure = Figure(figsize=(9, 4.5) if many else (7, 3.6), layout="constrained")
    panel = figure.subplots()
    panel.set_title(f"{case.title}\n{_direction(case)}", fontsize=9, loc="left")
    for name in case.rivals:
        points = [(each.point, each.samples(name)) for each in results if each.samples(name).values]
        if points:
            measured_at = [place for place, _ in points]
            colour = LINES.get(name, GREY)
            panel.plot(
                measured_at, [samples.median for _, samples in points], "o-", color=colour, label=name, markersize=4
            )
            least = [min(samples.values) for _, samples in points]
            greatest = [max(samples.values) for _, samples in points]
            panel.fill_between(measured_at, least, greatest, color=colour, alpha=0.2, linewidth=0)
    panel.set_xscale("log")
    panel.set_yscale("log")
    places = [each.point for each in results]
    panel.set_xticks(places, [at(place) for place in places])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel(case.axis)
    if many:
        figure.legend(loc="outside right upper")
    else:
        panel.legend()
    return figure


def _direction(case: Case) -> str:
    return f"{case.unit}, {'more' if case.more_is_better else 'less'} is better"
