"""The progress figure shows where the transformer looks, pixel by pixel; the GIF shows the figures."""

import math

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import experiment
from PIL import Image, ImageFont

import common
import stn


def affine(degrees, scale, x, y):
    """The theta of a region turned by an angle, of a scale, and moved."""
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return torch.tensor([[cosine, -sine, x], [sine, cosine, y]])


THETAS = {
    "the whole image": affine(0, 1, 0, 0),
    "a quarter turn": torch.tensor([[0.0, -1, 0], [1, 0, 0]]),
    "turned, scaled and moved": affine(30, 0.5, -0.2, 0.3),
    "partly outside the image": affine(20, 0.6, 0.9, -0.5),
    "outside the image, within the tile": affine(10, 0.3, 1.5, 1.5),
    "larger than the image": affine(-15, 1.3, 0.1, 0.0),
    "over the tile's four corners": affine(45, 2.5, 0, 0),
    "over the tile's right edge": affine(0, 0.5, 1.9, 0),
    "over the tile's upper left corner": affine(0, 0.5, -1.9, -1.9),
    "beyond the tile": affine(0, 0.5, 4, 0),
    "a line": affine(0, 1, 0, 0) * torch.tensor([[1.0], [0.0]]),
}
ORANGE, GREY = (255, 119, 0), (119, 119, 119)  # #ff8000 and #777777 in 16 levels


def is_color(pixels, color):
    return (pixels == color).all(-1)


