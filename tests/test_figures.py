"""What make_figures.py computes from results.csv, that the README says nothing else, and the replay of a collapse."""

import csv
import shutil
import statistics
import sys
from itertools import combinations, product

import pytest
import torch
from conftest import ROOT

import common
import stn
from common import TAGS, collapsed, lost_solution

sys.path.insert(0, str(ROOT / "assets"))
import make_figures  # noqa: E402
import replay_death  # noqa: E402

README = " ".join((ROOT / "README.md").read_text().split())


def curve(*epochs):
    """A history of (train loss, accuracy, inside), scale 0.8."""
    return [
        dict.fromkeys(TAGS, 0.8) | {"epoch": i, "train/loss": loss, "test/accuracy": accuracy, "stn/inside": inside}
        for i, (loss, accuracy, inside) in enumerate(epochs, start=1)
    ]


LASTS = curve(*[(1.0, 90.0, 0.9)] * 100)
STOPPED = curve(*[(1.0, 80.0, 0.9)] * 39, (2.3, 11.35, 0.0))
COMES_BACK = curve(*[(1.0, 70.0, 0.9)] * 3, *[(2.3, 11.35, 0.001)] * 67, *[(1.0, 75.0, 0.9)] * 30)


def test_a_run_that_was_stopped_at_its_collapse_keeps_its_last_values():
    carried = make_figures.carry_on(STOPPED, 100)
    assert [row["epoch"] for row in carried] == [*range(1, 101)]
    assert carried[:40] == STOPPED and {row["test/accuracy"] for row in carried[39:]} == {11.35}
    assert collapsed(carried) == 40 and lost_solution(carried) == 40 and lost_solution(STOPPED) is None
    assert make_figures.carry_on(LASTS, 100) == LASTS


def test_survivors_are_the_runs_that_are_not_collapsed():
    count = make_figures.survivors([LASTS, STOPPED, STOPPED[:20] + [STOPPED[-1] | {"epoch": 21}]], 100)
    assert len(count) == 101
    assert count[20] == 3 and count[21] == count[39] == 2 and count[40] == count[100] == 1
    count = make_figures.survivors([STOPPED, COMES_BACK], 100)
    assert [count[epoch] for epoch in (3, 4, 39, 40, 70, 71, 100)] == [2, 1, 1, 0, 0, 1, 1]


def test_the_table_counts_every_seed():
    header, rule, line = make_figures.results_table({2: [LASTS, STOPPED, COMES_BACK]}, {}, {}).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|") == 10
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1:] == [
        "3",
        "80.00 (75.00 to 90.00)",
        "-, 40, 4 to 70",
        "-, 40, 4",
        "0.80 (0.80 to 0.80)",
        "0.80 (0.80 to 0.80)",
        "",
        "",
    ]


def test_a_run_may_collapse_more_than_once():
    twice = COMES_BACK[:80] + [row | {"epoch": row["epoch"] + 77} for row in COMES_BACK[3:23]]
    spells = [make_figures.collapse(history) for history in (LASTS, STOPPED, COMES_BACK, twice)]
    assert spells == [None, "40", "4 to 70", "4 to 70 and 81"]


def test_what_became_of_a_collapsed_run_is_told_only_where_it_was_trained_on():
    still = LASTS[:80] + curve(*[(2.3, 11.35, 0.0)] * 100)[80:]
    moves = [row | {"stn/scale": 1 + row["epoch"] % 2 / 10} for row in COMES_BACK]
    histories = {(1, 0): LASTS, (1, 1): STOPPED, (1, 2): still, (2, 0): moves}
    runs = {(*run, "cluttered", "full"): (history, "cpu") for run, history in histories.items()}
    _, _, *lines = make_figures.afterwards_table(runs).splitlines()
    assert lines == [
        "| 1, seed 2 | 81 | 0 | 81 | 90.00 | - |",
        "| 2, seed 0 | 4 to 70 | 0.001 | - | 70.00 | 75.00 |",
    ]
    assert make_figures.afterwards_table({(1, 2, "mnist", "full"): (still, "cpu")}).count("\n") == 2


