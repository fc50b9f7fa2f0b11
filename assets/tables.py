"""The tables that stand between markers in the two README.md, computed from the CSV files here, for make_figures.py."""

import math
import re
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median

import numpy as np
from scipy import stats

ASSETS = Path(__file__).parent
sys.path[:0] = [str(ASSETS.parent), str(ASSETS)]
import study  # noqa: E402
from collect import key_of, read_runs, read_table, solution_of  # noqa: E402

from common import CANVAS, RunError, collapsed, failed, lost_solution  # noqa: E402

DEFINITIONS = {  # of a failure: the one that is used, and the others that a claim has to hold under
    "inside 0.05, loss 1.5": {},
    "inside 0.01, loss 1.5": {"bound": 0.01},
    "inside 0.05, loss 2": {"factor": 2},
}

# ---------------------------------------------------------------------------------------------------------------- cells


def markdown(columns, rows):
    """Returns a Markdown table; None is a dash."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join("-" if c is None else str(c) for c in line) + " |\n" for line in lines)


def middle(values, digits=2):
    """The median of what was recorded, or None."""
    values = [value for value in values if value is not None]
    return f"{median(values):.{digits}f}" if values else None


def middle_and_range(values, digits=2):
    """The median and the range of what was recorded, or None."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return middle(values, digits)
    return f"{middle(values, digits)} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def in_turn(values):
    return ", ".join("-" if value is None else str(value) for value in values)


def spells(history):
    """When a run is collapsed: "31" from there to its end, "4 to 26 and 28" where it came back."""
    ends = []
    for epoch in study.collapsed_epochs(history):
        if ends and ends[-1][1] == epoch - 1:
            ends[-1][1] = epoch
        else:
            ends.append([epoch, epoch])
    return " and ".join(str(first) + f" to {last}" * (last < len(history)) for first, last in ends)


def where(run):
    """What is not the default in a run's data."""
    parts = ["plain digits"] * (run["dataset"] == "mnist") + ["embedded digits"] * (run["digits"] == "embedded")
    return "".join(f", {part}" for part in parts + [f"{run['limit']} images"] * (run["limit"] != 60000))


def label(run):
    return f"{run['experiment']}: {run['title']}{where(run)}"


def name(run):
    """A run without its title, such as "17 at 0.05, plain digits, seed 3"."""
    variant = "" if run["variant"] is None else f" at {run['variant']}"
    return f"{run['experiment']}{variant}{where(run)}, seed {run['seed']}"


def rates_of(optimizer):
    """Class and learning rates of an optimizer, such as "SGD 0.001, 0.01"."""
    rates = dict.fromkeys(f"{float(rate):.3g}" for rate in re.findall(r"\blr=([^\s,;)]+)", optimizer))
    return f"{optimizer.partition('(')[0]} {', '.join(rates)}"


def k_of_n(runs, **definition):
    return f"{study.count_failed(runs, **definition)} of {len(runs)}"


def k_of_n_and_interval(runs):
    low, high = study.interval(study.count_failed(runs), len(runs))
    return f"{k_of_n(runs)} ({100 * low:.0f} to {100 * high:.0f} %)"


def failure(run):
    """When a run failed: "31 cl" collapsed and lost its solution, one letter for one of them; † if stopped early."""
    history, epoch = run["history"], failed(run["history"])
    if epoch is None:
        cell = "-"
    else:
        cell = f"{epoch} " + "c" * (collapsed(history) == epoch) + "l" * (lost_solution(history) == epoch)
    return cell + "†" * study.stopped(run)


def best_accuracies(runs):
    return [study.best(run["history"])["test/accuracy"] for run in runs]


def at_best(runs, tag):
    return [study.best(run["history"])[tag] for run in runs]


def at_end(runs, tag):
    return [run["history"][-1][tag] for run in runs if not study.stopped(run)]


def healthy_scale(run):
    """The median scale of a run's epochs with over 80 % test accuracy, or None."""
    scales = [row["stn/scale"] for row in run["history"] if row["test/accuracy"] > 80]
    return median(scales) if scales else None


def over_last_10(runs):
    """The median test accuracy of each run's last 10 epochs; runs that were stopped early are left out."""
    return [median(row["test/accuracy"] for row in run["history"][-10:]) for run in runs if not study.stopped(run)]


