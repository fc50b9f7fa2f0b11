"""Makes every figure here from the CSV files, and puts the tables into README.md and assets/README.md, in seconds.

Figures are 8.5 inches wide at 200 dots an inch, so that at half size their letters are those of a page.
"""

import io
import math
import statistics
import textwrap
from itertools import groupby

import matplotlib
import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from PIL import Image

from assets import ASSETS, Command, study
from assets.records import read_table, run_key, run_sort_key, weights_key
from assets.tables import data_suffix, digits_of, make_tables, rate_head, steps_of, with_tables
from common import SIDES, collapsed, lost_solution, outlines, write

WIDTH = 8.5  # inches
STYLE = {
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 0.9,
    "hatch.linewidth": 0.7,
}
# Okabe and Ito's colours, which the colour-blind can tell apart
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#BBBBBB"
SCALE_COLORS = LinearSegmentedColormap.from_list("scale", (BLUE, "#F4F4F4", VERMILION))  # no dark end: black is apart
SCALE_COLORS = SCALE_COLORS.with_extremes(bad="black")
SCALES = (0.5, 0.6, 0.8, 1, 1.4, 2, 3, 5)  # ticks of a logarithmic axis
RATE_NORM = LogNorm(2e-5, 0.2)  # to viridis, but for its bright end
LABELS = {
    "test/accuracy": "test accuracy (%)",
    "test/loss": "test loss",
    "train/loss": "train loss",
    "stn/scale": "scale",
    "stn/inside": "inside",
    "stn/spread": "spread",
    "train/grad_norm": "gradient's norm",
}
RATE_LABEL = "learning rate of the localization net"
DATASETS = {"mnist": (BLUE, "o"), "cluttered": (VERMILION, "D"), "enlarged": ("#009E73", "s")}  # colour and marker


class MissingError(Exception):
    """What a figure shows is not there yet; its message says what."""


def read_study(assets):
    """What the figures are of: the runs on all images of the full digits, the measurements, and the published runs."""
    read = study.read_all(assets)
    read.runs = study.pick(read.runs, **study.FULL)
    read.published = read_table(assets / "published_runs.csv")
    read.states = np.load(assets / "states.npz") if (assets / "states.npz").exists() else None
    return read


def require(**read):
    """Raises MissingError if one of these is empty, or None."""
    for name, values in read.items():
        if not values:
            raise MissingError(f"no {name}")


def by_experiment(runs, dataset="cluttered"):
    """Returns {experiment: runs} on a data set, without the experiments whose runs have variants."""
    groups = study.group(study.pick(runs, dataset=dataset, variant=None))
    return {seeds[0]["experiment"]: seeds for seeds in groups}


def column(history, name):
    """The values of a figure over the rows of a history, NaN where it was not recorded."""
    return np.array([math.nan if row[name] is None else row[name] for row in history], dtype=float)


# --------------------------------------------------------------------------------------------------------------- states


def states(read):
    """Eight digits in each state of states.npz, a row a state: where the transformer looks, and what it returns."""
    file = read.states
    require(states=file)
    images, side = file["images"], file["images"].shape[-1]
    room, seen, gap = 2 * side, 0.9 * side, 0.1 * side  # sides of a tile and of what is returned
    cell = room + seen + 4 * gap
    figure = Figure(figsize=(WIDTH, 0.7 * len(file["names"])))
    figure.get_layout_engine().set(rect=(0.015, 0, 0.985, 1))  # else the longest label is cut
    for axes, name, thetas, returned in zip(
        figure.subplots(len(file["names"]), 1), file["names"], file["theta"], file["seen"], strict=True
    ):
        outline = outlines(torch.from_numpy(thetas), side, side).numpy()
        for i, image in enumerate(images):
            left, pad, grey = i * cell, (room - side) / 2, {"cmap": "gray", "vmin": 0}
            tile = Rectangle((left, 0), room, room, color="#333333", zorder=-1)
            axes.add_patch(tile)
            axes.imshow(image, extent=(left + pad, left + pad + side, pad + side, pad), vmax=images.max(), **grey)
            place = (left + room + gap, left + room + gap + seen, (room + seen) / 2, (room - seen) / 2)
            axes.imshow(returned[i], extent=place, vmax=255, **grey)
            region = Polygon(outline[i] + (left + pad, pad), fill=False, edgecolor="#ff8000", linewidth=1.2)
            axes.add_patch(region).set_clip_path(tile)
            if not region.get_path().intersects_bbox(tile.get_bbox()):
                axes.text(left + room / 2, room, "out of view", color="#ff8000", fontsize=6, ha="center", va="bottom")
        axes.set(xlim=(0, len(images) * cell - 3 * gap), ylim=(room, 0), xticks=[], yticks=[], anchor="E")
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
    off_the_image = [collapsed([row]) is not None for row in history]
    one_map = (column(history, "stn/spread") < study.ONE_MAP) & ~np.array(off_the_image)
    return np.ma.array(np.log2(column(history, "stn/scale")), mask=off_the_image), one_map, lost_solution(history)


