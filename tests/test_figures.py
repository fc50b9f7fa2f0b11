"""What assets.figures draws from the CSV files: values, found in the figures before they become pixels."""

import io
import shutil
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
from conftest import ROOT
from made_up import TAGS, run, without

import common
from assets import figures


def history(*epochs):
    """A history of (train loss, scale, inside, spread), an epoch each."""
    names = ("train/loss", "stn/scale", "stn/inside", "stn/spread")
    return [
        dict.fromkeys(TAGS, 0.5) | {"epoch": i, "test/accuracy": 50 + i / 10} | dict(zip(names, scalars, strict=True))
        for i, scalars in enumerate(epochs, start=1)
    ]


FINE, ONE_MAP, OFF = (1.0, 0.5, 0.9, 0.3), (1.2, 1.2, 0.7, 0.002), (2.3, 4.0, 0.01, 0.0)


def whole(rows, experiment, **columns):
    """A run that got to its last epoch."""
    return run(rows, experiment, title=f"title of {experiment}", **{"epochs": len(rows)} | columns)


# ------------------------------------------------------------------------------------------------------------- timeline


def test_a_strip_tells_where_it_looks_off_the_image_where_it_has_one_map_and_where_the_solution_is_lost():
    rows = history(*[FINE] * 3, *[ONE_MAP] * 2, *[OFF] * 6, FINE)
    colors, one_map, lost = figures.timeline_strip(rows)
    assert np.flatnonzero(colors.mask).tolist() == [5, 6, 7, 8, 9, 10]  # from epoch 6 to 11
    assert np.flatnonzero(one_map).tolist() == [3, 4]  # where it looks off the image as well, that is what is shown
    assert lost == 6 == common.lost_solution(rows)
    assert colors[0] == -1 and colors[3] == pytest.approx(np.log2(1.2))
    assert not figures.timeline_strip([row | {"stn/spread": None} for row in rows])[1].any()


def test_the_timeline_has_a_strip_a_run_of_the_choices_in_their_order():
    runs = [whole(history(*[FINE] * 100), 1), whole(history(*[FINE] * 80), 1, dataset="mnist")]
    runs += [whole(history(*[FINE] * 120), 21), whole(history(*[FINE] * 29, OFF), 21, seed=1, epochs=120)]
    runs += [whole(history(*[FINE] * 90), 10), whole(history(*[FINE] * 90), 99)]
    drawn = figures.timeline(SimpleNamespace(counted=runs)).axes
    axes = next(axes for axes in drawn if axes.get_xlabel() == "epoch")
    titles = [" ".join(label.get_text().split()) for label in axes.get_yticklabels()]
    assert titles == ["1: title of 1", "10: title of 10", "21: title of 21"]
    assert [image.get_array().shape[1] for image in axes.images] == [100, 90, 120, 30]
    texts = [text.get_text() for text in axes.texts]
    assert "62.0" in texts and "53.0, stopped" in texts  # the best accuracies of experiment 21


# ---------------------------------------------------------------------------------------- drift, and the two failures


def test_each_run_that_recorded_drift_is_a_point_at_what_became_of_it():
    def drifting(drift, *ends, experiment=1, **columns):
        rows = [row | {"stn/drift": drift, "stn/motion": 1.0} for row in history(*[FINE] * 49, *ends)]
        return whole(rows, experiment, epochs=100, **columns)

    runs = [drifting(0.03, FINE), drifting(0.2, OFF, seed=1), drifting(0.06, FINE, dataset="mnist")]
    runs.append(whole([row | {"stn/drift": 0.01} for row in history(*[FINE] * 20)], 36, epochs=20))
    axes = figures.drift(SimpleNamespace(runs=runs)).axes[0]
    found = {round(line.get_xdata()[0], 4): line for line in axes.lines if len(line.get_xdata()) == 1}
    assert set(found) == {0.03, 0.2, 0.06, 0.01}
    assert [round(found[drift].get_ydata()[0]) for drift in (0.03, 0.2, 0.06, 0.01)] == [0, 3, 0, 0]


def test_the_dose_is_drawn_in_the_order_of_its_targets_and_what_fails_at_the_bottom():
    def aiming_for(target, accuracy, seed=0):
        rows = [row | {"test/accuracy": accuracy} for row in history(*[FINE] * 20)]
        return whole(rows, 37, seed=seed, variant=f"adam_{target}", drift=target, optimizer="Adam(lr=0.001)")

    runs = [aiming_for(0.1, 90.0), aiming_for(0.1, 92.0, 1), aiming_for(0.15, 11.0), aiming_for(0.02, 94.0)]
    axes = figures.drift_dose(SimpleNamespace(counted=runs)).axes[0]
    line, *points = (line.get_xydata().tolist() for line in axes.lines[:4])
    assert line == [[0.02, 94], [0.1, 91], [0.15, 88]] and axes.get_yticklabels()[0].get_text() == "fails"
    assert points == [[[0.02, 94]], [[0.1, 90], [0.1, 92]], [[0.15, 88]]]


# ----------------------------------------------------------------------------------------------------------------- main


@pytest.mark.parametrize("tag", ["stn/scale", "stn/spread", "stn/motion"])
def test_older_runs_that_lack_a_scalar_are_drawn_beside_newer_ones(tag):
    runs = [whole(history(*[FINE] * 20), experiment) for experiment in (1, 2, 21, 22)]
    older = [other | {"seed": 1, "history": without(other["history"], tag)} for other in runs]
    read = SimpleNamespace(runs=runs + older, counted=runs + older)
    for draw in (figures.timeline, figures.drift):
        draw(read).savefig(io.BytesIO())


def test_the_committed_figures_and_tables_are_made_of_the_committed_files(tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    assets.mkdir()
    for path in (*(ROOT / "assets").glob("*.csv"), ROOT / "assets" / "states.npz"):
        shutil.copy(path, assets)
    text = "before ²\n<!-- choices -->\nspoilt\n<!-- end of choices -->\nafter ·\n"
    pages = (tmp_path / "README.md", assets / "README.md", assets / "more.md")
    for page in pages:
        page.write_bytes(text.encode())
    figures.make_page(assets)

    table = figures.make_tables(assets)["choices"]
    for page in pages:
        assert page.read_bytes().decode() == text.replace("spoilt\n", table)
    made = {path.name: imageio.imread(path) for path in assets.glob("*.png")}
    assert set(made) == set(figures.FIGURES)
    for name, image in made.items():
        assert image.shape == imageio.imread(ROOT / "assets" / name).shape, name  # not pixels: fonts differ


def test_every_figure_has_its_place_in_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "assets").glob("*.md")))
    assert [name for name in figures.FIGURES if name not in pages] == []