# ---------------------------------------------------------------------------------------------- tables of what happened


def results(runs):
    """Every experiment in a row; those of variants have tables of their own."""
    columns = ["experiment", "mean", "std", "fill", "optimizer", "epochs", "runs failed"]
    rows = []
    for seeds in study.group(run for run in runs if run["variant"] is None):
        mean, std, fill = (seeds[0][setting] for setting in ("mean", "std", "fill"))
        black = fill != 0 and math.isclose(fill, -mean / std)
        cells = [label(seeds[0]), mean, std, "black" if black else f"{fill:.4g}", rates_of(seeds[0]["optimizer"])]
        cells += [
            in_turn(dict.fromkeys(run["epochs"] for run in seeds)),
            k_of_n(seeds),
            middle_and_range(best_accuracies(seeds), 1),
        ]
        rows.append([*cells, middle(at_best(seeds, "stn/scale"))])
    return markdown([*columns, "best accuracy, %", "scale at the best epoch"], rows)


def all_results(runs):
    columns = ["experiment", "runs failed, exact 95 % interval", "failed in epoch, each seed"]
    columns += ["best accuracy, %", "over the last 10 epochs, %"]
    columns += ["scale in epochs over 80 %", "scale at the best epoch", "at the end"]
    columns += ["spread at the best epoch", "at the end", "epochs to 80 %", "to 90 %"]
    rows = []
    for seeds in study.group(runs):
        cells = [label(seeds[0]), k_of_n_and_interval(seeds), in_turn(map(failure, seeds))]
        cells += [middle_and_range(best_accuracies(seeds)), middle_and_range(over_last_10(seeds))]
        cells.append(middle_and_range(map(healthy_scale, seeds)))
        for tag in ("stn/scale", "stn/spread"):
            cells += [middle_and_range(at_best(seeds, tag)), middle_and_range(at_end(seeds, tag))]
        cells += [in_turn(study.reaches(run["history"], accuracy) for run in seeds) for accuracy in (80, 90)]
        rows.append(cells)
    return markdown(columns, rows)


def ends_with_one_map(run):
    """Whether a run did not fail, as failing is defined, but ends with one map for all images."""
    spread = run["history"][-1]["stn/spread"]
    return failed(run["history"]) is None and spread is not None and spread < study.ONE_MAP


def lasted(runs):
    """The runs, of 40 epochs or more, that did not fail."""
    return [r for r in runs if failed(r["history"]) is None and not study.stopped(r) and len(r["history"]) >= 40]


def early_and_late(run):
    """The median scale of epochs 21 to 30, and that of the last 10."""
    scales = [row["stn/scale"] for row in run["history"]]
    return median(scales[20:30]), median(scales[-10:])


def drift(runs):
    """Whether the transformers of the runs that lasted zoom in or out after the first 30 epochs."""
    rows = []
    for seeds in study.group(lasted(runs)):
        early, late = zip(*map(early_and_late, seeds), strict=True)
        changes = [end - start for start, end in zip(early, late, strict=True)]
        rows.append([label(seeds[0]), len(seeds), *(middle_and_range(some) for some in (early, late, changes))])
    columns = ["experiment", "runs that lasted", "scale in epochs 21 to 30", "over the last 10 epochs", "change"]
    return markdown(columns, rows)


DRIFT_SEEN = {2: 5, 3: 4, 6: 4, 7: 4, 8: 2, 10: 3, 11: 2, 15: 3, 16: 1}  # seeds that there were when it was found


def drift_test(runs):
    """Does scale change otherwise in runs with the localization net at 0.01 than in those with smaller steps?

    The runs of `drift` on cluttered digits, but for those that end with one map for all images; p by Mann and Whitney's
    exact test, two-sided. Experiments 12 and 14, at 0.01 for a part of the weights or of the steps, are in no group.
    """
    some = [run for run in lasted(study.standard(runs)) if run["experiment"] not in (12, 14)]
    some = [run for run in some if not ends_with_one_map(run)]
    rows = []
    for old in (True, False):
        changes = {True: [], False: []}
        for run in some:
            if (run["seed"] < DRIFT_SEEN.get(run["experiment"], 0)) == old:
                early, late = early_and_late(run)
                full_steps = run["optimizer"] == study.PLAIN_SGD and run["max_grad_norm"] is None
                changes[full_steps].append(late - early)
        cells = ["old, exploratory" if old else "new"]
        for some_changes in changes.values():
            cells += [len(some_changes), middle_and_range(some_changes)]
        tested = all(changes.values()) and not old  # the old ones suggested it
        rows.append([*cells, f"{stats.mannwhitneyu(*changes.values(), method='exact').pvalue:.2g}" if tested else None])
    columns = ["seeds", "runs at 0.01", "change in scale", "runs with smaller steps", "change in scale", "p"]
    return markdown(columns, rows)


