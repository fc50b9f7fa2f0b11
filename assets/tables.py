"""The tables that stand between markers in README.md and assets/README.md, made from the CSV files.

A table is a list of rows and a list of columns: a column is its heading, and the function of a row that its cells are.
A row is a list of runs, those that differ by their seed alone, where nothing else is said.
"""

import math
import re
from collections import Counter
from statistics import median

import numpy as np
from scipy import stats

from assets import ASSETS, study
from assets.elsewhere import LINES
from assets.speed import EVERYBODYS, THIS_PROJECTS
from assets.study import digits_of, median_of
from common import COLLAPSED, DEFAULTS, RunError

# ---------------------------------------------------------------------------------------------------------------- cells


def markdown(columns, rows):
    """A Markdown table of columns, pairs of a heading and the function of a row that its cells are; None is a dash."""
    lines = [[heading for heading, _ in columns], ["---"] * len(columns)]
    lines += [[text_of(cell(row)) for _, cell in columns] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text_of(cell):
    """A dash for None; without the line breaks and bars of a title, which would break the row."""
    return "-" if cell is None else " ".join(str(cell).split()).replace("|", "\\|")


def fixed(value, digits=2):
    """A number with so many digits behind the point, None for None."""
    return None if value is None else f"{value:.{digits}f}"


def middle(values, digits=2):
    """The median of what was recorded, or None."""
    values = [value for value in values if value is not None]
    return fixed(median(values), digits) if values else None


def middle_and_range(values, digits=2):
    """The median and the range of what was recorded, or None."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return middle(values, digits)
    return f"{middle(values, digits)} ({fixed(min(values), digits)} to {fixed(max(values), digits)})"


def range_of(numbers):
    low, high = min(numbers), max(numbers)
    return low if low == high else f"{low} to {high}"


def listed(values):
    return ", ".join("-" if value is None else str(value) for value in values)


def seed_by_seed(values, digits=2):
    return listed(fixed(value, digits) for value in values)


def data_suffix(run):
    """What is not the default in a run's data, such as ", plain digits"."""
    suffix = ""
    if run["dataset"] != DEFAULTS["dataset"]:
        suffix += f", {digits_of(run['dataset'])} digits"
    if run["digits"] == "embedded":
        suffix += ", embedded digits"
    if run["limit"] != DEFAULTS["limit"]:
        suffix += f", {run['limit']} images"
    return suffix


def experiment_label(runs):
    return f"{runs[0]['experiment']}: {runs[0]['title']}{data_suffix(runs[0])}"


def failed_of(runs):
    return f"{study.count_failed(runs)} of {len(runs)}"


def failed_of_and_interval(runs):
    low, high = stats.binomtest(study.count_failed(runs), len(runs)).proportion_ci(0.95, method="exact")
    return f"{failed_of(runs)} ({100 * low:.0f} to {100 * high:.0f} %)"


def count_fate(runs, fate):
    return f"{sum(study.fate(run) == fate for run in runs)} of {len(runs)}"


def failure(run):
    """When a run failed: "31 cl" collapsed and lost its solution, one letter for one of them; † if stopped early."""
    cell = "-"
    if run["failed"]:
        cell = f"{run['failed']} "
        if run["collapsed"] == run["failed"]:
            cell += "c"
        if run["lost_solution"] == run["failed"]:
            cell += "l"
    return f"{cell}†" if study.was_stopped(run) else cell


def at_best(runs, tag):
    """What each run has in the epoch of its best test accuracy."""
    return [run["history"][run["best_epoch"] - 1].get(tag) for run in runs]


def not_stopped(runs):
    """The runs that got to their last epoch: those that were stopped have no end."""
    return [run for run in runs if not study.was_stopped(run)]


def at_end(runs, tag):
    """What each run has in its last epoch."""
    return [run["history"][-1].get(tag) for run in not_stopped(runs)]


def over_last_10(runs, tag="test/accuracy"):
    """The median of each run's last 10 epochs."""
    return [median_of(run["history"][-10:], tag) for run in not_stopped(runs)]


def first_epochs(runs, accuracy):
    """The first epoch of each run with that test accuracy in percent."""
    return [study.reaches(run["history"], accuracy) for run in runs]


def epochs_to(accuracy, runs):
    """The median of the first epochs with that test accuracy in percent, or None if half of the runs never have it."""
    middle_epoch = median(math.inf if epoch is None else epoch for epoch in first_epochs(runs, accuracy))
    return None if middle_epoch == math.inf else f"{middle_epoch:.0f}"


# ---------------------------------------------------------------------------------------------- tables of what happened


def scales_over_80(runs):
    """The median scale of each run's epochs with over 80 %."""
    return [median_of([row for row in run["history"] if row["test/accuracy"] > 80], "stn/scale") for run in runs]


def all_results(runs):
    columns = [
        ("experiment", experiment_label),
        ("runs failed, exact 95 % interval", failed_of_and_interval),
        ("failed in epoch, each seed", lambda seeds: listed(map(failure, seeds))),
        ("best accuracy, %", lambda seeds: middle_and_range(at_best(seeds, "test/accuracy"))),
        ("over the last 10 epochs, %", lambda seeds: middle_and_range(over_last_10(seeds))),
        ("scale in epochs over 80 %", lambda seeds: middle_and_range(scales_over_80(seeds))),
        ("scale at the best epoch", lambda seeds: middle_and_range(at_best(seeds, "stn/scale"))),
        ("at the end", lambda seeds: middle_and_range(at_end(seeds, "stn/scale"))),
        ("spread at the best epoch", lambda seeds: middle_and_range(at_best(seeds, "stn/spread"))),
        ("at the end", lambda seeds: middle_and_range(at_end(seeds, "stn/spread"))),
        ("epochs to 80 %", lambda seeds: listed(first_epochs(seeds, 80))),
        ("to 90 %", lambda seeds: listed(first_epochs(seeds, 90))),
    ]
    return markdown(columns, study.group(runs))


# ----------------------------------------------------------------------------------------- tables that answer something

CHOICES = {  # what to have in one's own code, by the experiment and variant that tried it
    (1, None): "`SGD(lr=0.01)`",
    (10, None): "`SGD(lr=0.01)`, the localization net at 0.001",
    (36, "sgd"): "`SGD(lr=0.01)`, leaky, `DriftLR` up to 0.1",
    (9, None): "`Adam(lr=0.001)`",
    (27, None): "`Adam(lr=0.001)`, the localization net at 0.0001",
    (7, None): "`Adam(lr=0.0001)`",
    (21, None): "`Adam(lr=0.001)`, leaky, `limit_motion`",
    (36, "adam"): "`Adam(lr=0.001)`, leaky, `DriftLR`",
    (28, "0.0001"): "`SGD(lr=0.01, momentum=0.9)`, the localization net at 0.0001",
    (36, "momentum"): "`SGD(lr=0.01, momentum=0.9)`, leaky, `DriftLR` up to 0.1",
}
COMPARED_AFTER = 30  # epochs


def standard_runs(experiment, runs):
    return study.pick(runs, **study.STANDARD, experiment=experiment)


def of_choices(runs):
    """The runs of each row of `CHOICES`, in its order, but for those without."""
    picked = [study.pick(standard_runs(experiment, runs), variant=variant) for experiment, variant in CHOICES]
    return [seeds for seeds in picked if seeds]


def went_wrong_of(runs):
    """How many runs went wrong, and how."""
    fates = Counter(study.fate(run) for run in runs)
    lasting = fates.pop("lasts", 0)
    cell = f"{len(runs) - lasting} of {len(runs)}"
    return f"{cell}: {listed(f'{count} {fate}' for fate, count in fates.items())}" if fates else cell


def choices(runs):
    """What to change, a row a choice, after as many epochs, of which repeats are that were to have as many."""

    def early(seeds):
        return [study.until(COMPARED_AFTER, run) for run in seeds if run["epochs"] >= COMPARED_AFTER]

    columns = [
        ("in your code", lambda seeds: CHOICES[seeds[0]["experiment"], seeds[0]["variant"]]),
        (f"{COMPARED_AFTER} epochs: went wrong", lambda seeds: went_wrong_of(early(seeds))),
        ("accuracy then, %", lambda seeds: middle_and_range([run["last_accuracy"] for run in early(seeds)], 1)),
        ("epochs to 90 %", lambda seeds: epochs_to(90, study.without_repeats(seeds))),
        ("all epochs: went wrong", lambda seeds: went_wrong_of(study.without_repeats(seeds))),
        ("epochs", lambda seeds: range_of([run["epochs"] for run in study.without_repeats(seeds)])),
        ("best accuracy, %", lambda seeds: middle_and_range(at_best(study.without_repeats(seeds), "test/accuracy"), 1)),
        ("experiment", lambda seeds: seeds[0]["experiment"]),
    ]
    return markdown(columns, of_choices(runs))


def range_of_healthy(tag, runs, dataset):
    """The middle nine tenths of a scalar, over the epochs with 80 % or more of the runs of a data set that last."""
    lasting = [run for run in study.pick(runs, dataset=dataset) if study.fate(run) == "lasts"]
    rows = [row for run in lasting for row in run["history"] if row["test/accuracy"] >= 80]
    values = [row[tag] for row in rows if row.get(tag) is not None]
    return "{:.2g} to {:.2g}".format(*np.quantile(values, (0.05, 0.95))) if values else None


def healthy(runs):
    """What the figures to log are in runs that last."""
    columns = [
        ("number", lambda tag: f"`{tag.removeprefix('stn/')}`"),
        ("cluttered digits, which move about", lambda tag: range_of_healthy(tag, runs, "cluttered")),
        ("plain digits, which stand still", lambda tag: range_of_healthy(tag, runs, "mnist")),
    ]
    return markdown(columns, ("stn/drift", "stn/spread", "stn/inside", "stn/scale"))


# ---------------------------------------------------------------------------------------------------------------- drift


def band_of(run):
    """Which of the three bands a run's drift lies in, by what was foretold of them."""
    if study.drift_of(run) < study.LOW:
        return f"under {study.LOW}"
    return "between" if study.drift_of(run) <= study.HIGH else f"over {study.HIGH}"


def rate_of(run):
    """Who sets the localization net's learning rate."""
    return "`DriftLR`" if run["drift"] else "by hand"


def foretold(runs):
    """What became of the runs that recorded drift, by its band and the optimizer, repeats of fewer epochs too.

    Runs that `DriftLR` steers are apart: their drift is low since it was made so.
    """
    rows = {}
    for run in sorted(study.with_drift(runs), key=lambda run: (bool(run["drift"]), study.drift_of(run))):
        rows.setdefault((rate_of(run), band_of(run), study.optimizer_kind(run)), []).append(run)
    columns = [
        ("rate", lambda alike: rate_of(alike[0])),
        ("drift", lambda alike: band_of(alike[0])),
        ("optimizer", lambda alike: study.optimizer_kind(alike[0])),
        ("runs", len),
        ("failed", lambda alike: count_fate(alike, "failed")),
        ("zoomed out", lambda alike: count_fate(alike, "zoomed out")),
        ("over 1.1 on plain digits", lambda alike: sum(map(study.formerly_zoomed_out, alike))),
        ("one map", lambda alike: count_fate(alike, "one map")),
        ("of them of dead units", lambda alike: sum(map(study.has_dead_units, alike))),
        ("last", lambda alike: count_fate(alike, "lasts")),
        ("expected to go wrong", lambda alike: fixed(sum(study.chance(run, runs) for run in alike), 1)),
    ]
    return markdown(columns, rows.values())


def adding_up(runs):
    """How large steps are, and how far 64 of them lead, by optimizer, at rates set by hand and steered."""
    rows = {}
    for run in sorted(study.with_drift(runs), key=lambda run: bool(run["drift"])):
        if study.step_of(run):
            rows.setdefault((rate_of(run), study.optimizer_kind(run)), []).append(run)
    columns = [
        ("rate", lambda alike: rate_of(alike[0])),
        ("optimizer", lambda alike: study.optimizer_kind(alike[0])),
        ("runs", len),
        ("a step, pixels", lambda alike: middle_and_range(map(study.step_of, alike))),
        ("how far 64 steps lead, in steps", lambda alike: middle_and_range(map(study.steps_of_drift, alike), 0)),
    ]
    return markdown(columns, rows.values())


def late_medians(runs, tag):
    """The median over epochs 11 to 20 of each run."""
    return [median_of(run["history"][10:20], tag) for run in runs]


AT_RATES = (1, 9, 10, 17, 27, 28, 29, 30)  # that differ by optimizer, digits and the localization net's rate


def drift_by_rate(runs):
    """The drift at each constant rate of a localization net with ReLUs, and nothing that limits it."""
    rows = {}
    for run in study.with_drift(runs):
        rate = study.judged_median(run, "stn/rate")
        if run["experiment"] in AT_RATES and run["variant"] != "leaky_limited" and rate is not None:
            rows.setdefault((study.optimizer_kind(run), digits_of(run["dataset"]), rate), []).append(run)
    columns = [
        ("optimizer", lambda key: key[0]),
        ("digits", lambda key: key[1]),
        ("rate of the localization net", lambda key: f"{key[2]:g}"),
        ("drift", lambda key: middle_and_range(map(study.drift_of, rows[key]), 3)),
        ("in epochs 11 to 20", lambda key: middle_and_range(late_medians(rows[key], "stn/drift"), 3)),
        ("went wrong", lambda key: went_wrong_of(rows[key])),
        ("epochs", lambda key: range_of([run["epochs"] for run in rows[key]])),
    ]
    return markdown(columns, sorted(rows))


def in_the_end(runs, tag):
    """What each run has in its last epoch, also where it was stopped."""
    return seed_by_seed(run["history"][-1].get(tag) for run in runs)


def drift_dose(runs):
    """Each target of a rate that follows the drift, experiment 37: accuracy over epochs 11 to 20, and the end."""
    groups = study.group(standard_runs(37, runs))
    columns = [
        ("optimizer", lambda seeds: seeds[0]["variant"].partition("_")[0]),
        ("target", lambda seeds: seeds[0]["drift"]),
        ("drift in epochs 11 to 20", lambda seeds: seed_by_seed(late_medians(seeds, "stn/drift"), 3)),
        ("failed", lambda seeds: count_fate(seeds, "failed")),
        ("zoomed out", lambda seeds: count_fate(seeds, "zoomed out")),
        ("one map", lambda seeds: count_fate(seeds, "one map")),
        ("accuracy then, %, each seed", lambda seeds: seed_by_seed(late_medians(seeds, "test/accuracy"), 1)),
        ("scale at the end", lambda seeds: in_the_end(seeds, "stn/scale")),
        ("spread", lambda seeds: in_the_end(seeds, "stn/spread")),
        ("epochs to 90 %", lambda seeds: listed(first_epochs(seeds, 90))),
    ]
    return markdown(columns, sorted(groups, key=lambda seeds: (seeds[0]["optimizer"], seeds[0]["drift"])))


COMPARED = (  # experiments and variants: a rate that follows the drift, that found by hand, and both lines
    *((36, "adam"), (27, None), (42, "adam"), (7, None), (21, None), (41, None), (38, None)),
    *((36, "sgd"), (10, None), (42, "sgd"), (24, None)),
    *((36, "momentum"), (28, "0.0001"), (42, "momentum"), (25, None)),
    *((39, "adam"), (39, "sgd"), (30, "0.003"), (30, "leaky_limited")),
    *((40, "daviddao"), (31, "daviddao"), (31, "daviddao_limited")),
    *((40, "aicaffeinelife_leaky"), (31, "aicaffeinelife"), (31, "aicaffeinelife_leaky_limited")),
)


def accuracy_at(epoch, runs):
    """The accuracy in percent after that epoch, of the runs that have it."""
    reached = [run["history"][epoch - 1]["test/accuracy"] for run in runs if len(run["history"]) >= epoch]
    return middle_and_range(reached, 1)


def milliseconds_a_step(rows):
    """The median of rows of speed.csv, None of none."""
    return middle([1000 * row["seconds_a_step"] for row in rows], 1)


def steered(runs, speed_rows):
    """`DriftLR` beside the best rate found by hand and beside both lines."""
    picked = [study.pick(runs, experiment=number, variant=variant) for number, variant in COMPARED]

    def timed(seeds):
        named = {name: seeds[0][name] for name in ("experiment", "title")}
        return study.pick(speed_rows, **named, device="cpu", loop=THIS_PROJECTS)

    columns = [
        ("experiment", experiment_label),
        ("went wrong", went_wrong_of),
        ("accuracy after 20 epochs, %", lambda seeds: accuracy_at(20, seeds)),
        ("after 60", lambda seeds: accuracy_at(60, seeds)),
        ("best", lambda seeds: middle_and_range(at_best(seeds, "test/accuracy"), 1)),
        ("epochs to 80 %", lambda seeds: epochs_to(80, seeds)),
        ("to 90 %", lambda seeds: epochs_to(90, seeds)),
        ("rate of the localization net, last 10 epochs", lambda seeds: middle(over_last_10(seeds, "stn/rate"), 5)),
        ("milliseconds a step", lambda seeds: milliseconds_a_step(timed(seeds))),
        ("epochs in all", lambda seeds: range_of([run["epochs"] for run in seeds])),
    ]
    return markdown(columns, [seeds for found in picked for seeds in study.group(found)])


# ------------------------------------------------------------------------------------------------- elsewhere, and speed


def went_wrong(row):
    """Whether a network that is not ours is off the image, has zoomed out, or one map of digits that move about."""
    has_one_map = row["images"] != "plain" and row["spread"] < study.ONE_MAP
    return has_one_map or row["scale"] > study.ZOOMED_OUT or row["inside"] < COLLAPSED


def elsewhere(rows):
    """What networks that are not ours came to, with the two lines and without. A row is the last one of each seed."""
    ends = {}
    for row in rows:
        setting = row["network"], row["images"], row["optimizer"]
        ends.setdefault(setting, {}).setdefault(row["lines"], {})[row["seed"]] = row
    ordered = [by_lines[lines] for by_lines in ends.values() for lines in LINES if lines in by_lines]
    columns = [
        ("network", lambda seeds: seeds[0]["network"]),
        ("digits", lambda seeds: seeds[0]["images"]),
        ("optimizer", lambda seeds: seeds[0]["optimizer"]),
        ("lines", lambda seeds: seeds[0]["lines"]),
        ("steps", lambda seeds: listed(dict.fromkeys(row["step"] for row in seeds))),
        ("accuracy, %, each seed", lambda seeds: seed_by_seed((row["accuracy"] for row in seeds), 1)),
        ("scale", lambda seeds: seed_by_seed(row["scale"] for row in seeds)),
        ("inside", lambda seeds: seed_by_seed(row["inside"] for row in seeds)),
        ("spread", lambda seeds: seed_by_seed((row["spread"] for row in seeds), 3)),
        ("drift", lambda seeds: seed_by_seed((row.get("drift") for row in seeds), 3)),
        ("off the image, zoomed out or one map", lambda seeds: f"{sum(map(went_wrong, seeds))} of {len(seeds)}"),
    ]
    return markdown(columns, [[seeds[seed] for seed in sorted(seeds)] for seeds in ordered])


def speed(rows):
    """Milliseconds of a step of each loop, and over the loop that everybody writes, the median of the rounds' ratios.

    A row is the epochs of a loop.
    """
    loops = {}
    for row in rows:
        loops.setdefault((row["device"], row["loop"], row["experiment"]), []).append(row)
    everybodys = {(row["device"], row["epoch"]): row["seconds_a_step"] for row in rows if row["loop"] == EVERYBODYS}

    def over_everybodys(epochs):
        return median(row["seconds_a_step"] / everybodys[row["device"], row["epoch"]] for row in epochs)

    columns = [
        ("device", lambda epochs: epochs[0]["device"]),
        ("loop", lambda epochs: epochs[0]["loop"]),
        ("experiment", lambda epochs: f"{epochs[0]['experiment']}: {epochs[0]['title']}"),
        ("milliseconds a step", milliseconds_a_step),
        ("over everybody's", lambda epochs: fixed(over_everybodys(epochs))),
    ]
    return markdown(columns, loops.values())


# --------------------------------------------------------------------------------------------------- into the two pages


def make_tables(assets=ASSETS):
    """Returns {marker: table in Markdown, ending in a newline} of the CSV files in a folder."""
    read = study.read_all(assets)
    of_counted = (all_results, drift_dose)
    of_all = (choices, healthy, foretold, adding_up, drift_by_rate)
    tables = {function.__name__: function(read.counted) for function in of_counted}
    tables |= {function.__name__: function(read.runs) for function in of_all}
    tables |= {"elsewhere": elsewhere(read.elsewhere), "speed": speed(read.speed)}
    return tables | {"steered": steered(read.counted, read.speed)}


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
