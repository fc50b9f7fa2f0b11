"""What assets.figures draws from the CSV files: values, found in the figures before they become pixels."""

import io
import shutil
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
from conftest import ROOT
from made_up import TAGS, run, without
from matplotlib.colors import to_hex

import common
from assets import figures, records
from assets.study import read_all


def history(*epochs):
    """A history of (train loss, scale, inside, spread), an epoch each."""
    names = ("train/loss", "stn/scale", "stn/inside", "stn/spread")
    return [
        dict.fromkeys(TAGS, 0.5) | {"epoch": i, "test/accuracy": 50 + i / 10} | dict(zip(names, scalars, strict=True))
        for i, scalars in enumerate(epochs, start=1)
    ]


FINE, ONE_MAP, OFF = (1.0, 0.5, 0.9, 0.3), (1.2, 1.2, 0.7, 0.002), (2.3, 4.0, 0.01, 0.0)


@pytest.fixture
def assets(tmp_path):
    """An empty folder for CSV files."""
    folder = tmp_path / "assets"
    folder.mkdir()
    return folder


def whole(rows, experiment, **columns):
    """A run that got to its last epoch."""
    return run(rows, experiment, title=f"title of {experiment}", **{"epochs": len(rows)} | columns)


def axes_of(figure, ylabel=None, xlabel=None):
    """The first axes of a figure that are labelled so."""
    return next(a for a in figure.axes if a.get_ylabel() == ylabel or (xlabel and a.get_xlabel() == xlabel))


def lines(axes, color):
    """The curves (x, y) of a colour, those of the legend left out."""
    curves = [line for line in axes.lines if len(line.get_xdata()) and to_hex(line.get_color()).upper() == color]
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in curves]


# ------------------------------------------------------------------------------------------------------------- timeline


def test_a_strip_is_black_off_the_image_hatched_for_one_map_and_marked_where_the_solution_is_lost(assets):
    rows = history(*[FINE] * 3, *[ONE_MAP] * 2, *[OFF] * 6, FINE)
    colors, one_map, lost = figures.timeline_strip(rows)
    assert np.flatnonzero(colors.mask).tolist() == [5, 6, 7, 8, 9, 10]  # from epoch 6 to 11
    assert np.flatnonzero(one_map).tolist() == [3, 4]  # where it looks off the image as well, that is what is shown
    assert lost == 6 == common.lost_solution(rows)
    assert colors[0] == -1 and colors[3] == pytest.approx(np.log2(1.2))
    assert not figures.timeline_strip([row | {"stn/spread": None} for row in rows])[1].any()

    records.write_runs([whole(rows, 1)], assets)
    axes = axes_of(figures.timeline(read_all(assets)), xlabel="epoch")
    (image,), (hatched,) = axes.images, axes.collections
    assert (image.get_array().mask == colors.mask).all()
    assert to_hex(image.cmap.get_bad()) == "#000000"
    assert hatched.get_hatch() and {x for path in hatched.get_paths() for x in path.vertices[:, 0]} == {3.5, 4.5, 5.5}
    assert [list(line.get_xdata()) for line in axes.lines] == [[6]]


def test_the_timeline_has_a_strip_a_run_of_the_cures_in_their_order(assets):
    runs = [whole(history(*[FINE] * 100), 1), whole(history(*[FINE] * 80), 1, dataset="mnist")]
    runs += [whole(history(*[FINE] * 120), 21), whole(history(*[FINE] * 29, OFF), 21, seed=1, epochs=120)]
    runs += [whole(history(*[FINE] * 90), 7), whole(history(*[FINE] * 90), 99)]
    records.write_runs(runs, assets)
    axes = axes_of(figures.timeline(read_all(assets)), xlabel="epoch")
    titles = [" ".join(label.get_text().split()) for label in axes.get_yticklabels()]
    assert titles == ["1: title of 1", "21: title of 21", "7: title of 7"]
    assert [image.get_extent()[:2] for image in axes.images] == [[0.5, n + 0.5] for n in (100, 120, 30, 90)]
    texts = [text.get_text() for text in axes.texts]
    assert "62.0" in texts and "53.0, stopped" in texts  # the best accuracies of experiment 21


# ----------------------------------------------------------------------------------------------------- the two failures


