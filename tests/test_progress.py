"""The progress figure shows where the transformer looks, pixel by pixel; the GIF shows the figures."""

import math

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import experiment
from PIL import Image, ImageColor

import common
import stn


def affine(degrees, scale, x, y):
    """The theta of a region turned by an angle, of a scale, and moved."""
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[cosine, -sine, x], [sine, cosine, y]])


THETAS = {
    "turned, scaled and moved": affine(30, 0.5, -0.2, 0.3),
    "partly outside the image": affine(20, 0.6, 0.9, -0.5),
    "over the tile's four corners": affine(45, 2.5, 0, 0),
    "over the tile's upper left corner": affine(0, 0.5, -1.9, -1.9),
    "beyond the tile": affine(0, 0.5, 4, 0),
    "a line": affine(0, 1, 0, 0) * torch.tensor([[1.0], [0.0]]),
}


def tile_of(image, theta=None, side=120):
    return np.array(common.draw_tile(image, theta, side))


@pytest.mark.parametrize("size, channels", [(28, 1), (60, 3), (120, 1), (240, 3)])
def test_a_tile_shows_an_image_of_any_side_in_its_middle_enlarged_by_a_whole_factor_or_shrunk(size, channels):
    image = torch.randint(2, (channels, size // 4, size // 4), generator=torch.Generator().manual_seed(size)) * 255
    image = image.to(torch.uint8).repeat_interleave(4, 1).repeat_interleave(4, 2)  # so that half of it can be shown
    away = affine(0, 0.5, 4, 0)  # no outline is in the way
    for theta, room, grey in ((None, 120, "#595959"), (away, 60, "#333333")):
        shown = room // size * size or room
        start, end = (120 - shown) // 2, (120 + shown) // 2
        wanted = np.zeros((120, 120, 3), np.uint8) + np.uint8(ImageColor.getrgb(grey))
        if theta is not None:
            wanted[start - 1 : end + 1, start - 1 : end + 1] = ImageColor.getrgb("#777777")
        pixels = F.interpolate(image[None].float(), (shown, shown), mode="area")[0].round().permute(1, 2, 0)
        wanted[start:end, start:end] = pixels
        assert np.array_equal(tile_of(image, theta), wanted)
        assert np.array_equal(tile_of(image, theta), tile_of(image / 255, theta))


def boundary(corners):
    """Points every quarter of a pixel along a polygon's edges."""
    edges = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edges.append(a + np.linspace(0, 1, 1 + int(4 * np.hypot(*(b - a))))[:, None] * (b - a))
    return np.concatenate(edges)


@pytest.mark.parametrize("size, shown, side", [(60, 60, 120), (28, 56, 120), (60, 120, 240)])
def test_outlines_are_drawn_where_they_are_and_clipped_to_the_tile(size, shown, side):
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    for name, theta in THETAS.items():
        points = boundary(side / 2 + shown / 2 * (corners @ theta[:, :2].T.numpy() + theta[:, 2].numpy()))
        tile = tile_of(torch.zeros(1, size, size), theta, side)
        rows, columns = np.nonzero((tile == ImageColor.getrgb("#ff8000")).all(axis=-1))
        pixels = np.stack([columns, rows], axis=1) + 0.5  # their centres
        visible = points[((points > 0.5) & (points < side - 0.5)).all(axis=1)]
        assert (len(visible) == 0) == (name == "beyond the tile") == (len(pixels) == 0), name
        if len(pixels):
            distance = np.linalg.norm(pixels[:, None] - points, axis=-1)
            assert distance.min(axis=1).max() < 2.5 * side / 120, name  # nothing is beside the line
            distance = np.linalg.norm(pixels[:, None] - visible, axis=-1)
            assert distance.min(axis=0).max() < 1.2, name  # and all of it is drawn, at whole pixels


def test_the_figure_shows_sixteen_tiles_three_times():
    """Raw pixels, whatever is normalized: images, where the transformer looks in them, and what it returns."""
    torch.manual_seed(0)
    images, thetas = torch.randint(2, (16, 1, 60, 60), dtype=torch.uint8) * 255, torch.randn(16, 2, 3)
    thetas[0] = THETAS["beyond the tile"]
    model = stn.STNClassifier()
    model.stn.theta = lambda _: thetas
    figure = common.draw_figure(experiment(mean=0.4, std=0.2), model, images, "a title")
    assert figure.shape == (550, 1485, 3)
    returned = stn.SpatialTransformer(60, fill=0.4).sample(images.float() / 255, thetas)  # fill is 0 once normalized
    for i in range(16):
        tiles = tile_of(images[i]), tile_of(images[i], thetas[i]), tile_of(returned[i])
        for panel, (tile, left) in enumerate(zip(tiles, (9, 501, 993), strict=True)):
            y, x = 58 + 121 * (i // 4), left + 121 * (i % 4)
            shown = figure[y : y + 120, x : x + 120].astype(int)
            assert abs(shown - tile // 17 * 17).max() <= (17 if panel == 2 else 0), (panel, i)  # which is rounded


# -------------------------------------------------------------------------------------------------------------- the GIF


def test_the_gif_shows_every_figure_for_half_a_second_in_a_loop(whole_run):
    path = whole_run.folder / "progress.gif"
    frames = imageio.imread(path)
    figures = [imageio.imread(whole_run.folder / "figures" / f"{epoch:03}.png") for epoch in (0, 5, 7)]
    assert np.array_equal(frames, figures)  # few enough colours to be the same in a GIF
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    with Image.open(path) as gif:
        assert gif.info["duration"] == 500 and gif.info["loop"] == 0