def wrap(title, width):
    """Breaks a title into lines, at its commas alone."""
    return textwrap.wrap(title.replace(" ", "\xa0").replace(",\xa0", ", "), width, break_long_words=False)


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
    mark_unrecorded = " " if any(row["stn/spread"] is not None for row in run["history"]) else "*"
    axes.text(-0.5, y + 0.5, f"{run['seed']}{mark_unrecorded}", ha="right", **STRIP_TEXT)
    stopped = ", stopped" if study.was_stopped(run) else ""
    axes.text(len(colors) + 2, y + 0.5, f"{run['best_accuracy']:.1f}{stopped}", **STRIP_TEXT)


def draw_timeline_legend(axes, asterisk):
    handles = [
        Patch(color="black", label="off the image (inside < 0.05)"),
        Patch(facecolor="none", edgecolor="black", hatch="/////", linewidth=0, label="one map for all images"),
        Line2D([], [], color="black", marker="v", linewidth=0, markersize=7, label="loses its solution"),
    ]
    if asterisk:
        label = "one map or not was not recorded"
        handles.append(Line2D([], [], linewidth=0, marker="$*$", color="black", label=label))
    axes.legend(handles=handles, loc="center left")
    axes.set_axis_off()


def timeline(read):
    """A strip a run, a cell an epoch, of the experiments without variants; the figure is as tall as they are many."""
    require(runs=read.runs)
    places, titles, top = [], {}, 0.0
    for runs in sorted(study.group(study.pick(read.runs, variant=None)), key=lambda runs: runs[0]["dataset"]):
        lines = wrap(f"{runs[0]['experiment']}: {runs[0]['title']}{data_suffix(runs[0])}", 32)
        height = max(len(runs), 1.4 * len(lines))
        middle = top + height / 2
        places += [(run, middle - len(runs) / 2 + i) for i, run in enumerate(runs)]
        titles["\n".join(lines)] = middle
        top += height + 0.8
    figure = Figure(figsize=(WIDTH, 0.11 * top + 1.3))
    ratios = {"height_ratios": (1.2, top), "width_ratios": (3, 1, 3, 1)}
    panels = figure.subplot_mosaic([["bar", ".", "legend", "."], ["strips"] * 4], gridspec_kw=ratios)
    axes = panels["strips"]
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
    bar = figure.colorbar(colors, panels["bar"], orientation="horizontal", extend="both")
    shown = [scale for scale in SCALES if scale <= 2]
    bar.set_ticks(np.log2(shown), labels=[f"{scale:g}" for scale in shown])
    bar.ax.set_title("zooms in  \N{LEFTWARDS ARROW}  scale  \N{RIGHTWARDS ARROW}  shrinks the image")
    draw_timeline_legend(panels["legend"], any(run["history"][0]["stn/spread"] is None for run, _ in places))
    return figure


# -------------------------------------------------------------------------------- the localization net's learning rate


def last_rows_by_rate(read):
    """Returns {dataset: {rate: the last row of each seed}} of experiment 17."""
    curves = {
        dataset: {rate: [run["history"][-1] for run in runs] for rate, runs in runs_by_rate.items()}
        for dataset, runs_by_rate in study.by_rate(read.runs).items()
    }
    if all(len(rows_by_rate) < 2 for rows_by_rate in curves.values()):
        raise MissingError("no runs at several learning rates of the localization net")
    return curves