def test_a_run_stands_still_when_neither_figure_changes_to_its_end():
    moves = [row | {"stn/scale": 0.8 + 0.001 * (row["epoch"] % 2)} for row in LASTS]
    assert make_figures.stands_still(LASTS) == 1 and make_figures.stands_still(moves) is None
    assert [make_figures.stands_still(moves[:49] + LASTS[49 : 49 + n]) for n in (1, 2, 3, 4)] == [None, None, 50, 50]


def test_plain_digits_have_a_row_of_their_own_beside_no_published_run():
    published = make_figures.read_published()
    *_, cluttered, plain = make_figures.results_table({1: [STOPPED]}, {1: [LASTS]}, published).splitlines()
    assert cluttered.startswith("| 1: normalized, SGD | 1 | 80.00 | 40 |") and cluttered.endswith("| 89.29 | 21 |")
    assert plain.startswith("| 1: normalized, SGD, plain digits | 1 | 90.00 | - |") and plain.endswith("|  |  |")


def test_the_published_runs_collapse_where_their_accuracy_is_that_of_one_class_to_the_end():
    published = make_figures.read_published()
    assert {number: make_figures.published_collapse(history) for number, history in published.items()} == {1: 21, 2: 74}
    assert (
        make_figures.published_collapse([{"epoch": 1, "test/accuracy": 11.35}, {"epoch": 2, "test/accuracy": 90}])
        is None
    )


def test_collecting_adds_finished_runs_and_leaves_out_others(tmp_path, monkeypatch, whole_run):
    monkeypatch.setattr(make_figures, "ASSETS", tmp_path)
    make_figures.collect(whole_run.folder.parent)  # 384 images, 7 epochs
    assert make_figures.read_runs() == {}

    def write_run(seed, history):
        folder = tmp_path / f"classification_experiment_2_seed{seed}"
        folder.mkdir(exist_ok=True)
        (folder / "run.json").write_text(
            f'{{"experiment": "classification_experiment_2", "seed": {seed}, "dataset": "cluttered", "digits": "full", '
            '"device": "cpu", "limit": 60000}'
        )
        with open(folder / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["epoch", *TAGS])
            writer.writeheader()
            writer.writerows(history)

    write_run(0, LASTS)
    write_run(1, STOPPED)
    write_run(2, LASTS[:50])
    for _ in range(2):
        make_figures.collect(tmp_path)
        assert make_figures.read_runs() == {
            (2, 0, "cluttered", "full"): (LASTS, "cpu"),
            (2, 1, "cluttered", "full"): (STOPPED, "cpu"),
        }


def test_the_readme_says_what_results_csv_says():
    readme = (ROOT / "README.md").read_text()
    runs, plain = make_figures.histories_by_experiment(), make_figures.histories_by_experiment("mnist")
    tables = {
        "results": make_figures.results_table(runs, plain, make_figures.read_published()),
        "afterwards": make_figures.afterwards_table(make_figures.read_runs()),
    }
    for name, table in tables.items():
        assert table.count("\n") >= 4  # two rows at least
        assert f"<!-- {name} -->\n{table}<!-- end of {name} -->" in readme
    assert make_figures.with_numbers(readme) == readme
    spoilt = readme.replace(tables["results"], "").replace(" collapsed in epoch | inside", "", 1)
    assert spoilt != readme and make_figures.with_numbers(spoilt) == readme


def test_counts_are_over_all_seeds_of_an_experiment():
    shrinks = [row | {"stn/scale": 1.2} for row in LASTS]
    text = "experiment 2: 7 of 9 collapsed, experiment 2: 0 of 9 with scale over 1 at the best epoch; 1 of 2 others"
    assert make_figures.count(text, {2: [LASTS, STOPPED, shrinks]}) == (
        "experiment 2: 1 of 3 collapsed, experiment 2: 1 of 3 with scale over 1 at the best epoch; 1 of 2 others"
    )
    loses = [row | {"train/loss": 1.6} if row["epoch"] > 50 else row for row in LASTS]
    text = "experiments 1,\n2 and 7: 7 of 9 collapsed, experiments 1 and 2: 7 of 9 collapsed or lost\nits solution"
    assert make_figures.count(text, {1: [loses, LASTS], 2: [STOPPED], 7: [LASTS]}) == (
        "experiments 1,\n2 and 7: 1 of 4 collapsed, experiments 1 and 2: 2 of 3 collapsed or lost\nits solution"
    )


