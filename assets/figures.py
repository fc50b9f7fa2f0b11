"""Makes every figure here from the CSV files, and puts the tables into the pages, in seconds.

Figures are 6 inches wide, or half of it, at 200 dots an inch, so that their letters can be read on a telephone.
"""

import io
import math
import textwrap

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image, ImageColor

from assets import ASSETS, Command, study
from assets.tables import late_medians, make_tables, of_choices, with_tables
from common import COLLAPSED, ORANGE, TILE, draw_tile, lost_solution, write

WIDTH = 6  # inches
STYLE = {
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 0.9,
    "hatch.linewidth": 0.7,
}
# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, VERMILION = "#0072B2", "#D55E00"
SCALE_COLORS = LinearSegmentedColormap.from_list("scale", (BLUE, "#F4F4F4", VERMILION))  # no dark end: black is apart
SCALE_COLORS = SCALE_COLORS.with_extremes(bad="black")
SCALES = (0.5, 0.6, 0.8, 1, 1.4, 2)  # ticks of a logarithmic axis


def column(history, name):
    """The values of a figure over the rows of a history, NaN where it was not recorded."""
    return np.array([math.nan if row.get(name) is None else row[name] for row in history], dtype=float)


# --------------------------------------------------------------------------------------------------------------- states


def states(read):
    """Five digits in each state of states.npz, a row a state: where the transformer looks, and what it returns."""
    file = np.load(read.assets / "states.npz")
    images, gap, returned_side = file["images"][:5], 0.05, 0.45  # in sides of a tile
    cell = 1 + returned_side + 3 * gap
    figure = Figure(figsize=(WIDTH, 0.72 * len(file["names"])))
    figure.get_layout_engine().set(rect=(0.07, 0, 0.93, 1))  # else the longest label is cut
    for axes, name, thetas, returned in zip(
        figure.subplots(len(file["names"]), 1), file["names"], file["theta"], file["seen"], strict=True
    ):
        for i, image in enumerate(images):
            left, right = i * cell, i * cell + 1 + gap
            tile = draw_tile(image, torch.from_numpy(thetas[i]), side=2 * TILE)
            axes.imshow(tile, extent=(left, left + 1, 1, 0))
            place = (right, right + returned_side, (1 + returned_side) / 2, (1 - returned_side) / 2)
            axes.imshow(returned[i], "gray", vmin=0, vmax=255, extent=place)
            if not (np.asarray(tile) == ImageColor.getrgb(ORANGE)).all(-1).any():
                axes.text(left + 0.5, 1, "out of view", color=ORANGE, fontsize=7, ha="center", va="bottom")
        axes.set(xlim=(0, len(images) * cell - 2 * gap), ylim=(1, 0), xticks=[], yticks=[], anchor="E")
        lines = [line for part in str(name).replace(": ", ":\n").split("\n") for line in textwrap.wrap(part, 11)]
        axes.set_ylabel("\n".join(lines), rotation=0, ha="right", va="center")
        axes.spines[:].set_visible(False)
    return figure


# ------------------------------------------------------------------------------------------------------------- timeline


STRIP_TEXT = {"va": "center", "fontsize": 6.5}


def timeline_strip(history):
    """What the timeline shows of a run, epoch by epoch.

    Returns log2 of scale, masked where the transformer looks off the image (inside under 0.05), whether it has one map
    for all images (spread under 0.01; where that is not recorded: no), and the epoch that loses the solution, or None.
    """
    off = column(history, "stn/inside") < COLLAPSED
    one_map = (column(history, "stn/spread") < study.ONE_MAP) & ~off
    return np.ma.array(np.log2(column(history, "stn/scale")), mask=off), one_map, lost_solution(history)


def draw_strip(axes, run, y):
    """Draws the strip of a run, its upper edge at y, with its seed before it and its best accuracy behind."""
    colors, one_map, lost = timeline_strip(run["history"])
    edges = (0.5, len(colors) + 0.5, y + 0.92, y + 0.08)
    norm = Normalize(-1, 1)
    axes.imshow(colors[None], SCALE_COLORS, norm, aspect="auto", interpolation="nearest", extent=edges)
    spans = [(i + 0.5, 1) for i in np.flatnonzero(one_map)]
    axes.broken_barh(spans, (y + 0.08, 0.84), facecolor="none", edgecolor="black", hatch="/////", linewidth=0)
    if lost:
        axes.plot(lost, y + 0.5, "v", color="black", markersize=6, markeredgecolor="white", markeredgewidth=0.9)
    is_recorded = any(row.get("stn/spread") is not None for row in run["history"])
    axes.text(-0.5, y + 0.5, f"{run['seed']} " if is_recorded else f"{run['seed']}*", ha="right", **STRIP_TEXT)
    stopped = ", stopped" if study.was_stopped(run) else ""
    axes.text(len(colors) + 2, y + 0.5, f"{run['best_accuracy']:.1f}{stopped}", **STRIP_TEXT)