def draw_curve(axes, dataset, rows_by_rate, tag, factor):
    """Draws a figure of one data set over rate x factor; returns the smallest one that is off the image, or inf."""
    color, marker = DATASETS[dataset]
    style = {"markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.4}
    medians, first_off = [], math.inf
    for rate, rows in rows_by_rate.items():
        beside = np.linspace(-0.05, 0.05, len(rows))  # each other
        x = rate * factor * (1 + beside - beside.mean())
        off = np.array([tag == "stn/scale" and collapsed([row]) is not None for row in rows])
        values = np.where(off, math.inf, column(rows, tag))
        medians.append(statistics.median(values))
        axes.plot(x[~off], values[~off], marker, color=color, **style)
        if off.any():
            edge = {"transform": axes.get_xaxis_transform(), "clip_on": False, "color": "black"}
            axes.plot(x[off], np.full(off.sum(), 1 if dataset == "mnist" else 0.95), marker, **edge, **style)
            first_off = min(first_off, x[off].min())
    medians = [math.nan if value == math.inf else value for value in medians]
    axes.plot([rate * factor for rate in rows_by_rate], medians, color=color, zorder=1)
    side = SIDES[dataset]
    label = f"{digits_of(dataset)} digits, {side} x {side}"
    axes.plot([], [], color=color, marker=marker, markersize=4, label=label)
    return first_off


def draw_over_the_rate(axes, curves, tag, by_side=False):
    """Draws a figure of the last epoch over the rate, a point a seed and a line through the medians.

    Of scale, runs that are off the image are black points at the top edge; in the medians they are larger than any.
    `by_side` draws over rate x (side / 28)^2.
    """
    first_off = math.inf
    for dataset, rows_by_rate in curves.items():
        shift = 1 if len(curves) == 1 else 0.91 if dataset == "mnist" else 1.09
        factor = shift * ((SIDES[dataset] / 28) ** 2 if by_side else 1)
        first_off = min(first_off, draw_curve(axes, dataset, rows_by_rate, tag, factor))
    if first_off < math.inf:
        at_the_edge = {"ha": "right", "va": "center", "transform": axes.get_xaxis_transform()}
        axes.text(first_off / 1.2, 0.975, "off the image \N{RIGHTWARDS ARROW}", **at_the_edge)
    axes.set(xscale="log", xlabel=RATE_LABEL + (" x (side / 28)²" if by_side else ""), ylabel=LABELS[tag])
    axes.xaxis.set_major_formatter("{x:g}")
    if tag == "stn/scale":
        axes.axhline(1, color="grey", linewidth=0.6, zorder=0)
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_yticks(SCALES, map(str, SCALES))
        axes.yaxis.minorticks_off()
        axes.set_ylim(min(low, 0.8), max(high, 1.3) * 1.1)


def rates(read):
    """Scale after the last epoch over the localization net's learning rate, for the first screen."""
    curves = last_rows_by_rate(read)
    figure = Figure(figsize=(7, 3.3))
    axes = figure.subplots()
    draw_over_the_rate(axes, curves, "stn/scale")
    axes.set_ylabel("scale after the last epoch")
    ticks = sorted({rate for rows_by_rate in curves.values() for rate in rows_by_rate})
    axes.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axes.minorticks_off()
    axes.legend(loc="upper left")
    beside = {"transform": axes.get_yaxis_transform(), "color": "dimgrey"}
    axes.text(1.01, 1.02, "shrinks\nthe image", va="bottom", **beside)
    axes.text(1.01, 0.98, "zooms in", va="top", **beside)
    return figure


def rates_full(read):
    """All figures of the last epoch over the rate, and scale over the rate times the square of the images' side."""
    curves = last_rows_by_rate(read)
    figure = Figure(figsize=(WIDTH, 5.2))
    panels = figure.subplot_mosaic([["stn/scale", "stn/inside", "stn/spread"], ["test/accuracy", "by side", "by side"]])
    for tag in ("stn/scale", "stn/inside", "stn/spread", "test/accuracy"):
        draw_over_the_rate(panels[tag], curves, tag)
    panels["stn/spread"].set_yscale("log")
    draw_over_the_rate(panels["by side"], curves, "stn/scale", by_side=True)
    figure.legend(*panels["by side"].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


# ------------------------------------------------------------------------------------------------------------- failures


def choose_failures(replays, runs):
    """Chooses two replays, one a kind, as {kind: steps from 60 before the failing one to 60 after}.

    They are of runs that failed, on cluttered digits, and whole. 60 steps after the failing one a transformer is off
    the image if inside is under 0.02 and more than 0.02 of its hidden units are active, and has one map for all images
    if it is the other way round. Of each kind it is one that recorded spread, if there is one, and of those the one
    whose run had the best accuracy in the epochs before.

    Raises MissingError if there is none of a kind.
    """
    kinds = {"off the image": [], "one map for all images": []}
    for steps in replays:
        whole = steps[0]["dataset"] == "cluttered" and steps[0]["step"] <= -60
        after = next((step for step in steps if step["step"] == 60), None)
        if not whole or not after or study.run_of_replay(steps, runs)["failed"] is None:
            continue
        if after["inside"] < 0.02 < after["active"]:
            kinds["off the image"].append(steps)
        elif after["active"] < 0.02 < after["inside"]:
            kinds["one map for all images"].append(steps)
    for kind, of_kind in kinds.items():
        if not of_kind:
            raise MissingError(f"no failure in failures.csv that ends with: {kind}")
        best = max(of_kind, key=lambda steps: (steps[0]["spread"] is not None, study.best_before(steps, runs)))
        kinds[kind] = [step for step in best if -60 <= step["step"] <= 60]
    return kinds


def write_not_recorded(axes):
    axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="grey")


def failures(read):
    """Two failures, as `choose_failures` chooses them, a column each: what the transformer does, step by step."""
    chosen = choose_failures(read.replays, read.runs)
    labels = {"inside": "inside", "active": "active hidden\nunits (fraction)", "spread": "spread", "scale": "scale"}
    labels[study.GRADIENT] = "gradient of the\nlocalization net"
    labels = {name: labels[name] for name in labels if any(rows[0][name] is not None for rows in chosen.values())}
    figure = Figure(figsize=(WIDTH, 0.8 + 1.05 * len(labels)))
    panels = figure.subplots(len(labels), 2, sharex=True, sharey="row", squeeze=False)
    for column_of_panels, (kind, rows) in zip(panels.T, chosen.items(), strict=True):
        run, top = study.run_of_replay(rows, read.runs), column_of_panels[0]
        title = f"{run['experiment']}: {run['title']}\nseed {run['seed']}, epoch {rows[0]['epoch']}"
        top.set_title(f"{kind}\n\n", fontsize=10, fontweight="bold")
        top.text(0.5, 1.06, title, transform=top.transAxes, ha="center")
        steps = column(rows, "step")
        for axes, name in zip(column_of_panels, labels, strict=True):
            values = column(rows, name)
            axes.axvline(0, color=VERMILION, linewidth=1.2)
            axes.plot(steps, values, color=BLUE)
            if name == study.GRADIENT:
                axes.set_yscale("log")
                zero = steps[values == 0]
                edge = {"transform": axes.get_xaxis_transform(), "color": BLUE}
                axes.plot(zero, np.full(len(zero), 0.03), "s", markersize=2, **edge)
                if len(zero):
                    axes.text(1, 0.03, "0", va="center", color=BLUE, transform=axes.transAxes)
            elif np.isnan(values).all():
                write_not_recorded(axes)
        column_of_panels[-1].set_xlabel("step")
    for axes, (name, label) in zip(panels[:, 0], labels.items(), strict=True):
        axes.set_ylabel(label)
        if name != study.GRADIENT:
            axes.set_ylim(bottom=0)
    return figure


# ------------------------------------------------------------------------------------------------- curves over epochs


def draw_seeds(axes, runs, tag):
    """Draws a figure over the epochs, a thin line a seed, which changes its colour where it fails."""
    for run in runs:
        epochs, values = column(run["history"], "epoch"), column(run["history"], tag)
        healthy = run["failed"] - 1 if run["failed"] else len(epochs)
        axes.plot(epochs[:healthy], values[:healthy], color=BLUE)
        axes.plot(epochs[max(0, healthy - 1) :], values[max(0, healthy - 1) :], color=VERMILION)


def draw_behind(axes, runs, tag):
    """Draws the runs that others are compared with, in grey behind them."""
    for run in runs:
        axes.plot(column(run["history"], "epoch"), column(run["history"], tag), color=GREY, zorder=1)


def draw_legend(figure, *others):
    """Says above the panels what `draw_seeds` draws, and the lines `others`."""
    colors = {"a seed": BLUE, "a seed that has failed": VERMILION}
    lines = [Line2D([], [], color=color, label=label) for label, color in colors.items()]
    figure.legend(handles=[*lines, *others], loc="outside upper center", ncols=4)


PUBLISHED = {"test/accuracy": "test_accuracy_percent", "test/loss": "test_loss"}  # columns of published_runs.csv


def compare(read, first, second):
    """Test accuracy, test loss and train loss of two experiments, a row each, and the published runs."""
    experiments = by_experiment(read.runs)
    for experiment in (first, second):
        require(**{f"runs of experiment {experiment}": experiments.get(experiment)})
    figure = Figure(figsize=(WIDTH, 4.4))
    panels = figure.subplots(2, 3, sharex=True, sharey="col")
    for row, experiment, other in zip(panels, (first, second), (second, first), strict=True):
        published = study.pick(read.published, experiment=f"classification_experiment_{experiment}")
        for axes, tag in zip(row, ("test/accuracy", "test/loss", "train/loss"), strict=True):
            draw_behind(axes, experiments[other], tag)
            draw_seeds(axes, experiments[experiment], tag)
            if tag in PUBLISHED:
                theirs = column(published, "epoch"), column(published, PUBLISHED[tag])
                axes.plot(*theirs, "--", color="black", linewidth=1.1)
            axes.set_ylabel(LABELS[tag])
        title = f"{experiment}: {experiments[experiment][0]['title']}"
        row[0].set_title(title, loc="left", fontweight="bold")
    for axes in panels[1]:
        axes.set_xlabel("epoch")
    dashed = Line2D([], [], color="black", linestyle="--", label="the published run")
    draw_legend(figure, dashed, Line2D([], [], color=GREY, label="the other row's seeds"))
    return figure


def cures(read):
    """Accuracy, scale and gradient of the experiments on experiment 1's images, a row each, 1 behind."""
    experiments = by_experiment(read.runs)
    base = experiments.pop(1, [])
    rows = [runs for runs in experiments.values() if base and all(runs[0][n] == base[0][n] for n in ("mean", "std"))]
    require(**{"runs of experiment 1 and of others on the same images": rows})
    figure = Figure(figsize=(WIDTH, 0.9 * len(rows) + 0.8))
    tags = ("test/accuracy", "stn/scale", "train/grad_norm")
    panels = figure.subplots(len(rows), 3, sharex=True, sharey="col", squeeze=False)
    for axes in panels[0, 1:]:
        axes.set_yscale("log")
    for runs, row in zip(rows, panels, strict=True):
        for axes, tag in zip(row, tags, strict=True):
            draw_behind(axes, base, tag)
            draw_seeds(axes, runs, tag)
            if np.isnan(np.concatenate([column(run["history"], tag) for run in runs])).all():
                write_not_recorded(axes)
        title = "\n".join(wrap(f"{runs[0]['experiment']}: {runs[0]['title']}", 28))
        label = f"{title}\n{study.count_failed(runs)} of {len(runs)} failed"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    for axes, tag in zip(panels[0], tags, strict=True):
        axes.set_title(LABELS[tag], fontweight="bold")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    panels[0, 0].set(ylim=(0, 100), yticks=(0, 50, 100))
    panels[0, 1].set_ylim(0.45, 3)  # off the image it goes anywhere
    panels[0, 1].set_yticks((0.5, 1, 2), ("0.5", "1", "2"))
    for axes in panels[:, 1:].flat:
        axes.minorticks_off()
    draw_legend(figure, Line2D([], [], color=GREY, label=f"1: {base[0]['title']}"))
    return figure


# ------------------------------------------------------------------------------------------------------------------ why


def rate_color(rate):
    return matplotlib.colormaps["viridis"](RATE_NORM(rate))


def color_and_marker(i):
    """Colour and marker of the i-th experiment of a panel: no two of 88 have both."""
    colors = (VERMILION, "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#009E73", BLUE, "#8B4513")
    return colors[i % 8], "o^sDvPX*<>d"[i % 11]


def draw_experiments_legend(axes, loc, **options):
    """Names each experiment once, however many its lines, in the order of their numbers."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = sorted(handles, key=lambda label: int(label.split()[-1]))
    axes.legend([handles[label] for label in labels], labels, loc=loc, **options)


def with_runs(read):
    """Yields each row of sharpness.csv whose run is in the study, and the run."""
    runs = {run_key(run): run for run in read.runs}
    return ((row, runs[run_key(row)]) for row in read.sharpness if run_key(row) in runs)


def by_sgd(run):
    """Whether its limit is 2 / lr."""
    return run["optimizer"].startswith("SGD")


def rate_of_step(row, run):
    """The learning rate in a row of sharpness.csv, shortened as the epoch's median step is where a run clips."""
    if run["max_grad_norm"] is None or row["epoch"] == 0:
        return row["lr"]
    return row["lr"] * min(1, run["max_grad_norm"] / run["history"][row["epoch"] - 1]["train/grad_norm"])


def sharpness_over_scale(axes, read):
    """Draws curvature over scale, a point an epoch of a run that sees the image, and the limit of each rate of SGD.

    Filled are the points of the larger step of sharpness.csv, open those of smaller ones.
    """
    smaller, larger = steps_of(read.sharpness)
    kinds, limits = set(), set()
    for row, run in with_runs(read):
        if not study.sees_the_image(row) or not row["curvature"] > 0:
            continue
        kind = "o" if by_sgd(run) else "^", row["step"] < larger
        color = rate_color(rate_of_step(row, run))
        style = {"color": color, "markersize": 3.5, "markerfacecolor": "none" if row["step"] < larger else color}
        axes.plot(row["scale"], row["curvature"], kind[0], **style)
        kinds.add(kind)
        if by_sgd(run):
            limits.add(row["lr"])
    for rate in sorted(limits):
        axes.axhline(2 / rate, color=rate_color(rate), linestyle="--", linewidth=1)
        beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7}
        axes.text(1.02, 2 / rate, f"2 / {rate:g}", color=rate_color(rate), **beside)
    axes.set(xscale="log", yscale="log", xlabel="scale", ylabel="curvature of the loss")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 10)  # room for the legend
    axes.set_xticks(SCALES, map(str, SCALES))
    axes.minorticks_off()
    axes.set_title("colour: learning rate; dashed: SGD's limit, 2 / learning rate")
    over = f"weights moved by {smaller:g}, not {larger:g}"
    for kind, label in ((("o", False), "SGD"), (("^", False), "Adam"), (("o", True), over)):
        if kind in kinds:
            fill = "none" if kind[1] else "grey"
            axes.plot([], [], kind[0], color="grey", markersize=4, markerfacecolor=fill, label=label)
    axes.legend(loc="lower left", handlelength=1)