def afterwards(runs):
    """What became of the runs that collapsed and were trained to their last epoch."""
    columns = ["run", "collapsed in epoch", "inside meanwhile", "the same from epoch"]
    columns += ["best accuracy before, %", "after, %", "over the last 10 epochs, %"]
    rows = []
    for run in runs:
        history, spell = run["history"], study.collapsed_epochs(run["history"])
        if not spell or study.stopped(run):
            continue
        inside = [history[epoch - 1]["stn/inside"] for epoch in spell]
        bounds = dict.fromkeys(f"{bound:.1g}" for bound in (min(inside), max(inside)))
        before = history[: spell[0] - 1]
        after = [row for row in history[spell[0] :] if row["epoch"] not in spell]
        cells = [name(run), spells(history), " to ".join(bounds), study.still_from(history)]
        cells += [f"{study.best(rows)['test/accuracy']:.2f}" if rows else None for rows in (before, after)]
        rows.append([*cells, middle(over_last_10([run]))])
    return markdown(columns, rows)


def published(runs, theirs):
    """The document's runs beside ours. Theirs failed when the accuracy is that of one class to the end."""
    columns = ["experiment", "theirs: best accuracy, %", "theirs: failed in epoch"]
    columns += ["ours: best accuracy, %", "ours: runs failed", "ours: failed in epoch, each seed"]
    rows = []
    for number, history in sorted(theirs.items()):
        if ours := study.of(number, runs):
            accuracy = study.best(history)["test/accuracy"]
            cells = [label(ours[0]), f"{accuracy:.2f}", study.one_class_from(history)]
            cells += [middle_and_range(best_accuracies(ours)), k_of_n(ours), in_turn(map(failure, ours))]
            rows.append(cells)
    return markdown(columns, rows)


def machines(runs):
    kinds = sorted((run["cpu"], run["torch"]) for run in runs)
    return markdown(["CPU", "torch", "runs"], [[*kind, len(list(same))] for kind, same in groupby(kinds)])


# ----------------------------------------------------------------------------------------- tables that answer something

CURES = {  # what to change in one's own code, by the experiment that tried it
    1: "nothing: `torch.optim.SGD(model.parameters(), lr=0.01)`",
    4: "`F.grid_sample(images - black, grid) + black`, with `black = -mean / std`",
    7: "`torch.optim.Adam(model.parameters(), lr=0.0001)`",
    8: "`torch.optim.SGD(model.parameters(), lr=0.001)`",
    9: "`torch.optim.Adam(model.parameters(), lr=0.001)`",
    10: '`{"params": model.stn.parameters(), "lr": 0.001}`, the rest at 0.01',
    11: "`clip_grad_norm_(model.parameters(), 1)`",
    13: "`theta = theta.tanh()`",
    14: "`clip_grad_norm_(model.parameters(), 25)`",
    15: '`F.avg_pool2d(F.pad(images, (1, 1, 1, 1), "replicate"), 3, stride=1)` before `grid_sample`',
    16: "that of 15, and `torch.optim.Adam(model.parameters(), lr=0.0001)`",
    18: "no transformer, and `torch.optim.Adam(model.parameters(), lr=0.0001)`",
}


BASELINES = (1, 18)  # what a cure is to be better than


def epochs_to(accuracy, runs):
    """The median of the first epochs with that test accuracy in percent, or None if half of the runs never have it."""
    middle_epoch = median(study.reaches(run["history"], accuracy) or math.inf for run in runs)
    return None if middle_epoch == math.inf else f"{middle_epoch:.0f}"


