"""Makes the figures here and the README's tables of results from results.csv and published_runs.csv, in seconds:

    python assets/make_figures.py

and results.csv, every epoch of every finished run, from the run folders in LOG_DIR (which are added to what it holds):

    python assets/make_figures.py collect LOG_DIR
"""

import csv
import json
import re
import statistics
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

ASSETS = Path(__file__).parent
ROOT = ASSETS.parent
sys.path.insert(0, str(ROOT))
from common import TAGS, collapsed, lost_solution  # noqa: E402

EPOCHS = {1: 100, 2: 100, 3: 150, 4: 100, 5: 100, 6: 100, 7: 150}  # as the scripts pin them
NAMES = {
    1: "1: normalized, SGD",
    2: "2: not normalized, SGD",
    3: "3: not normalized, Adam",
    4: "4: normalized, black fill, SGD",
    5: "5: scale alone, SGD",
    6: "6: shift alone, SGD",
    7: "7: normalized, Adam",
}
# Okabe and Ito's colours, which the colour-blind can tell apart
COLORS = dict(enumerate(("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"), start=1))
RUN = ("experiment", "seed", "dataset", "digits", "device")
AXES = {"test/accuracy": "test accuracy (%)", "test/loss": "test loss (nats)", "train/loss": "train loss (nats)"}
AXES |= {"stn/scale": "scale (side of sampled region / of image)"}
SCALES = (0.5, 1, 2, 5, 10, 20)  # ticks of a logarithmic axis