def sharpness_over_epochs(axes, read):
    """Draws rate x curvature, over the larger step, over the epochs of the runs of SGD, with the limit at 2.

    A line a run, a colour an experiment, open points without a line once it has failed; grey are the runs that were
    measured in one epoch. The rate is that of `rate_of_step`.
    """
    curves, larger = {}, steps_of(read.sharpness)[-1]
    for row, run in with_runs(read):
        if by_sgd(run) and row["step"] == larger and row["curvature"] > 0:
            healthy = run["failed"] is None or row["epoch"] < run["failed"]
            point = row["epoch"], rate_of_step(row, run) * row["curvature"]
            curves.setdefault(run_key(row), []).append((healthy, point))
    experiments = sorted({experiment for (experiment, *_), curve in curves.items() if len(curve) > 1})
    for (experiment, *_), curve in curves.items():
        if len(curve) == 1:
            healthy, point = curve[0]
            axes.plot(*point, ".", color=GREY, markerfacecolor=GREY if healthy else "none", zorder=1)
            continue
        color, marker = color_and_marker(experiments.index(experiment))
        style = {"marker": marker, "color": color, "markersize": 4, "label": str(experiment)}
        for healthy, line in ((False, {"linestyle": "", "markerfacecolor": "none"}), (True, {})):
            points = [point for state, point in curve if state == healthy]
            if points:
                axes.plot(*zip(*points, strict=True), **style | line)
    axes.axhline(2, color="black", linestyle="--", linewidth=1)
    axes.text(1, 2, "2", transform=axes.get_yaxis_transform(), va="center")
    last = max(row["epoch"] for row in read.sharpness)
    axes.set(yscale="log", xlim=(0, 1.05 * last), xlabel="epoch", ylabel="learning rate x curvature")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 5)  # room for the legend
    axes.set_title("the runs of SGD, by experiment")
    draw_experiments_legend(axes, "lower right", ncols=4, columnspacing=1, handlelength=1)