def cures(runs):
    """What to change: the baselines first, then by the upper end of the exact interval of those that fail or end with
    one map for all images, then by accuracy."""
    rows = []
    for number, text in CURES.items():
        seeds = study.of(number, runs)
        if not seeds:
            continue
        place = BASELINES.index(number) if number in BASELINES else len(BASELINES)
        one_map = 0 if number in BASELINES else sum(map(ends_with_one_map, seeds))
        cells = [text, number, in_turn(dict.fromkeys(run["epochs"] for run in seeds))]
        cells.append(k_of_n(seeds) + f", {one_map} with one map" * (one_map > 0))
        cells += [middle_and_range(best_accuracies(seeds), 1), middle_and_range(over_last_10(seeds), 1)]
        cells += [epochs_to(90, seeds), middle(at_best(seeds, "stn/scale"))]
        bad = study.interval(study.count_failed(seeds) + one_map, len(seeds))[1]
        rows.append(((place, bad, -median(best_accuracies(seeds))), cells))
    columns = ["in your code", "experiment", "epochs", "runs failed", "best accuracy, %", "over the last 10 epochs, %"]
    return markdown([*columns, "epochs to 90 %", "scale"], [cells for _, cells in sorted(rows, key=itemgetter(0))])


def robustness(runs):
    """Which runs fail under other bounds of inside and other factors of the loss than those that were fixed."""
    sgd, adam = study.plain(study.PLAIN_SGD, runs), study.plain(study.PLAIN_ADAM, runs)
    sides = [(label(seeds[0]), seeds) for seeds in study.group(run for run in runs if run["variant"] is None)]
    sides += [("**all with SGD at 0.01 alone**", sgd), ("**all with Adam at 0.0001 alone**", adam)]
    rows = [[text, *(k_of_n(seeds, **how) for how in DEFINITIONS.values())] for text, seeds in sides]
    p = [f"{study.fisher(sgd, adam, **how):.2g}" for how in DEFINITIONS.values()]
    return markdown(["experiment", *DEFINITIONS], [*rows, ["Fisher's exact p of the two", *p]])


FACTORS = {  # one against the other, within strata
    "divided by std, against not": ((1, 6), (5, 2)),
    "mean subtracted, against not": ((1, 5), (6, 2)),
    "frame, against black fill": ((1, 4),),
}


def tests(runs):
    """Normalization's parts and the frame: hazard ratio with its 95 % interval, and the exact p of `compare_times`."""
    rows = []
    for factor, strata in FACTORS.items():
        groups = [tuple(study.of(number, runs) for number in pair) for pair in strata]
        if not all(one and other for one, other in groups):
            continue
        cells = [factor, " and ".join(f"{one} against {other}" for one, other in strata)]
        for definition in DEFINITIONS.values():
            p, (ratio, low, high) = study.compare_times(groups, **definition)
            cells.append(f"{ratio:.2g} ({low:.2g} to {high:.2g}), p = {p:.2g}")
        rows.append(cells)
    return markdown(["hazard ratio", "experiments", *DEFINITIONS], rows)


COMPARED = (
    ("SGD at 0.001 instead of 0.01", 8, 1),
    ("Adam at 0.001 instead of 0.0001", 9, 7),
    ("the localization net at 0.001", 10, 1),
    ("clipped at 1", 11, 1),
    ("clipped at 25", 14, 1),
    ("`theta` through `tanh`", 13, 1),
    ("smoothed, with SGD", 15, 1),
    ("smoothed, with Adam", 16, 7),
    ("no transformer", 18, 7),
    *(("the first convolutions at 0.01 std^2", 12, number) for number in (1, 4, 5, 2)),
)