def collect(log_dir):
    """Adds the finished runs in `log_dir` to results.csv; one of the same settings there is replaced."""
    runs = read_runs()
    for path in sorted(Path(log_dir).glob("classification_experiment_*/run.json")):
        run = json.loads(path.read_text())
        number = int(run["experiment"].rpartition("_")[2])
        history = read_rows(path.with_name("metrics.csv"))
        if run["limit"] != 60000 or (len(history) < EPOCHS[number] and not collapsed(history)):
            print(f"left out, not a finished run on all images: {path.parent}")
            continue
        runs[number, run["seed"], run["dataset"], run["digits"]] = history, run["device"]
    with open(ASSETS / "results.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*RUN, "epoch", *TAGS])
        for key, (history, device) in sorted(runs.items()):
            writer.writerows([*key, device, row["epoch"], *(f"{row[tag]:.6g}" for tag in TAGS)] for row in history)


def read_rows(path):
    """Returns the rows of a CSV file of numbers, the whole ones as int."""
    with open(path, newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return [{key: int(value) if value.is_integer() else value for key, value in row.items()} for row in rows]


def read_runs():
    """Returns {(experiment, seed, dataset, digits): (history, device)} of results.csv."""
    runs = {}
    if (ASSETS / "results.csv").exists():
        with open(ASSETS / "results.csv", newline="") as file:
            for key, rows in groupby(csv.DictReader(file), key=lambda row: [row[name] for name in RUN]):
                history = [{"epoch": int(row["epoch"])} | {tag: float(row[tag]) for tag in TAGS} for row in rows]
                runs[int(key[0]), int(key[1]), key[2], key[3]] = history, key[4]
    return runs


def histories_by_experiment(dataset="cluttered"):
    """Returns {experiment: [history of each seed]} of the runs on a dataset with the full digits."""
    histories = {}
    for (number, _, *data), (history, _) in read_runs().items():
        if data == [dataset, "full"]:
            histories.setdefault(number, []).append(history)
    return histories


def read_published():
    """Returns {experiment: history} of the two published runs, with test accuracy and test loss."""
    published = {}
    with open(ASSETS / "published_runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            history = published.setdefault(int(row["experiment"].rpartition("_")[2]), [])
            figures = {"test/accuracy": float(row["test_accuracy_percent"]), "test/loss": float(row["test_loss"])}
            history.append({"epoch": int(row["epoch"])} | figures)
    return published


def read_deaths():
    """Returns {(experiment, seed, epoch): steps around the death of a transformer in it} of deaths.csv."""
    deaths = {}
    for row in read_rows(ASSETS / "deaths.csv"):
        deaths.setdefault((row["experiment"], row["seed"], row["epoch"]), []).append(row)
    return deaths


def published_collapse(history):
    """First epoch from which on the accuracy rounds to 11.3 or 11.4 % to the end, for curves that carry no `inside`."""
    alive = [row["epoch"] for row in history if not 11.25 <= row["test/accuracy"] < 11.45]
    return alive[-1] + 1 if alive[-1] < len(history) else None


def carry_on(history, epochs):
    """Continues a run that was stopped at its collapse with its last values, so that no median is over survivors."""
    return history + [history[-1] | {"epoch": epoch} for epoch in range(len(history) + 1, epochs + 1)]


def best_epoch(history):
    """The row of the highest test accuracy."""
    return max(history, key=lambda row: row["test/accuracy"])


def blind_epochs(history):
    """The epochs in which a run is collapsed."""
    return [row["epoch"] for row in history if collapsed([row])]


def survivors(histories, epochs):
    """Number of runs that are not collapsed before training and after epoch 1, 2, ..., `epochs`: one may come back."""
    blind = [set(blind_epochs(carry_on(history, epochs))) for history in histories]
    return [sum(epoch not in each for each in blind) for epoch in range(epochs + 1)]


def draw_runs(axes, histories, number, tag):
    """Draws each run as a thin line, dotted where its last values are carried on."""
    for i, history in enumerate(histories):
        label = f"{NAMES[number]} (n = {len(histories)})" if i == 0 else None
        rest = carry_on(history, EPOCHS[number])[len(history) - 1 :]
        for rows, style in ((history, "-"), (rest, ":")):
            curve = [row["epoch"] for row in rows], [row[tag] for row in rows]
            axes.plot(*curve, style, color=COLORS[number], linewidth=1, label=label if style == "-" else None)


def compare(runs, numbers, published, path):
    """Draws test accuracy, test loss and train loss of experiments over the epochs, the published runs dashed."""
    figure = Figure(figsize=(15, 5.5), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, tag in zip(panels, ("test/accuracy", "test/loss", "train/loss"), strict=True):
        for number in numbers:
            draw_runs(axes, runs[number], number, tag)
            if number in published and tag in published[number][0]:
                curve = [row["epoch"] for row in published[number]], [row[tag] for row in published[number]]
                axes.plot(*curve, "--", color=COLORS[number], label=f"{number}: published (n = 1)", linewidth=1.5)
        axes.set_xlabel("epoch", fontsize=14)
        axes.set_ylabel(AXES[tag], fontsize=14)
        axes.tick_params(labelsize=12)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=13)
    figure.savefig(path, dpi=100)


def what_collapses(runs, path):
    """Draws how many runs of each experiment are not collapsed, and their scale with each lost solution marked."""
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (number, histories) in enumerate(sorted(runs.items())):
        count = survivors(histories, EPOCHS[number])
        shifted = [value + 0.02 * place for value in count]  # so that equal curves do not hide each other
        label = f"{NAMES[number]} (n = {len(histories)})"
        left.step(range(len(count)), shifted, where="post", color=COLORS[number], linewidth=2, label=label)
        draw_runs(right, histories, number, "stn/scale")
        for history in histories:
            if lost := lost_solution(carry_on(history, EPOCHS[number])):
                right.plot(lost, history[lost - 1]["stn/scale"], "X", color=COLORS[number], markersize=11)
    cross = right.plot([], [], "X", color="grey", markersize=11, label="lost its solution")
    right.set_yscale("log")
    right.set_yticks(SCALES, map(str, SCALES))
    left.set_yticks(range(max(map(len, runs.values())) + 1))
    left.set_ylabel("seeds that are not collapsed", fontsize=14)
    right.set_ylabel(AXES["stn/scale"], fontsize=14)
    for axes in (left, right):
        axes.set_xlabel("epoch", fontsize=14)
        axes.tick_params(labelsize=12)
    handles = [*left.get_legend_handles_labels()[0], *cross]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=13)
    figure.savefig(path, dpi=100)


def steps_of_death(path):
    """Draws what happens in the steps around the death of each transformer in deaths.csv."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    names = {
        "inside": "inside",
        "active": "active hidden units (fraction)",
        "gradient of the localization net": "gradient of the localization net (L2 norm)",
        "scale": AXES["stn/scale"],
    }
    for axes, (name, label) in zip(panels.flat, names.items(), strict=True):
        drawn = Counter()
        for (number, seed, epoch), rows in sorted(read_deaths().items()):
            curve = [row["step"] for row in rows], [row[name] for row in rows]
            style = {"color": COLORS[number], "linestyle": ("-", "--", ":", "-.")[drawn[number] % 4], "linewidth": 1}
            drawn[number] += 1
            axes.plot(*curve, **style, label=f"{NAMES[number]}, seed {seed}, epoch {epoch}")
        axes.set_ylabel(label, fontsize=14)
        axes.tick_params(labelsize=12)
    panels[1, 1].set_yscale("log")
    panels[1, 1].set_yticks(SCALES[:-2], map(str, SCALES[:-2]))
    panels[1, 1].minorticks_off()
    for axes in panels[-1]:
        axes.set_xlabel("steps since the transformer died", fontsize=14)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=13)
    figure.savefig(path, dpi=100)


def median_and_range(values):
    middle = f"{statistics.median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f} to {max(values):.2f})"


def each(events):
    """An event in each seed."""
    return ", ".join("-" if event is None else str(event) for event in events)


def collapse(history):
    """When a run is collapsed: "31" from there to its end, "4 to 26 and 28" where it came back; None if it never is."""
    spells = []
    for epoch in blind_epochs(history):
        if spells and spells[-1][-1] == epoch - 1:
            spells[-1].append(epoch)
        else:
            spells.append([epoch])
    ends = [f" to {spell[-1]}" if spell[-1] < len(history) else "" for spell in spells]
    return " and ".join(f"{spell[0]}{end}" for spell, end in zip(spells, ends, strict=True)) or None


def stands_still(history):
    """First epoch from which on scale and inside are the same to the run's end, or None if for under three epochs."""
    seen = [(row["stn/scale"], row["stn/inside"]) for row in history]
    first = next(i for i in range(len(seen)) if set(seen[i:]) == {seen[-1]})
    return first + 1 if len(seen) - first >= 3 else None


def results_table(runs, plain, published):
    """The README's table of results, in Markdown: `runs` on cluttered digits, `plain` ones, and the published."""
    lines = [
        "| experiment | seeds | best accuracy, % | collapsed in epoch | lost its solution in epoch "
        "| scale at epoch 20 | scale at best epoch | published: best accuracy, % | published: collapsed in epoch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows = [(NAMES[number], number, histories, published.get(number)) for number, histories in sorted(runs.items())]
    rows += [(f"{NAMES[number]}, plain digits", number, histories, None) for number, histories in sorted(plain.items())]
    for name, number, histories, theirs in rows:
        best = [best_epoch(history) for history in histories]
        carried = [carry_on(history, EPOCHS[number]) for history in histories]
        cells = (
            name,
            len(histories),
            median_and_range([row["test/accuracy"] for row in best]),
            each(map(collapse, histories)),
            each(map(lost_solution, carried)),
            median_and_range([history[19]["stn/scale"] for history in carried]),
            median_and_range([row["stn/scale"] for row in best]),
            f"{max(row['test/accuracy'] for row in theirs):.2f}" if theirs else "",
            published_collapse(theirs) if theirs else "",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def afterwards_table(runs):
    """The README's table of what became of runs that collapsed and were trained to their last epoch, in Markdown."""
    lines = [
        "| run | collapsed in epoch | inside meanwhile | still from epoch | best accuracy before, % | after, % |",
        "|---|---|---|---|---|---|",
    ]
    for (number, seed, dataset, digits), (history, _) in sorted(runs.items()):
        blind = blind_epochs(history)
        if not blind or len(history) < EPOCHS[number] or (dataset, digits) != ("cluttered", "full"):
            continue
        inside = [history[epoch - 1]["stn/inside"] for epoch in blind]
        before = history[: blind[0] - 1]
        after = [row for row in history[blind[0] :] if row["epoch"] not in blind]
        cells = (
            f"{number}, seed {seed}",
            collapse(history),
            " to ".join(dict.fromkeys(f"{bound:.1g}" for bound in (min(inside), max(inside)))),
            stands_still(history) or "-",
            *(f"{best_epoch(rows)['test/accuracy']:.2f}" if rows else "-" for rows in (before, after)),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


# what the README counts, in words such as "experiments 1 and 4: 2 of 3 collapsed"; the longer first, to be matched
COUNTED = {
    "with scale over 1 at the best epoch": lambda history, epochs: best_epoch(history)["stn/scale"] > 1,
    "collapsed or lost its solution": lambda history, epochs: (
        collapsed(history) or lost_solution(carry_on(history, epochs))
    ),
    "collapsed": lambda history, epochs: collapsed(history),
}


def count(text, runs):
    """Returns the README's text with every such count as it is in `runs`, wherever its lines break."""

    def counted(match):
        before, words = match[1], match[2]
        holds = COUNTED[" ".join(words.split())]
        numbers = [int(digit) for digit in re.findall(r"\d", before)]
        seen = [bool(holds(run, EPOCHS[n])) for n in numbers for run in runs.get(n, [])]
        return f"{before}{sum(seen)} of {len(seen)}{words}"

    words = "|".join(COUNTED).replace(" ", r"\s")
    return re.sub(rf"(experiments?\s\d[\d,\sand]*:\s)\d+ of \d+(\s(?:{words}))", counted, text)


def with_numbers(readme):
    """Returns the README's text with its tables and counts as results.csv has them."""
    runs, plain = histories_by_experiment(), histories_by_experiment("mnist")
    tables = {"results": results_table(runs, plain, read_published()), "afterwards": afterwards_table(read_runs())}
    for name, table in tables.items():
        head, tail = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        readme = re.sub(f"(?s){head}.*?{tail}", f"{head}{table}{tail}", readme)
    return count(readme, runs)


def main():
    if sys.argv[1:2] == ["collect"] and len(sys.argv) == 3:
        return collect(sys.argv[2])
    if sys.argv[1:]:
        sys.exit(__doc__)
    runs, published = histories_by_experiment(), read_published()
    for first, second in ((1, 2), (2, 3)):
        if first in runs and second in runs:
            compare(runs, (first, second), published, ASSETS / f"classification_experiment_{second}_vs_{first}.png")
    what_collapses(runs, ASSETS / "what_collapses.png")
    steps_of_death(ASSETS / "steps_of_death.png")
    readme = ROOT / "README.md"
    readme.write_text(with_numbers(readme.read_text()))


if __name__ == "__main__":
    main()