def left_over_the_rate(axes, handed_over, sharpness=None):
    """Draws what SGD leaves of solutions over its rate, a point a shuffle, a line through the medians of a solution.

    `handed_over` is what `study.solutions` yields, `sharpness` the rows of sharpness.csv: with it the solutions that
    it has, over rate x curvature, that over the larger step.
    """
    numbers = sorted({first["experiment"] for first, *_ in handed_over})
    for first, left, _ in handed_over:
        curvature = 1
        if sharpness is not None:
            found = study.curvatures(first, sharpness)
            if not found:
                continue
            curvature = found[max(found)]
        color, marker = color_and_marker(numbers.index(first["experiment"]))
        left = {rate * curvature: accuracies for (_, rate), accuracies in left.items() if rate}
        axes.plot([*left], [statistics.median(accuracies) for accuracies in left.values()], color=color)
        points = [(x, accuracy) for x, accuracies in left.items() for accuracy in accuracies]
        style = {"color": color, "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.4}
        axes.plot(*zip(*points, strict=True), marker, **style, label=f"of experiment {first['experiment']}")
    axes.set(xscale="log", ylim=(0, 100), ylabel=f"{LABELS['test/accuracy']}\nafter the last step")
    axes.xaxis.set_major_formatter("{x:g}")


def why(read):
    """Curvature over scale, and what SGD leaves of solutions over its rate x their curvature, for the page."""
    require(sharpness=read.sharpness, hand_over=read.handed_over)
    figure = Figure(figsize=(WIDTH, 3.4))
    left, right = figure.subplots(1, 2)
    sharpness_over_scale(left, read)
    left_over_the_rate(right, list(study.solutions(read.handed_over)), read.sharpness)
    right.axvline(2, color="black", linestyle="--", linewidth=1)
    right.text(2.2, 3, "2")
    right.set(xlabel="learning rate x curvature", title="solutions handed over to SGD at other rates")
    draw_experiments_legend(right, "lower left")
    return figure


def law(read):
    """Learning rate x curvature over the epochs of SGD's runs; what SGD leaves of solutions over its rate."""
    require(sharpness=read.sharpness, hand_over=read.handed_over)
    figure = Figure(figsize=(WIDTH, 3.2))
    left, right = figure.subplots(1, 2)
    sharpness_over_epochs(left, read)
    left_over_the_rate(right, list(study.solutions(read.handed_over)))
    right.set(xlabel=RATE_LABEL, title="solutions handed over to SGD")
    draw_experiments_legend(right, "lower left")
    return figure


FATES = ("failed", "zoomed out", "one map", "lasts")  # from the bottom to the top


def motion(read):
    """What became of each run over its motion, a point a run, a colour an optimizer, a marker an image size."""
    runs = [run for run in read.runs if study.median_then(run, "stn/motion") is not None]
    require(motion_of_runs=runs)
    colors = {"SGD": BLUE, "SGD, momentum": "#CC79A7", "Adam": VERMILION}
    figure = Figure(figsize=(WIDTH, 2.8))
    axes = figure.subplots()
    shift = np.random.default_rng(0).uniform(-0.28, 0.28, len(runs))  # so that runs at one place are seen
    for run, up in zip(sorted(runs, key=run_sort_key), shift, strict=True):
        optimizer = run["optimizer"].partition("(")[0] + ", momentum" * ("momentum" in run["optimizer"])
        style = {"color": colors[optimizer], "marker": DATASETS[run["dataset"]][1]}
        axes.plot(study.median_then(run, "stn/motion"), FATES.index(study.fate(run)) + up, alpha=0.7, **style)
    for pixels in (study.SMALL, study.LARGE):
        axes.axvline(pixels, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="motion of a step (pixels of the input)", ylim=(-0.5, len(FATES) - 0.5))
    axes.set_yticks(range(len(FATES)), FATES)
    handles = [Line2D([], [], color=color, linewidth=4, label=name) for name, color in colors.items()]
    for dataset, (_, marker) in DATASETS.items():
        label = f"{SIDES[dataset]} x {SIDES[dataset]}"
        handles.append(Line2D([], [], color="black", linestyle="", marker=marker, label=label))
    figure.legend(handles=handles, loc="outside upper center", ncols=6)
    return figure


def hand_over(read):
    """Each solution that was handed over to SGD, step by step, a line a shuffle, four solutions in a row."""
    require(hand_over=read.handed_over)
    titles = {run_key(run): run["title"] for run in read.runs}
    solutions = [list(rows) for _, rows in groupby(read.handed_over, key=weights_key)]
    rates = sorted({row["rate"] for row in read.handed_over})
    colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(rates)))
    styles = {rate: {"color": color, "linewidth": 0.8} for rate, color in zip(rates, colors, strict=True)}
    styles[0] = {"color": "black", "linewidth": 1, "linestyle": ":"}
    lines = math.ceil(len(solutions) / 4)
    figure = Figure(figsize=(WIDTH, 2.3 * lines + 0.5))
    panels = figure.subplots(lines, 4, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(solutions) :]:
        axes.set_axis_off()
    for axes, rows in zip(panels.flat, solutions, strict=False):
        first = rows[0]
        title = wrap(f"{first['experiment']}: {titles.get(run_key(first), '')}", 26)
        weights = f"seed {first['seed']}, epoch {first['epoch']}, scale {first['stn/scale']:.2f}"
        axes.set_title("\n".join([*title, weights]))
        for (rate, _), curve in groupby(rows, key=lambda row: (row["rate"], row["shuffle"])):
            curve = list(curve)
            axes.plot(column(curve, "step"), column(curve, "test/accuracy"), **styles[rate])
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks((0, 1, 10, 100, 400), ("0", "1", "10", "100", "400"))
        axes.set(xlim=(0, 400), ylim=(0, 100))
        axes.tick_params(labelbottom=True)
    for axes in panels[:, 0]:
        axes.set_ylabel(LABELS["test/accuracy"])
    figure.supxlabel("steps of SGD", fontsize=8)
    handles = [Line2D([], [], label=rate_head(rate), **styles[rate] | {"linewidth": 2}) for rate in rates]
    figure.legend(handles=handles, loc="outside upper center", ncols=5, title=RATE_LABEL)
    return figure