def comparisons(runs):
    """Failures by Fisher's exact test, best accuracies by Mann and Whitney's, exact unless there are ties."""
    columns = ["what", "experiments", "runs failed", "against", *(f"p: {how}" for how in DEFINITIONS)]
    sgd, adam = study.plain(study.PLAIN_SGD, runs), study.plain(study.PLAIN_ADAM, runs)
    sides = [("Adam at 0.0001 instead of SGD at 0.01", "all", adam, sgd)]
    sides += [(what, f"{one}, {other}", study.of(one, runs), study.of(other, runs)) for what, one, other in COMPARED]
    rows = []
    for what, which, one, other in sides:
        if not (one and other):
            continue
        cells = [what, which, k_of_n_and_interval(one), k_of_n_and_interval(other)]
        cells += [f"{study.fisher(one, other, **how):.2g}" for how in DEFINITIONS.values()]
        accuracies = best_accuracies(one), best_accuracies(other)
        cells.append(f"{median(accuracies[0]) - median(accuracies[1]):+.2f}")
        rows.append([*cells, f"{stats.mannwhitneyu(*accuracies).pvalue:.2g}"])
    return markdown([*columns, "best accuracy, difference of the medians, points", "p"], rows)


def clock(runs):
    """Does a run that learns faster fail sooner by as much? The plain SGD runs that had 50 % before they failed.

    A run that never failed enters with its last epoch: its ratio is larger than that, which the sign says.
    """
    columns = ["divided by std", "seeds", "runs", "of them with 50 % before they failed", "first epoch at 50 %"]
    columns += ["failed in epoch", "the one over the other, each run", "median"]
    rows, sgd = [], study.plain(study.PLAIN_SGD, runs)
    for divided in (True, False):
        for old in (True, False):
            some = [run for run in sgd if (run["std"] != 1, study.explored(run)) == (divided, old)]
            pairs = [(study.reaches(run["history"], 50), *study.failure_times([run])[0]) for run in some]
            pairs = [(start, end, event) for start, end, event in pairs if start and start < end]
            ratios = sorted((end / start, event) for start, end, event in pairs)
            cells = ["yes" if divided else "no", "old, exploratory" if old else "new", len(some), len(pairs)]
            cells.append(middle_and_range([start for start, _, _ in pairs], 0))
            cells.append(middle_and_range([end for _, end, event in pairs if event], 0))
            cells.append(in_turn(f"{'' if event else '>'}{ratio:.1f}" for ratio, event in ratios) or None)
            rows.append([*cells, middle([ratio for ratio, _ in ratios], 1)])
    return markdown(columns, rows)


# --------------------------------------------------------------------------------- the localization net's learning rate

RATES, RATE_EPOCHS, ZOOMED_OUT = 17, 20, 1.1  # the experiment, what it is judged after, and by which scale


def rate_runs(runs):
    """Returns [(dataset, rate, histories of 20 epochs)] of the runs that got so far, plain digits first."""
    ours = [run for run in runs if (run["experiment"], run["digits"], run["limit"]) == (RATES, "full", 60000)]
    rows = []
    for seeds in study.group(run for run in ours if len(run["history"]) >= RATE_EPOCHS):
        digits = "plain" if seeds[0]["dataset"] == "mnist" else seeds[0]["dataset"]
        rows.append((digits, seeds[0]["variant"], [run["history"][:RATE_EPOCHS] for run in seeds]))
    return sorted(rows, key=lambda row: (row[0] != "plain", row[1]))


def zoomed_out(history):
    """Whether scale is over 1.1 in a run's last epoch: the region's side is a tenth longer than the image's."""
    return history[-1]["stn/scale"] > ZOOMED_OUT


def rates(runs):
    columns = ["digits", "rate of the localization net", "runs failed", "zoomed out"]
    columns += [f"{figure} after {RATE_EPOCHS} epochs" for figure in ("scale", "inside", "spread", "accuracy, %,")]
    rows = []
    for data, rate, histories in rate_runs(runs):
        outs = (sum(map(bool, map(event, histories))) for event in (failed, zoomed_out))
        ends = [history[-1] for history in histories]
        cells = [data, rate, *(f"{out} of {len(histories)}" for out in outs)]
        cells += [middle_and_range([end[tag] for end in ends]) for tag in ("stn/scale", "stn/inside", "stn/spread")]
        rows.append([*cells, middle_and_range([end["test/accuracy"] for end in ends])])
    return markdown(columns, rows)