def timeline(read):
    """A strip a run, a cell an epoch, of the experiments in the table of choices, in its order."""
    places, titles, top = [], {}, 0.0
    for runs in of_choices(read.counted):
        title = f"{runs[0]['experiment']}: {runs[0]['title'].removeprefix('normalized, ')}"
        title = title.replace(" ", "\xa0").replace(",\xa0", ", ")  # it is broken at its commas alone
        lines = textwrap.wrap(title, 24, break_long_words=False)
        height = max(len(runs), 1.5 * len(lines))
        middle = top + height / 2
        places += [(run, middle - len(runs) / 2 + i) for i, run in enumerate(runs)]
        titles["\n".join(lines)] = middle
        top += height + 0.8
    figure = Figure(figsize=(WIDTH, 0.11 * top + 1.3))
    axes = figure.subplots()
    for run, y in places:
        draw_strip(axes, run, y)
    last = max(len(run["history"]) for run, _ in places)
    axes.text(-0.5, -0.6, "seed ", ha="right", **STRIP_TEXT)
    axes.text(last + 9, -0.6, "at a strip's end: its best accuracy, %", ha="right", **STRIP_TEXT)
    axes.set(xlim=(0.5, last + 9), ylim=(top - 0.5, -1), xlabel="epoch")
    axes.set_xticks([1, *range(25, last + 1, 25)])
    axes.set_yticks([*titles.values()], [*titles])
    axes.tick_params("y", length=0, pad=16)
    axes.spines["left"].set_visible(False)

    colors = ScalarMappable(Normalize(-1, 1), SCALE_COLORS)
    bar = figure.colorbar(colors, ax=axes, location="top", extend="both", aspect=40)
    bar.set_ticks(np.log2(SCALES), labels=[f"{scale:g}" for scale in SCALES])
    bar.ax.set_title("zooms in  \N{LEFTWARDS ARROW}  scale  \N{RIGHTWARDS ARROW}  shrinks the image")
    handles = [
        Patch(color="black", label="off the image"),
        Patch(facecolor="none", edgecolor="black", hatch="/////", linewidth=0, label="one map for all images"),
        Line2D([], [], color="black", marker="v", linewidth=0, markersize=7, label="loses its solution"),
        Line2D([], [], color="black", marker="$*$", linewidth=0, label="one map was not recorded"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


# ------------------------------------------------------------------------------------------------------------- failures


GRADIENT = "gradient of the localization net"
FAILURES = {  # experiment, seed and epoch: of the replays that recorded spread, of the run that had been the best
    "off the image": (1, 4, 26),
    "one map for all images": (13, 1, 35),
}


def failures(read):
    """Two failures, a panel each: what the transformer does, from 60 steps before the failing one to 60 after.

    Bars at the bottom are steps without any gradient of the localization net's convolutions.
    """
    labels = {
        "inside": ("inside", BLUE),
        "active": ("active hidden units, fraction", VERMILION),
        "spread": ("spread", "#009E73"),
    }
    figure = Figure(figsize=(WIDTH, 3))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (kind, (experiment, seed, epoch)) in zip(panels, FAILURES.items(), strict=True):
        key = study.STANDARD | {"experiment": experiment, "seed": seed, "epoch": epoch}
        rows = [row for row in study.pick(read.replays, **key) if -60 <= row["step"] <= 60]
        steps = column(rows, "step")
        lines = [axes.plot(steps, column(rows, name), color=labels[name][1], linewidth=1.3)[0] for name in labels]
        still = steps[column(rows, GRADIENT) == 0]
        axes.plot(still, np.zeros(len(still)), "|", color="black", markersize=7, clip_on=False)
        axes.axvline(0, color="grey", linestyle=":", linewidth=1.2)
        axes.set_title(f"{kind}\nexperiment {experiment}, seed {seed}, epoch {epoch}")
        axes.set(xlim=(-60, 60), ylim=(0, 1), xlabel="step")
    figure.legend(lines, [label for label, _ in labels.values()], loc="outside upper center", ncols=3)
    return figure


# ---------------------------------------------------------------------------------------------------------------- drift

OPTIMIZERS = {"SGD": BLUE, "SGD, momentum": "#CC79A7", "Adam": VERMILION}


FATES = ("lasts", "one map", "zoomed out", "failed")
PALE = 0.35  # opacity of runs that `DriftLR` steers
SIZES = {28: "s", 60: "o", 120: "^"}  # marker by the images' side
TARGETS = (0.01, 0.02, 0.035, 0.07, 0.15)  # those of experiment 37 that a tick is at


def draw_fates(axes, runs, figure):
    """A point a run: what became of it over one of its figures; hollow if seen under 100 epochs, pale if steered."""
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(runs))
    for run, shift in zip(runs, jitter, strict=True):
        if figure(run) is None:
            continue
        color, place = OPTIMIZERS.get(study.optimizer_kind(run), "grey"), FATES.index(study.fate(run))
        filled = place > 0 or run["epochs"] >= study.HORIZON
        marker = SIZES.get(study.side_of(run["dataset"]), "D")
        face = color if filled else "none"
        style = {"color": color, "markerfacecolor": face, "markersize": 4, "markeredgewidth": 0.7}
        axes.plot(figure(run), place + shift, marker, alpha=PALE if run["drift"] else 1, **style)
    axes.set(xscale="log", ylim=(-0.6, len(FATES) - 0.4))
    axes.set_yticks(range(len(FATES)), FATES)


def drift(read):
    """What became of each run over its drift, with the two numbers that were foretold; and over its step."""
    runs = study.with_drift(read.runs)
    figure = Figure(figsize=(WIDTH, 3))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    draw_fates(left, runs, study.drift_of)
    for number in (study.LOW, study.HIGH):
        left.axvline(number, color="grey", linestyle=":", linewidth=1.2, zorder=0)
    draw_fates(right, runs, study.step_of)
    left.set(xlabel="drift: movement in 64 steps, of the region's side")
    right.set(xlabel="a step, pixels")
    for ticks, axes in (((0.02, 0.05, 0.1, 0.2, 0.5), left), ((0.1, 1, 10), right)):
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    handles = [Line2D([], [], color=color, marker="o", linewidth=0, label=kind) for kind, color in OPTIMIZERS.items()]
    for side, marker in SIZES.items():
        handles.append(Line2D([], [], color="grey", marker=marker, linewidth=0, label=f"{side} x {side}"))
    hollow = {"color": "grey", "markerfacecolor": "none", "marker": "o", "linewidth": 0}
    handles.append(Line2D([], [], **hollow, label=f"under {study.HORIZON} epochs"))
    handles.append(Line2D([], [], color="grey", alpha=PALE, marker="o", linewidth=0, label="steered by DriftLR"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def drift_dose(read):
    """Accuracy over epochs 11 to 20 by the drift that was aimed for, experiment 37: each run, and medians as a line."""
    figure = Figure(figsize=(WIDTH / 2, 3))
    axes = figure.subplots()
    lowest = 88  # what fails is drawn there
    of_37 = study.pick(read.counted, **study.STANDARD, experiment=37)
    for kind in ("Adam", "SGD, momentum"):
        runs = [run for run in of_37 if study.optimizer_kind(run) == kind]
        doses = sorted(study.group(runs), key=lambda seeds: seeds[0]["drift"])
        targets = [seeds[0]["drift"] for seeds in doses]
        accuracies = [late_medians(seeds, "test/accuracy") for seeds in doses]
        medians = np.maximum([np.median(each) for each in accuracies], lowest)
        axes.plot(targets, medians, color=OPTIMIZERS[kind], label=kind)
        for target, each in zip(targets, accuracies, strict=True):
            axes.plot([target] * len(each), np.maximum(each, lowest), "o", color=OPTIMIZERS[kind], markersize=4)
    axes.set(xscale="log", xlabel="drift that is aimed for", ylabel="accuracy, %")
    axes.set_xticks(TARGETS, map(str, TARGETS))
    axes.minorticks_off()
    axes.set_yticks(range(lowest, 96), ["fails", *range(lowest + 1, 96)])
    axes.legend(loc="lower left")
    return figure


FIGURES = {
    "states.png": states,
    "drift.png": drift,
    "drift_dose.png": drift_dose,
    "failures.png": failures,
    "timeline.png": timeline,
}


def make_figures(assets):
    """Writes the figures into the folder that holds the CSV files."""
    read = study.read_all(assets)
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            drawn, file = io.BytesIO(), io.BytesIO()
            draw(read).savefig(drawn)
            image = Image.open(drawn).convert("RGB")
            image.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
            write(assets / name, file.getvalue())


def put_tables(assets):
    """Puts the tables between their markers in the pages: README.md, and those in the folder."""
    tables = make_tables(assets)
    for page in (*assets.parent.glob("README.md"), *sorted(assets.glob("*.md"))):
        write(page, with_tables(page.read_text(encoding="utf-8"), tables).encode())


def make_page(assets=ASSETS):
    make_figures(assets)
    put_tables(assets)


def main():
    command = Command(prog="python -m assets.figures", description=__doc__)
    command.set_defaults(function=make_page)
    command.run()


if __name__ == "__main__":
    main()