def test_any_bound_of_inside_from_0_03_to_0_08_gives_the_same_collapses():
    def first(history, bound):
        return next((row["epoch"] for row in history if row["stn/inside"] < bound), None)

    collapses, at_one_percent = 0, {}
    for (number, seed, *_), (history, _) in make_figures.read_runs().items():
        assert first(history, 0.03) == first(history, 0.08) == collapsed(history)
        collapses += collapsed(history) is not None
        if first(history, 0.01) != collapsed(history):
            at_one_percent[number, seed] = first(history, 0.01), collapsed(history)
    assert collapses > 5 and at_one_percent == {(2, 3): (47, 43)}
    assert "0.01 gives 47 instead of 43 for that run, and the same for all others" in README


@pytest.mark.parametrize("number", make_figures.EPOCHS)
def test_the_epochs_are_those_of_the_scripts(number):
    script = (ROOT / f"classification_experiment_{number}.py").read_text()
    assert f"epochs={make_figures.EPOCHS[number]}," in script


def test_the_scripts_say_what_was_seen():
    for (number, seed, dataset, _), (history, _) in make_figures.read_runs().items():
        if (seed, dataset) == (0, "cluttered"):
            seen = (ROOT / f"classification_experiment_{number}.py").read_text().split("Seen with")[1]
            assert f"collapsed in epoch {collapsed(history)}" in seen if collapsed(history) else "collapsed" not in seen
            assert f"{max(row['test/accuracy'] for row in history):.1f} % at best" in seen


def test_a_transformer_dies_off_the_image_or_with_its_hidden_units():
    ways, last_active = {}, []
    for run, steps in make_figures.read_deaths().items():
        before = [step for step in steps if step["step"] < -100]
        after = [step for step in steps if step["step"] > 20]
        inside, scale, active, gradient = (
            [statistics.median(step[name] for step in part) for part in (before, after)]
            for name in replay_death.MEASURES
        )
        silent = active[1] == 0
        if silent:
            assert gradient[1] == 0 and inside[1] > 0.6 and scale[0] < 1.17 < scale[1]
            last_active.append(next(step["active"] for step in steps if step["step"] == -1))
            history = make_figures.read_runs()[*run[:2], "cluttered", "full"][0]
            assert min(row["stn/scale"] for row in history[run[2] :]) > 1.1 and len(history) == 100
            assert max(row["test/accuracy"] for row in history[run[2] :]) > 80
        else:
            assert inside[1] < 0.02 and active[1] > 0.15
            no_gradient = sum(step[replay_death.MEASURES[-1]] == 0 for step in after)
            assert (no_gradient < len(after) / 2) == (run in [(1, 2, 42), (6, 1, 10)])
        ways.setdefault(silent, []).append(run)
    assert ways == {
        True: [(4, 2, 17), (5, 2, 56), (6, 0, 55), (6, 1, 76)],
        False: [(1, 2, 42), (1, 3, 29), (4, 0, 32), (4, 3, 33), (5, 0, 4), (5, 1, 4), (6, 1, 10)],
    }
    assert (
        f"the active ones fall from {100 * min(last_active):.0f} to {100 * max(last_active):.0f} % to under 1" in README
    )
    last = make_figures.read_deaths()[6, 1, 10]
    assert all(step[replay_death.MEASURES[-1]] > 0 for step in last if step["step"] >= 0)
    assert f"is 0 in none of the {last[-1]['step']} steps that were recorded after" in README