def rates_bounds(runs):
    """From which rate on runs fail or zoom out, and the same times (side / 28)^2, which should be alike for both."""
    columns = ["digits", "highest rate at which no run fails or zooms out", "lowest rate at which one does"]
    rows = []
    for data, tried in groupby(rate_runs(runs), key=lambda row: row[0]):
        bad = {rate: any(failed(run) or zoomed_out(run) for run in histories) for _, rate, histories in tried}
        factor = 1 if data == "plain" else (CANVAS / 28) ** 2
        bounds = max((r for r in bad if not bad[r]), default=None), min((r for r in bad if bad[r]), default=None)
        rows.append([data, *bounds, *(bound and f"{bound * factor:.2g}" for bound in bounds)])
    return markdown([*columns, "the former, x (side / 28)²", "the latter, x (side / 28)²"], rows)


# -------------------------------------------------------------------------------------------------------- the gradients


def peak_ratio(rows):
    """Median over epochs of the largest gradient norm of the epoch's steps over their median."""
    return median(row["train/grad_norm_max"] / row["train/grad_norm"] for row in rows)


def gradient_before(runs):
    """Whether an epoch's largest gradient over its median one rises in the 3 epochs before a run fails.

    The last row counts the runs where it does; p is that of a sign test, two-sided.
    """
    rows, rises = [], []
    for run in runs:
        epoch, history = failed(run["history"]), run["history"]
        if epoch is None or epoch < 5 or not all(row["train/grad_norm"] for row in history[: epoch - 1]):
            continue
        earlier, last = peak_ratio(history[: epoch - 4]), peak_ratio(history[epoch - 4 : epoch - 1])
        rises.append(last / earlier)
        rows.append([name(run), epoch, f"{last:.2f}", f"{earlier:.2f}", f"{last / earlier:.2f}"])
    if len(rises) > 1:
        up = sum(rise > 1 for rise in rises)
        p = stats.binomtest(up, len(rises)).pvalue
        rows.append([f"it rises in {up} of {len(rises)}, p = {p:.2g}", "", "", "", f"{median(rises):.2f}"])
    columns = ["run", "failed in epoch", "largest over median gradient: in the 3 epochs before", "in those before them"]
    return markdown([*columns, "ratio"], rows)


def clipped(runs):
    """How many steps a bound of the gradient's norm touches, in the epochs before a run failed."""
    rows = []
    for seeds in study.group(run for run in runs if run["max_grad_norm"] is not None):
        whole = [run["history"][: (failed(run["history"]) or len(run["history"]) + 1) - 1] for run in seeds]
        shares = [100 * row["train/clipped"] for history in whole for row in history]
        rows.append([label(seeds[0]), seeds[0]["max_grad_norm"], len(seeds), middle_and_range(shares)])
    return markdown(["experiment", "bound", "runs", "steps clipped in an epoch, %"], rows)


def fatal_step(runs, deaths):
    """The gradient in the step before each failure, and before the largest drop on the way there, among the 200 before.

    Step 0 is where the replay says that the transformer failed; the largest drop is picked by what it did, and SGD's
    steps are as long as their gradients, so that it shows less.
    """
    columns = ["run", "epoch", "best accuracy before, %", "what falls under 0.01", "gradient before step 0: rank"]
    columns += ["over the median", "largest drop in step", "by", "gradient before it: rank", "over the median"]
    rows = []
    for steps in deaths:
        figure = study.what_fell(steps)
        drop, depth = study.largest_drop(steps, figure)
        cells = [name(study.run_of(steps, runs)), steps[0]["epoch"], f"{study.best_before(steps, runs):.1f}", figure]
        for at, between in ((0, [drop, f"{depth:.2f}"]), (drop, [])):
            rank, count, ratio = study.rank_before(steps, at)
            cells += [f"{rank} of {count}", f"{ratio:.1f}", *between]
        rows.append(cells)
    return markdown(columns, rows)


def fatal_step_count(runs, deaths):
    """In how many replays of runs that failed the gradient is one of the two largest of 200.

    By chance that is so in 1 of 100: p is that of a binomial test, two-sided, for the new ones, since the old ones
    suggested it.
    """
    columns = ["replays", "had 50 % before", "number", "gradient before step 0 among the two largest of 200"]
    deaths = [steps for steps in deaths if failed(study.run_of(steps, runs)["history"])]
    rows = []
    for old in (True, False):
        for learned in (True, False):
            some = [s for s in deaths if (study.explored(s[0]), study.best_before(s, runs) > 50) == (old, learned)]
            drops = [study.largest_drop(steps, study.what_fell(steps))[0] for steps in some]
            ranks = [[study.rank_before(s, at)[0] for at in (0, drop)] for s, drop in zip(some, drops, strict=True)]
            tops = [sum(rank <= 2 for rank in kind) for kind in zip(*ranks, strict=True)] or [0, 0]
            cells = ["old, exploratory" if old else "new", "yes" if learned else "no", len(some), *tops]
            if some and not old:
                cells[3:] = [f"{top}, p = {stats.binomtest(top, len(some), 0.01).pvalue:.1g}" for top in tops]
            rows.append(cells)
    return markdown([*columns, "gradient before the largest drop"], rows)