def draw(images, thetas, title=""):
    """The figure of 16 images, uint8 (16, C, side, side), by a model that predicts these thetas, and its panels.

    A panel is its 16 tiles (16, 120, 120, 3), and what is between them.
    """
    model = stn.STNClassifier(images.shape[-1])
    model.stn = stn.SpatialTransformer(images.shape[-1], channels=images.shape[1])
    model.stn.theta = lambda _: thetas
    figure, panels = common.draw_figure(experiment(mean=0.4, std=0.2), model, images, title), []
    for left in (9, 501, 993):
        square, between, tiles = figure[58:541, left : left + 483], np.ones((483, 483), bool), []
        for i in range(16):
            place = slice(121 * (i // 4), 121 * (i // 4) + 120), slice(121 * (i % 4), 121 * (i % 4) + 120)
            tiles.append(square[place])
            between[place] = False
        panels.append((np.stack(tiles), square[between]))
    return figure, panels


@pytest.mark.parametrize("size, sides", [(28, (112, 56)), (120, (120, 60))])
def test_the_figure_shows_sixteen_images_with_room_around_them_in_the_middle(size, sides):
    """Raw pixels, whatever is normalized, in tiles of 120 x 120 with a line of a pixel between them."""
    torch.manual_seed(0)
    images = torch.randint(2, (16, 1, size // 4, size // 4), dtype=torch.uint8).repeat_interleave(4, 2) * 255
    images = images.repeat_interleave(4, 3)  # so that half of it can be shown
    figure, panels = draw(images, affine(0, 0.5, 4, 0).expand(16, 2, 3))  # no outline is in the way
    assert figure.shape == (550, 1485, 3) and figure.dtype == np.uint8
    assert len(np.unique(figure.astype(int) @ (1, 256, 65536))) <= 17
    seen = np.full((16, 28, 28), 102)  # the fill, 0, is a mean of 0.4
    for number, side, expected in ((0, sides[0], images[:, 0]), (1, sides[1], images[:, 0]), (2, 112, seen)):
        tiles, between = panels[number]
        room, expected = (120 - side) // 2, np.asarray(expected)
        inner = tiles[:, room : room + side, room : room + side]
        wanted = expected.repeat(4, 1).repeat(4, 2)[
            :, :: 4 * expected.shape[1] // side, :: 4 * expected.shape[1] // side
        ]
        assert (inner == wanted[..., None]).all(), f"panel {number}"
        assert len(np.unique(between)) == 1 and 0 < between.max() < 120
    line, ring = is_color(panels[1][0], GREY), np.ones((120, 120), bool)  # thin, around the image, and nothing else
    room, side = (120 - sides[1]) // 2, sides[1]
    ring[room : room + side, room : room + side] = False
    assert (line.any(0) <= ring).all() and (line == line[0]).all()
    for places in np.nonzero(line[0]):
        assert places.min() == room - 1 and places.max() == room + side
    assert len(np.unique(panels[1][0][:, ring & ~line[0]])) == 1


def test_the_figure_shows_images_of_any_side_in_grey_and_in_colours():
    """One colour an image, so that its square can be measured, also where it has to be shrunk."""
    for side, channels in ((64, 1), (224, 3)):
        colours = torch.arange(16 * channels).reshape(16, channels, 1, 1) * (110 // (16 * channels)) + 145
        images = colours.expand(16, channels, side, side).to(torch.uint8)
        _, panels = draw(images, affine(0, 0.5, 4, 4).expand(16, 2, 3))
        for number, room in ((0, 120), (1, 60)):
            for colour, tile in zip(colours[:, :, 0, 0].numpy(), panels[number][0].astype(int), strict=True):
                rows, columns = np.nonzero(abs(tile - np.broadcast_to(colour, 3)).max(axis=2) <= 17)
                assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == (room // side * side or room) and 60 in rows


def boundary(corners):
    """Points every quarter of a pixel along a polygon's edges."""
    edges = []
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edges.append(a + np.linspace(0, 1, 1 + int(4 * np.hypot(*(b - a))))[:, None] * (b - a))
    return np.concatenate(edges)


@pytest.mark.parametrize("size, shown", [(60, 60), (28, 56)])
def test_the_figure_draws_outlines_where_they_are_and_clips_them_to_their_tiles(size, shown):
    thetas = torch.stack([*THETAS.values(), *[affine(0, 1, 0, 0)] * 5])
    images = torch.randint(2, (16, 1, size, size), dtype=torch.uint8) * 255
    _, ((left, _), (tiles, between), (right, _)) = draw(images, thetas)
    assert not any(is_color(pixels, ORANGE).any() for pixels in (left, between, right))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    for name, tile, theta in zip(THETAS, tiles, thetas.numpy(), strict=False):
        polygon = 60 + shown / 2 * (corners @ theta[:, :2].T + theta[:, 2])  # in the tile's pixels
        points = boundary(polygon)
        rows, columns = np.nonzero(is_color(tile, ORANGE))
        pixels = np.stack([columns, rows], axis=1) + 0.5  # their centres
        visible = points[((points > 0.5) & (points < 119.5)).all(axis=1)]
        assert (len(visible) == 0) == (name == "beyond the tile") == (len(pixels) == 0), name
        if len(pixels):
            distance = np.linalg.norm(pixels[:, None] - points, axis=-1)
            assert distance.min(axis=1).max() < 2.5, name  # nothing is drawn beside the line, two pixels wide
            distance = np.linalg.norm(pixels[:, None] - visible, axis=-1)
            assert distance.min(axis=0).max() < 1.2, name  # and all of it is drawn, at whole pixels


def test_a_tile_twice_as_large_shows_everything_twice_as_large():
    places = []
    for side in (120, 240):
        tile = np.array(common.draw_tile(torch.ones(1, 60, 60), THETAS["turned, scaled and moved"], side))
        places.append([np.argwhere(is_color(tile, color)) for color in ((255, 255, 255), (255, 128, 0))])
    for small, large in zip(*places, strict=True):
        assert abs(2 * small.min(0) - large.min(0)).max() <= 3 and abs(2 * small.max(0) - large.max(0)).max() <= 3
        assert len(large) > 3 * len(small)


@pytest.mark.parametrize("words", [1, 40])
def test_the_whole_title_is_in_the_figure(words):
    """The strip above the panels, where the title stands, is white at its right edge, and black not far from it."""
    title = "normalized, of a long name, " * words + "epoch 99, COLLAPSED in epoch 31"
    figure, _ = draw(torch.zeros(16, 1, 28, 28, dtype=torch.uint8), affine(0, 1, 0, 0).expand(16, 2, 3), title)
    (inked,) = np.nonzero((figure[:30] < 128).any(axis=(0, 2)))
    assert inked.max() < figure.shape[1] - 8
    size = max(s for s in range(1, 17) if ImageFont.load_default(s).getlength(title) < figure.shape[1] - 18)
    assert inked.max() > 0.9 * ImageFont.load_default(size).getlength(title)


# -------------------------------------------------------------------------------------------------------------- the GIF


def test_the_gif_shows_every_figure_for_half_a_second_in_a_loop(whole_run):
    path = whole_run.folder / "progress.gif"
    frames = imageio.imread(path)
    figures = [imageio.imread(whole_run.folder / "figures" / f"{epoch:03}.png") for epoch in (0, 5, 7)]
    assert np.array_equal(frames, figures)  # few enough colours to be the same in a GIF
    assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])
    with Image.open(path) as gif:
        assert gif.info["duration"] == 500 and gif.info["loop"] == 0