def smoothing(read):
    """The loss along a shift of the region, and its gradient against its change, of smoothing.csv's first solution."""
    require(smoothing=read.shifted)
    rows = [row for row in read.shifted if weights_key(row) == weights_key(read.shifted[0])]
    drawn = sorted({row["image"] for row in rows if row["shift"] != 0})
    figure = Figure(figsize=(WIDTH, 3.6))
    places = [*drawn, *"...."][:4]  # as many images as there are
    panels = figure.subplot_mosaic([[*places[:2], "all", "all"], [*places[2:], "all", "all"]])
    panels["all"].axline((0, 0), slope=1, color="grey", linewidth=0.6)
    for smoothed, color, marker, label in ((0, VERMILION, "o", "as they are"), (1, BLUE, "^", "smoothed")):
        for image in drawn:
            curve = study.pick(rows, smoothed=smoothed, image=image)
            panels[image].plot(column(curve, "shift"), column(curve, "loss"), color=color)
        unshifted = study.pick(rows, smoothed=smoothed, shift=0)
        points = column(unshifted, "difference"), column(unshifted, "gradient")
        panels["all"].plot(*points, marker, color=color, markersize=3, markeredgewidth=0, alpha=0.7, label=label)
    for image in drawn:
        panels[image].set(xlabel="shift (pixels)", ylabel="loss", title=f"test image {image}")
        panels[image].set_xticks((-3, 0, 3))
    panels["all"].set(xlabel="change of the loss over a pixel", ylabel="gradient (loss a pixel)")
    panels["all"].set_title(f"{len(unshifted)} test images at no shift")
    figure.legend(*panels["all"].get_legend_handles_labels(), loc="outside upper center", ncols=2, title="images")
    return figure


FIGURES = {
    "states.png": states,
    "timeline.png": timeline,
    "rates.png": rates,
    "rates_full.png": rates_full,
    "failures.png": failures,
    "classification_experiment_2_vs_1.png": lambda read: compare(read, 1, 2),
    "classification_experiment_3_vs_2.png": lambda read: compare(read, 2, 3),
    "cures.png": cures,
    "motion.png": motion,
    "why.png": why,
    "law.png": law,
    "hand_over.png": hand_over,
    "smoothing.png": smoothing,
}


def make_figures(assets):
    """Writes the figures into the folder that holds the CSV files; says which are left out, and what they lack."""
    read = read_study(assets)
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            try:
                figure = draw(read)
            except MissingError as missing:
                print(f"left out: {name}, {missing}")
                continue
            drawn, file = io.BytesIO(), io.BytesIO()
            figure.savefig(drawn)
            Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
                file, "PNG", optimize=True
            )
            write(assets / name, file.getvalue())


def put_tables(assets):
    """Puts the tables between their markers in the two READMEs."""
    tables = make_tables(assets)
    for page in (assets.parent / "README.md", assets / "README.md"):
        if page.exists():
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