# ------------------------------------------------------------------------------------------------------------------ why


def read_optional(path):
    return read_table(path) if path.exists() else []


def hand_over(rows, sharpness):
    """What is left of each solution after the last step of SGD, at each rate, and the largest rate that keeps it.

    Beside it the rates of `loses_at`, and 2 / curvature, the rate that the law foretells, over each of the steps of
    sharpness.csv.
    """
    rates = sorted({(row["classifier_rate"], row["rate"]) for row in rows})
    heads = [f"{rate:.5f}".rstrip("0") if rate else "frozen" for _, rate in rates]
    columns = ["solution", "scale", "accuracy, %", *heads, "largest rate that keeps it", *study.READINGS]
    widths = sorted({row["step"] for row in sharpness})
    columns += [f"2 / curvature over {width}" for width in widths]
    lines = []
    for first, left, lowest in study.solutions(rows):
        cells = [f"{name(first)}, epoch {first['epoch']}", f"{first['stn/scale']:.2f}", f"{first['test/accuracy']:.1f}"]
        cells += [middle_and_range(left.get(rate, []), 0) for rate in rates]
        enough = first["test/accuracy"] - study.KEPT
        kept = [rate for (_, rate), accuracies in left.items() if rate and min(accuracies) > enough]
        cells += [max(kept, default=None), *study.loses_at(first, left, lowest).values()]
        found = study.curvatures(first, sharpness)
        lines.append(cells + [f"{2 / found[width]:.2g}" if width in found else None for width in widths])
    return markdown(columns, lines)


HANDED_OVER_FIRST = {(7, 3), (16, 0), (10, 0)}  # experiment and seed: the second reading comes from them


def hand_over_order(runs, rows, sharpness):
    """Are sharper solutions lost at smaller rates, and how near to 2 / curvature?

    By both readings of `loses_at`, over each of the steps of sharpness.csv: Kendall's tau-b of that rate and of
    2 / curvature, its p, a rough one since there are ties, and the largest factor between the two.
    """
    optimizers = {key_of(run): run["optimizer"] for run in runs}
    widths = sorted({row["step"] for row in sharpness})
    known = []
    for first, *found in study.solutions(rows):
        groups = ["all", "of " + optimizers.get(key_of(first), "").partition("(")[0]]
        if (first["experiment"], first["seed"]) not in HANDED_OVER_FIRST:
            groups.append("handed over later")
        known.append((groups, study.loses_at(first, *found), study.curvatures(first, sharpness)))
    lines = []
    for reading in study.READINGS:
        for group_name in ("all", "of Adam", "handed over later"):
            some = [(lost[reading], found) for groups, lost, found in known if group_name in groups]
            cells = [reading, group_name, len(some)]
            for width in widths:
                pairs = [(rate, 2 / found[width]) for rate, found in some if rate and found]
                if len(pairs) > 2:
                    tau, p = stats.kendalltau(*zip(*pairs, strict=True))
                    factor = max(max(rate / limit, limit / rate) for rate, limit in pairs)
                    order = "-" if math.isnan(tau) else f"{tau:.2f}, p = {p:.2g}"
                    cells += [order, f"{factor:.1f}"]
                else:
                    cells += [None, None]
            lines.append(cells)
    heads = [[f"order, over {width}: tau", "largest factor"] for width in widths]
    return markdown(["rate", "solutions", "number", *sum(heads, [])], lines)