def test_with_the_scale_of_normalization_sgd_fails_sooner():
    first = {}
    for (number, seed, dataset, _), (history, _) in make_figures.read_runs().items():
        if number not in (3, 7) and dataset == "cluttered":
            events = collapsed(history), lost_solution(make_figures.carry_on(history, 100))
            first[number, seed] = min((event for event in events if event), default=101)
    with_scale, without = ([first[number, 3] for number in numbers] for numbers in ((1, 4, 5), (2, 6)))
    assert (
        "Seed 3 was run to check it, and agrees: with the scale its runs failed in epochs "
        "{}, {} and {}, without in {} and {}.".format(*with_scale, *without)
    ) in README and max(with_scale) < min(without)
    scaled = sorted(first[run] for run in first if run[0] in (1, 4, 5))
    others = sorted(first[run] for run in first if run[0] in (2, 6))
    pairs = list(product(scaled, others))
    sooner = sum(mine < theirs for mine, theirs in pairs)
    assert max(scaled) <= 100 and sooner > 0.75 * len(pairs)
    assert (
        f"runs with SGD failed in epochs {scaled[0]} to {scaled[-1]} (median {statistics.median(scaled):g}), on others "
        f"in epochs {others[0]} to {max(epoch for epoch in others if epoch <= 100)} or not at all "
        f"(median {statistics.median(others):g})"
    ) in README
    assert f"the one with it failed first in {sooner} of {len(pairs)}." in README

    ties = sum(mine == theirs for mine, theirs in pairs)
    far = abs(sooner + ties / 2 - len(pairs) / 2)  # of the Mann-Whitney U from its mean
    rank = {
        epoch: statistics.mean(i for i, other in enumerate(sorted(scaled + others)) if other == epoch)
        for epoch in scaled + others
    }
    ranks = [rank[epoch] for epoch in scaled + others]
    middle = len(scaled) * statistics.mean(ranks)
    chance = [abs(sum(some) - middle) >= far - 1e-9 for some in combinations(ranks, len(scaled))]
    assert (
        f"{len(scaled)} runs with it and {len(others)} without would differ as much as these in 1 of "
        f"{len(chance) / sum(chance):.0f} cases"
    ) in README
    lasting = make_figures.read_runs()
    for number, seed in ((2, 2), (6, 2)):
        history = lasting[number, seed, "cluttered", "full"][0]
        scales = (
            f"from {history[19]['stn/scale']:.2f} to {history[99]['stn/scale']:.2f} (experiment {number}, seed {seed})"
        )
        assert scales in README and not collapsed(history) and not lost_solution(history)


def test_on_plain_digits_the_scale_creeps_up_and_nothing_dies():
    ((history,),) = make_figures.histories_by_experiment("mnist").values()
    assert len(history) == 100 and collapsed(history) is None and lost_solution(history) is None
    best, first, last = make_figures.best_epoch(history)["test/accuracy"], history[0], history[-1]
    assert f"It has {best:.1f} % at best and neither collapses nor loses" in README
    assert f"from {first['stn/scale']:.2f} in epoch 1 to {last['stn/scale']:.2f} in epoch 100" in README


def test_a_transformer_that_stands_still_never_came_back_and_one_that_moves_might():
    trained_on, back = [], {}
    for (number, seed, *_), (history, _) in make_figures.read_runs().items():
        blind = make_figures.blind_epochs(history)
        if not blind or len(history) < make_figures.EPOCHS[number]:
            continue
        trained_on.append((number, seed))
        seen = [(row["stn/scale"], row["stn/inside"]) for row in history]
        stands = [epoch for epoch in blind[:-2] if len(set(seen[epoch - 1 : epoch + 2])) == 1]  # for three epochs
        assert make_figures.stands_still(history) == (stands[0] if stands else None)
        if history[-1]["epoch"] - blind[0] >= len(blind):
            back[number, seed] = history
            while_blind = [history[epoch - 1] for epoch in blind if epoch + 1 in blind]  # all but a spell's last epoch
            assert all(row["stn/inside"] > 0 and row["test/accuracy"] < 12 for row in while_blind)
    words = "no one two three four five six seven eight nine ten".split()
    assert f"([{words[len(back)]} of {words[len(trained_on)]}](#some-came-back) came back" in README

    def between(name, rows):
        values = [row[name] for row in rows]
        return f"{min(values):.2f} to {max(values):.2f}"

    assert make_figures.blind_epochs(back[5, 1])[23:25] == [28, 29] and "saw for an epoch" in README  # in epoch 27
    again = back[6, 1][66:72]
    assert max(row["stn/inside"] for row in again) < 0.12 and "once more from epoch 67 to 72" in README
    assert min(row["stn/inside"] for row in back[6, 1][72:]) > 0.4 and back[6, 1][65]["stn/inside"] > 0.4
    last = back[2, 3][91:]
    assert f"from epoch 92 on, though inside is {between('stn/inside', last)}" in README
    assert max(row["test/accuracy"] for row in last) < 11.5 and back[2, 3][90]["test/accuracy"] > 80


