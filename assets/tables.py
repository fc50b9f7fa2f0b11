"""The tables that stand between markers in README.md and assets/README.md, made from the CSV files."""

import math
import re
from statistics import median

from scipy import stats

from assets import ASSETS, study
from assets.speed import EVERYBODYS
from common import RunError

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


def table(columns, rows):
    """A Markdown table of columns, pairs of a heading and the function of a row that makes its cells."""
    return markdown([heading for heading, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


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


def listed(values):
    return ", ".join("-" if value is None else str(value) for value in values)


def digits_of(dataset):
    """What tables call the digits of a data set."""
    return "plain" if dataset == "mnist" else dataset


def data_suffix(run):
    """What is not the default in a run's data, such as ", plain digits"."""
    parts = [] if run["dataset"] == "cluttered" else [f"{digits_of(run['dataset'])} digits"]
    parts += ["embedded digits"] * (run["digits"] == "embedded")
    parts += [f"{run['limit']} images"] * (run["limit"] != 60000)
    return "".join(f", {part}" for part in parts)


def experiment_label(run):
    return f"{run['experiment']}: {run['title']}{data_suffix(run)}"


def failed_of(runs, **definition):
    return f"{study.count_failed(runs, **definition)} of {len(runs)}"


def failed_of_and_interval(runs):
    low, high = stats.binomtest(study.count_failed(runs), len(runs)).proportion_ci(0.95, method="exact")
    return f"{failed_of(runs)} ({100 * low:.0f} to {100 * high:.0f} %)"


def failure(run):
    """When a run failed: "31 cl" collapsed and lost its solution, one letter for one of them; † if stopped early."""
    epoch = run["failed"]
    cell = f"{epoch} " + "c" * (run["collapsed"] == epoch) + "l" * (run["lost_solution"] == epoch) if epoch else "-"
    return cell + "†" * study.was_stopped(run)


def at_best(runs, tag):
    """What each run has in the epoch of its best test accuracy."""
    return [run["history"][run["best_epoch"] - 1][tag] for run in runs]


def at_end(runs, tag):
    """What each run has in its last epoch; runs that were stopped early are left out, as in `over_last_10`."""
    return [run["history"][-1][tag] for run in runs if not study.was_stopped(run)]


def over_last_10(runs):
    """The median test accuracy of each run's last 10 epochs."""
    return [median(row["test/accuracy"] for row in run["history"][-10:]) for run in runs if not study.was_stopped(run)]


# ---------------------------------------------------------------------------------------------- tables of what happened


def all_results(runs):
    columns = ["experiment", "runs failed, exact 95 % interval", "failed in epoch, each seed"]
    columns += ["best accuracy, %", "over the last 10 epochs, %"]
    columns += ["scale in epochs over 80 %", "scale at the best epoch", "at the end"]
    columns += ["spread at the best epoch", "at the end", "epochs to 80 %", "to 90 %"]
    rows = []
    for seeds in study.group(runs):
        cells = [experiment_label(seeds[0]), failed_of_and_interval(seeds), listed(map(failure, seeds))]
        cells += [middle_and_range(at_best(seeds, "test/accuracy")), middle_and_range(over_last_10(seeds))]
        healthy = [[row["stn/scale"] for row in run["history"] if row["test/accuracy"] > 80] for run in seeds]
        cells.append(middle_and_range(median(scales) for scales in healthy if scales))
        for tag in ("stn/scale", "stn/spread"):
            cells += [middle_and_range(at_best(seeds, tag)), middle_and_range(at_end(seeds, tag))]
        cells += [listed(study.reaches(run["history"], accuracy) for run in seeds) for accuracy in (80, 90)]
        rows.append(cells)
    return markdown(columns, rows)


def drift(runs):
    """Whether the transformers of the runs that lasted zoom in or out after the first 30 epochs."""
    rows = []
    lasted = [r for r in runs if r["failed"] is None and not study.was_stopped(r) and len(r["history"]) >= 40]
    for seeds in study.group(lasted):
        early = [median(row["stn/scale"] for row in run["history"][20:30]) for run in seeds]
        late = [median(row["stn/scale"] for row in run["history"][-10:]) for run in seeds]
        changes = [end - start for start, end in zip(early, late, strict=True)]
        rows.append([experiment_label(seeds[0]), len(seeds), *map(middle_and_range, (early, late, changes))])
    columns = ["experiment", "runs that lasted", "scale in epochs 21 to 30", "over the last 10 epochs", "change"]
    return markdown(columns, rows)


# ----------------------------------------------------------------------------------------- tables that answer something

CURES = {  # what to change in one's own code, by the experiment and variant that tried it
    (1, None): "nothing: `SGD(lr=0.01)`",
    (9, None): "nothing: `Adam(lr=0.001)`",
    (19, None): "`LeakyReLU` alone, `Adam(lr=0.001)`",
    (23, None): "`LeakyReLU` alone, `SGD(lr=0.01)`",
    (20, None): "`limit_motion` alone, `Adam(lr=0.001)`",
    (22, None): "`limit_motion` alone, `SGD(lr=0.01)`",
    (21, None): "**both changes**, `Adam(lr=0.001)`",
    (24, None): "**both changes**, `SGD(lr=0.01)`",
    (25, None): "**both changes**, `SGD(lr=0.01, momentum=0.9)`",
    (32, None): "**both changes**, `Adam(lr=0.001)`, `CosineAnnealingLR`",
    (7, None): "`Adam(lr=0.0001)`",
    (27, None): "`Adam(lr=0.001)`, the localization net at 0.0001",
    (10, None): "`SGD(lr=0.01)`, the localization net at 0.001",
    (28, "0.0001"): "`SGD(lr=0.01, momentum=0.9)`, the localization net at 0.0001",
    (11, None): "`clip_grad_norm_(..., 1)`, `SGD(lr=0.01)`",
    (15, None): "sampled from the image's 3 x 3 mean, `SGD(lr=0.01)`",
    (33, "0.1"): "a penalty, 0.1 times `theta`'s squared distance from the identity, `SGD(lr=0.01)`",
    (18, None): "no transformer, `Adam(lr=0.0001)`",
}


def standard_runs(experiment, runs):
    return study.pick(runs, **study.STANDARD, experiment=experiment)


def epochs_to(accuracy, runs):
    """The median of the first epochs with that test accuracy in percent, or None if half of the runs never have it."""
    middle_epoch = median(study.reaches(run["history"], accuracy) or math.inf for run in runs)
    return None if middle_epoch == math.inf else f"{middle_epoch:.0f}"


def cures(runs):
    """What to change, a row a cure, in the order of `CURES`. Runs that end with one map count as failed."""
    rows = []
    for (experiment, variant), text in CURES.items():
        seeds = study.pick(runs, **study.STANDARD, experiment=experiment, variant=variant)
        if seeds:
            one_map = sum(study.fate(run) == "one map" for run in seeds) if experiment != 18 else 0
            failures = study.count_failed(seeds) + one_map
            of_them = ", one map" if one_map == failures else f", {one_map} with one map"
            cells = [text, f"{failures} of {len(seeds)}" + of_them * (one_map > 0)]
            cells += [middle_and_range(at_best(seeds, "test/accuracy"), 1), epochs_to(90, seeds)]
            cells += [middle(at_best(seeds, "stn/scale")), listed(dict.fromkeys(run["epochs"] for run in seeds))]
            rows.append([*cells, experiment])
    columns = ["in your code", "runs failed", "best accuracy, %", "epochs to 90 %", "scale at best"]
    return markdown([*columns, "epochs in all", "experiment"], rows)


def fisher_cells(one, other):
    """Fisher's exact p of two groups of runs, under each definition of a failure."""
    for definition in DEFINITIONS.values():
        counts = [(study.count_failed(runs, **definition), len(runs)) for runs in (one, other)]
        yield f"{stats.fisher_exact([[failures, total - failures] for failures, total in counts]).pvalue:.2g}"


def robustness(runs):
    """Which runs fail under other bounds of inside and other factors of the loss than those that were fixed."""
    sgd, adam = study.plain_runs(study.SGD, runs), study.plain_runs(study.ADAM, runs)
    groups = [(experiment_label(seeds[0]), seeds) for seeds in study.group(study.pick(runs, variant=None))]
    groups += [("**all with SGD at 0.01 alone**", sgd), ("**all with Adam at 0.0001 alone**", adam)]
    rows = [[text, *(failed_of(seeds, **how) for how in DEFINITIONS.values())] for text, seeds in groups]
    rows.append(["Fisher's exact p of the two", *fisher_cells(sgd, adam)])
    return markdown(["experiment", *DEFINITIONS], rows)


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
    ("the first convolutions at 0.01 std^2", 12, 1),
    ("the localization net at 0.005", 29, 1),
    ("`theta` with a scale and a shift alone", 34, 1),
    ("leaky", 23, 1),
    ("limited to 0.1 pixels", 22, 1),
    ("leaky and limited to 0.1 pixels", 24, 1),
)


def comparisons(runs):
    """Failures by Fisher's exact test, best accuracies by Mann and Whitney's, exact unless there are ties."""
    columns = ["what", "experiments", "runs failed", "against", *(f"p: {how}" for how in DEFINITIONS)]
    sgd, adam = study.plain_runs(study.SGD, runs), study.plain_runs(study.ADAM, runs)
    pairs = [("Adam at 0.0001 instead of SGD at 0.01", "all", adam, sgd)]
    pairs += [
        (what, f"{one}, {other}", standard_runs(one, runs), standard_runs(other, runs)) for what, one, other in COMPARED
    ]
    rows = []
    for what, experiments, one, other in pairs:
        if one and other:
            accuracies = [at_best(side, "test/accuracy") for side in (one, other)]
            cells = [what, experiments, failed_of_and_interval(one), failed_of_and_interval(other)]
            cells += [*fisher_cells(one, other), f"{median(accuracies[0]) - median(accuracies[1]):+.2f}"]
            rows.append([*cells, f"{stats.mannwhitneyu(*accuracies).pvalue:.2g}"])
    return markdown([*columns, "best accuracy, difference of the medians, points", "p"], rows)


def rates(runs):
    """What became of experiment 17's runs, of 20 epochs, by the localization net's learning rate."""
    columns = ["digits", "rate of the localization net", "runs failed", "zoomed out"]
    columns += [f"{figure} after 20 epochs" for figure in ("scale", "inside", "spread", "accuracy, %,")]
    rows = []
    for dataset, runs_by_rate in study.by_rate(runs).items():
        for rate, seeds in runs_by_rate.items():
            zoomed_out = sum(scale > study.ZOOMED_OUT for scale in at_end(seeds, "stn/scale"))
            cells = [digits_of(dataset), rate, failed_of(seeds), f"{zoomed_out} of {len(seeds)}"]
            tags = ("stn/scale", "stn/inside", "stn/spread", "test/accuracy")
            rows.append(cells + [middle_and_range(at_end(seeds, tag)) for tag in tags])
    return markdown(columns, rows)


def clipped(runs):
    """How many steps a bound of the gradient's norm touches, in the epochs before a run failed."""
    rows = []
    for seeds in study.group(run for run in runs if run["max_grad_norm"] is not None):
        shares = [100 * row["train/clipped"] for run in seeds for row in study.before_failure(run)]
        rows.append([experiment_label(seeds[0]), seeds[0]["max_grad_norm"], len(seeds), middle_and_range(shares)])
    return markdown(["experiment", "bound", "runs", "steps clipped in an epoch, %"], rows)


# ------------------------------------------------------------------------------------------------- the two failures

ADAM_FACTORIAL = {"neither": 9, "leaky": 19, "limited": 20, "leaky and limited": 21}
SGD_FACTORIAL = {"neither": 1, "leaky": 23, "limited": 22, "leaky and limited": 24}
DOSES = {"Adam 0.001": 26, "SGD 0.01, momentum 0.9": 35}  # all leaky


def count(runs, *fates):
    return f"{sum(study.fate(run) in fates for run in runs)} of {len(runs)}"


def factorial(runs):
    """Leaky and limited, alone and together, with Adam at 0.001 and with SGD at 0.01."""
    rows = []
    for optimizer, experiments in (("Adam 0.001", ADAM_FACTORIAL), ("SGD 0.01", SGD_FACTORIAL)):
        for lines, experiment in experiments.items():
            seeds = standard_runs(experiment, runs)
            if not seeds:
                continue
            cells = [optimizer, lines, experiment, listed(dict.fromkeys(run["epochs"] for run in seeds))]
            cells += [count(seeds, "failed"), count(seeds, "one map")]
            cells += [middle_and_range(at_best(seeds, "test/accuracy"), 1), middle_and_range(over_last_10(seeds), 1)]
            cells += [epochs_to(90, seeds), epochs_to(95, seeds)]
            rows.append(cells + [middle(at_end(seeds, tag)) for tag in ("stn/scale", "stn/active")])
    head = ["optimizer", "lines", "experiment", "epochs", "runs failed", "with one map", "best accuracy, %"]
    return markdown(
        [*head, "over the last 10 epochs, %", "epochs to 90 %", "to 95 %", "scale at the end", "active"], rows
    )


def dose(runs):
    """Each limit of experiments 26 and 35: accuracy over epochs 11 to 20, and what the transformer does at the end."""
    rows = []
    for optimizer, experiment in DOSES.items():
        for seeds in study.group(standard_runs(experiment, runs)):
            late = [run["history"][10:20] for run in seeds]
            cells = [optimizer, seeds[0]["max_motion"] or "none", count(seeds, "failed"), count(seeds, "one map")]
            cells.append(listed(f"{median(row['test/accuracy'] for row in rows):.1f}" for rows in late))
            for tag in ("stn/scale", "stn/spread"):
                cells.append(listed(f"{run['history'][-1][tag]:.2f}" for run in seeds))
            for tag in ("stn/motion", "stn/limited"):
                cells.append(listed(f"{median(row[tag] for row in rows):.2g}" for rows in late))
            rows.append([*cells, listed(study.reaches(run["history"], 90) for run in seeds)])
    head = ["optimizer", "limit, pixels", "runs failed", "with one map", "accuracy in epochs 11 to 20, %, each seed"]
    return markdown([*head, "scale at the end", "spread", "motion", "steps shortened", "epochs to 90 %"], rows)


# ------------------------------------------------------------------------------------------------- elsewhere, and speed


def went_wrong(row):
    """Whether a network that is not ours is off the image, has zoomed out on plain digits, or one map on others."""
    wrong = row["scale"] > study.ZOOMED_OUT if row["images"] == "plain" else row["spread"] < study.ONE_MAP
    return wrong or study.off_the_image(row)


def elsewhere(rows):
    """What networks that are not ours came to, with the two lines and without, by the last row of each seed."""
    columns = ["network", "digits", "optimizer", "lines", "steps", "accuracy, %, each seed", "scale", "inside"]
    ends = {}
    for row in rows:
        setting = row["network"], row["images"], row["optimizer"]
        ends.setdefault(setting, {}).setdefault(row["lines"], {})[row["seed"]] = row
    lines = []
    for setting, by_lines in ends.items():
        for kind in sorted(by_lines, reverse=True):  # neither, limited, leaky, both
            seeds = [by_lines[kind][seed] for seed in sorted(by_lines[kind])]
            cells = [*setting, kind, listed(dict.fromkeys(row["step"] for row in seeds))]
            for name, digits in ("accuracy", 1), ("scale", 2), ("inside", 2), ("spread", 3):
                cells.append(listed(f"{row[name]:.{digits}f}" for row in seeds))
            lines.append([*cells, f"{sum(map(went_wrong, seeds))} of {len(seeds)}"])
    return markdown([*columns, "spread", "off the image, zoomed out or one map"], lines)


def speed(rows):
    """Seconds of an epoch of each loop, and over the loop that everybody writes, the median of the rounds' ratios."""
    loops = {}
    for row in rows:
        loops.setdefault((row["device"], row["loop"], row["experiment"]), []).append(row)
    reference = {(row["device"], row["epoch"]): row["seconds"] for row in rows if row["loop"] == EVERYBODYS}

    def over_reference(timed):
        return median(row["seconds"] / reference[row["device"], row["epoch"]] for row in timed)

    columns = [
        ("device", lambda timed: timed[0]["device"]),
        ("loop", lambda timed: timed[0]["loop"]),
        ("experiment", lambda timed: f"{timed[0]['experiment']}: {timed[0]['title']}"),
        ("seconds an epoch", lambda timed: middle([row["seconds"] for row in timed], 1)),
        ("over everybody's", lambda timed: f"{over_reference(timed):.2f}"),
    ]
    return table(columns, loops.values())


# --------------------------------------------------------------------------------------------------- into the two pages


def make_tables(assets=ASSETS):
    """Returns {marker: table in Markdown, ending in a newline} of the CSV files in a folder."""
    read = study.read_all(assets)
    of_runs = (all_results, drift, cures, robustness, comparisons)
    whole = study.without_repeats(read.runs)
    tables = {function.__name__: function(whole) for function in (*of_runs, rates, clipped, factorial, dose)}
    return tables | {
        "elsewhere": elsewhere(read.elsewhere),
        "speed": speed(read.speed),
    }


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