def curvature_by_rate(runs, sharpness):
    """How sharp what SGD and Adam find is at each rate of the localization net, by the medians of each run's epochs.

    Of runs that neither clip nor change the transformer, before they fail, where the transformer sees the image and
    its regions follow the digits.
    """
    groups, widths = {}, sorted({row["step"] for row in sharpness})
    for run in study.without_beginnings(runs):
        end = failed(run["history"]) or math.inf
        some = [row for row in sharpness if key_of(row) == key_of(run) and 0 < row["epoch"] < end]
        some = [row for row in some if study.sees(row) and row["spread"] >= study.ONE_MAP]
        if some and run["max_grad_norm"] is None and run["transformer"] == "SpatialTransformer":
            digits = "plain" if run["dataset"] == "mnist" else run["dataset"]
            optimizer = run["optimizer"].partition("(")[0]
            groups.setdefault((digits, optimizer, some[0]["lr"]), []).append(some)
    lines = []
    for key in sorted(groups, key=lambda key: (key[0] != "plain", *key)):
        scales = [median(row["scale"] for row in some) for some in groups[key]]
        cells = [*key, len(scales), middle_and_range(scales)]
        for width in widths:
            found = [[row["curvature"] for row in some if row["step"] == width] for some in groups[key]]
            cells.append(middle_and_range(map(median, found), 0))
        lines.append(cells)
    columns = ["digits", "optimizer", "rate of the localization net", "runs", "scale"]
    return markdown([*columns, *(f"curvature over {width}" for width in widths)], lines)


def smoothing(rows):
    """How far the gradient by a shift of the region is from the loss's change over a pixel, smoothed and not."""
    columns = ["solution", "smoothed", "gradient, standard deviation", "change over a pixel, standard deviation"]
    columns += ["the one over the other", "correlation"]
    lines = []
    for (*_, epoch, smoothed), some in groupby(rows, key=lambda row: (*solution_of(row), row["smoothed"])):
        some = [row for row in some if row["shift"] == 0]
        gradients, changes = (np.array([row[name] for row in some]) for name in ("gradient", "difference"))
        spreads = gradients.std(), changes.std()
        cells = [f"{name(some[0])}, epoch {epoch}", "yes" if smoothed else "no", *(f"{x:.2f}" for x in spreads)]
        lines.append([*cells, f"{spreads[0] / spreads[1]:.2f}", f"{np.corrcoef(gradients, changes)[0, 1]:.2f}"])
    return markdown(columns, lines)


# --------------------------------------------------------------------------------------------------- into the two pages


def make_tables(assets=ASSETS):
    """Returns {name: table in Markdown, ending in a newline} of the CSV files in a folder."""
    runs, deaths = read_runs(assets), study.read_deaths(assets)
    of_runs = (results, all_results, drift, drift_test, afterwards, machines, cures, robustness, tests, comparisons)
    of_runs += (clock, rates, rates_bounds, gradient_before, clipped)
    tables = {function.__name__: function(runs) for function in of_runs}
    tables |= {function.__name__: function(runs, deaths) for function in (fatal_step, fatal_step_count)}
    sharpness = read_optional(assets / "sharpness.csv")
    tables["hand_over"] = hand_over(read_optional(assets / "hand_over.csv"), sharpness)
    tables["hand_over_order"] = hand_over_order(runs, read_optional(assets / "hand_over.csv"), sharpness)
    tables["curvature_by_rate"] = curvature_by_rate(runs, sharpness)
    tables["smoothing"] = smoothing(read_optional(assets / "smoothing.csv"))
    return tables | {"published": published(runs, study.read_published(assets))}


def with_tables(text, tables):
    """Returns a page's text with the tables between `<!-- name -->` and `<!-- end of name -->` replaced.

    Raises RunError if a marker has no table, or no other end.
    """
    for place in dict.fromkeys(re.findall(r"<!-- (?:end of )?(\w+) -->", text)):
        head, tail = f"<!-- {place} -->\n", f"<!-- end of {place} -->"
        if place not in tables:
            raise RunError(f"a page has a place for a table {place}, which is none of {', '.join(tables)}: rename it")
        if text.count(head) != text.count(tail) or not re.search(f"(?s){head}.*{tail}", text):
            raise RunError(f"a page has no whole place for the table {place}: it is {head.strip()}, a new line, {tail}")
        text = re.sub(f"(?s)(?<={head}).*?(?={tail})", lambda _, place=place: tables[place], text)
    return text