def test_a_transformer_is_dead_when_it_sees_next_to_nothing_or_its_hidden_units_are_silent():
    alive, blind, dead = (
        {"inside": inside, "active": active} for inside, active in ((0.01, 0.01), (0.009, 0.3), (0.7, 0.009))
    )
    assert replay_death.death([alive, alive, blind, dead]) == 2
    assert replay_death.death([alive, dead, alive, blind]) == 1
    assert replay_death.death([alive, alive]) is None


def test_a_replay_is_the_run_and_measures_its_gradients(whole_run, tmp_path):
    steps = replay_death.replay(whole_run.folder, 6)  # exits if its loss is not the run's
    assert len(steps) == 6 and len(replay_death.replay(whole_run.folder, 7)) == 6

    (images, labels), _, _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier().to(memory_format=torch.channels_last)
    model.load_state_dict(common.load_state(whole_run.folder / "weights_005.pt"))
    torch.manual_seed(6)
    batch = torch.randperm(384)[:64]
    inputs = (images[batch].float() - 0.1307) / 0.3081
    torch.nn.functional.cross_entropy(model(inputs), labels[batch]).backward()
    norm = sum(weights.grad.double().square().sum().item() for weights in model.stn.localization.parameters()) ** 0.5
    theta = model.stn.theta(inputs)
    hidden = model.stn.fc_loc[0](model.stn.localization(inputs).flatten(1))
    wanted = (stn.inside(theta).item(), stn.scale(theta).item(), (hidden > 0).sum().item() / hidden.numel(), norm)
    assert tuple(steps[0]) == replay_death.MEASURES
    assert tuple(steps[0].values()) == pytest.approx(wanted, rel=1e-3)

    folder = shutil.copytree(whole_run.folder, tmp_path / "other")
    checkpoint = common.load_state(folder / "checkpoint.pt")
    checkpoint["history"][5]["train/loss"] += 1e-9
    common.write_state(folder / "checkpoint.pt", checkpoint)
    with pytest.raises(SystemExit, match="another machine's run"):
        replay_death.replay(folder, 6)


def test_a_replayed_death_is_added_to_the_others_and_one_of_a_run_that_lives_is_refused(
    whole_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(replay_death, "ASSETS", tmp_path)
    monkeypatch.setattr(make_figures, "ASSETS", tmp_path)

    def replay(*epoch):
        monkeypatch.setattr(sys, "argv", ["replay_death.py", str(whole_run.folder), *epoch])
        replay_death.main()

    for epoch, line in ((), "neither collapsed nor"), (("8",), "not one of its 7"), (("6",), "did not die in epoch 6"):
        with pytest.raises(SystemExit, match=line):
            replay(*epoch)
    with pytest.raises(SystemExit, match="RUN_FOLDER"):
        replay("last")
    assert not (tmp_path / "deaths.csv").exists()

    monkeypatch.setattr(replay_death, "death", lambda steps: 2)
    for epoch in ("6", "7", "6"):
        replay(epoch)
    deaths = make_figures.read_deaths()
    number = int(whole_run.folder.name.split("_")[2])
    assert [*deaths] == [(number, 0, 6), (number, 0, 7)]
    assert [step["step"] for step in deaths[number, 0, 6]] == [-2, -1, 0, 1, 2, 3]
    wanted = replay_death.replay(whole_run.folder, 6)[1]
    assert {name: deaths[number, 0, 6][1][name] for name in replay_death.MEASURES} == pytest.approx(wanted, rel=1e-4)