def test_the_dose_has_a_point_a_seed_open_where_it_failed(assets):
    def dosed(pixels, seed, accuracy, last=FINE):
        rows = [row | {"test/accuracy": accuracy} for row in history(*[FINE] * 19, last)]
        return whole(rows, 26, seed=seed, variant=str(pixels or "unlimited"), max_motion=pixels)

    records.write_runs([dosed(0.1, 0, 94), dosed(0.1, 1, 92), dosed(3, 0, 80), dosed(None, 0, 11, OFF)], assets)
    axes = figures.dose(read_all(assets)).axes[0]
    points = [line for line in axes.lines if len(line.get_xdata())]
    assert [round(line.get_xdata()[0]) for line in points] == [0, 0, 1, 2]
    assert [line.get_ydata()[0] for line in points] == [94, 92, 80, 11]
    assert [line.get_markerfacecolor() == "none" for line in points] == [False] * 3 + [True]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1", "3", "none"]


# ---------------------------------------------------------------------------------------------------------------- rates


def test_scale_over_the_rate_has_a_point_a_seed_and_those_off_the_image_at_the_edge(assets):
    last = {0.001: (0.8, 0.9, 1.0), 0.01: (1.2, 1.4, None), 0.1: (1.9, None, None)}  # scale, or off the image
    runs = [
        whole(history(FINE, OFF if scale is None else (1.0, scale, 0.9, 0.3)), 17, variant=str(rate), seed=seed)
        for rate, scales in last.items()
        for seed, scale in enumerate(scales)
    ]
    records.write_runs(runs, assets)
    axes = axes_of(figures.rates(read_all(assets)), "scale after the last epoch")
    *points, (xs, medians) = lines(axes, figures.BLUE)
    assert [ys for _, ys in points] == [[0.8, 0.9, 1.0], [1.2, 1.4], [1.9]]
    assert medians == pytest.approx([0.9, 1.4, np.nan], nan_ok=True)  # off the image is larger than any scale
    assert [ys for _, ys in lines(axes, "#000000")] == [[1], [1, 1]]  # of the height of the axes
    assert xs == [0.001, 0.01, 0.1]


def test_each_data_set_has_a_curve_beside_the_others_those_that_nobody_knows_as_well(assets):
    datasets = ("cluttered", "fashion", "mnist")
    runs = [whole(history(row), 17, variant="0.1", dataset=dataset) for dataset in datasets for row in (FINE,)]
    runs.append(whole(history(OFF), 17, variant="0.2", dataset="fashion"))
    records.write_runs(runs, assets)
    axes = axes_of(figures.rates(read_all(assets)), "scale after the last epoch")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["plain digits, 28 x 28", "cluttered digits, 60 x 60", "fashion digits"]
    medians = [xs[0] for color, _ in figures.CURVES for xs, _ in lines(axes, color.upper())[-1:]]
    assert medians == pytest.approx([0.082, 0.1, 0.118])
    assert [ys for _, ys in lines(axes, "#000000")] == [[0.9]]


# ----------------------------------------------------------------------------------------------------------------- main


@pytest.mark.parametrize("tag", ["stn/scale", "stn/spread"])
def test_older_runs_that_lack_a_scalar_are_drawn_beside_newer_ones(tag):
    runs = [whole(history(*[FINE] * 20), experiment) for experiment in (1, 2, 21, 22)]
    runs.append(whole(history(*[FINE] * 20, OFF), 19, collapsed=21, failed=21))
    runs += [whole(history(*[FINE] * 20), 26, variant=variant) for variant in ("0.03", "unlimited")]
    runs += [whole(history(FINE), 17, variant=rate) for rate in ("0.1", "0.2")]
    older = [other | {"seed": 1, "history": without(other["history"], tag)} for other in runs]
    read = SimpleNamespace(counted=runs + older)
    for draw in (figures.timeline, figures.dose, figures.rates):
        draw(read).savefig(io.BytesIO())


def test_the_committed_figures_and_tables_are_made_of_the_committed_files(tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    assets.mkdir()
    for path in (*(ROOT / "assets").glob("*.csv"), ROOT / "assets" / "states.npz"):
        shutil.copy(path, assets)
    text = "before ²\n<!-- cures -->\nspoilt\n<!-- end of cures -->\nafter ·\n"
    pages = (tmp_path / "README.md", assets / "README.md", assets / "more.md")
    for page in pages:
        page.write_bytes(text.encode())
    figures.make_page(assets)

    table = figures.make_tables(assets)["cures"]
    for page in pages:
        assert page.read_bytes().decode() == text.replace("spoilt\n", table)
    made = {path.name: imageio.imread(path) for path in assets.glob("*.png")}
    assert set(made) == set(figures.FIGURES)
    for name, image in made.items():
        assert image.shape == imageio.imread(ROOT / "assets" / name).shape, name  # not pixels: fonts differ
        assert (image[0, 0] == 255).all()  # a white page, opaque


def test_every_figure_has_its_place_in_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *(ROOT / "assets").glob("*.md")))
    assert [name for name in figures.FIGURES if name not in pages] == []
