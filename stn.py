"""A spatial transformer network predicts an affine map, resamples the image with it, and classifies what it sees.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu: Spatial Transformer Networks, 2015, https://arxiv.org/abs/1506.02025

This file needs torch alone and can be copied as it is. Before a classifier of your own:

    from stn import SpatialTransformer, inside, scale, spread

    transformer = SpatialTransformer(in_size=(64, 96), out_size=32, channels=3)  # for RGB images of 64 x 96 pixels
    model = torch.nn.Sequential(transformer, classifier)  # the classifier sees (N, 3, 32, 32)
    optimizer = torch.optim.SGD(
        [{"params": transformer.parameters(), "lr": 0.001}, {"params": classifier.parameters()}], lr=0.01
    )

and log `scale`, `inside` and `spread` of `transformer.theta(images)` once an epoch, over all test images.
"""

import torch
import torch.nn.functional as F
from torch import nn


def sides(size):
    """Turns a side in pixels, or (height, width), into (height, width). Raises ValueError if it is neither."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"a size is {size}, but should be a side in pixels or (height, width)")
    return pair


class SpatialTransformer(nn.Module):
    """Resamples every image of a batch with an affine map that it predicts from that image.

    Args:
        in_size: side of the input images in pixels, or (height, width), at least 18.
        out_size: side of the output images in pixels, or (height, width).
        fill: value sampled outside the image. `grid_sample` itself knows 0 only, which is black in a raw image and
            grey in one normalized by (x - mean) / std; there, black is -mean / std.
        channels: of the images, in and out; 1 for grey, 3 for RGB.

    Raises:
        ValueError: `in_size` is too small, or a size is neither a side nor (height, width).
    """

    def __init__(self, in_size, out_size=28, fill=0.0, channels=1):
        super().__init__()
        self.in_size, self.out_size = sides(in_size), sides(out_size)
        self.fill, self.channels = float(fill), channels
        if min(self.in_size) < 18:
            raise ValueError(f"in_size is {in_size}, but the localization net needs images of at least 18 x 18 pixels")
        height, width = (((side - 6) // 2 - 4) // 2 for side in self.in_size)  # of the last feature map
        self.localization = nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * height * width, 32), nn.ReLU(), nn.Linear(32, 6))
        nn.init.zeros_(self.fc_loc[-1].weight)  # training starts from the identity map
        self.fc_loc[-1].bias = nn.Parameter(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def theta(self, images):
        """Predicts the affine maps (N, 2, 3) of the images (N, channels, height, width).

        `theta` maps a point (x, y, 1) of the output to the point of the input that is sampled there, both in
        `grid_sample`'s coordinates: x to the right, y down, the image's outer edges at -1 and 1.

        Raises ValueError if the images are not of `channels` and `in_size`.
        """
        height, width = self.in_size
        if images.dim() != 4 or list(images.shape[1:]) != [self.channels, height, width]:
            raise ValueError(f"images are {list(images.shape)}, but should be [N, {self.channels}, {height}, {width}]")
        return self.fc_loc(self.localization(images).flatten(1)).view(-1, 2, 3)

    def sample(self, images, theta):
        """Resamples images (N, C, H, W), of any range of values, with `theta` (N, 2, 3), bilinearly.

        Returns (N, C, *out_size).
        """
        height, width = self.out_size
        grid = F.affine_grid(theta, [images.size(0), 1, height, width], align_corners=False)
        return F.grid_sample(images - self.fill, grid, align_corners=False) + self.fill

    def forward(self, images):
        """Resamples images (N, channels, *in_size) to (N, channels, *out_size)."""
        return self.sample(images, self.theta(images))


class STNClassifier(nn.Module):
    """A spatial transformer to 28 x 28 pixels, and a small convolutional network that classifies what it returns.

    Args:
        in_size: side of the grey input images in pixels, or (height, width), at least 18.
        fill: value sampled outside the image, see `SpatialTransformer`.
        transformer: class of the transformer, called like `SpatialTransformer`.
    """

    def __init__(self, in_size=60, fill=0.0, transformer=SpatialTransformer):
        super().__init__()
        self.stn = transformer(in_size, out_size=28, fill=fill)
        self.classifier = nn.Sequential(
            nn.Conv2d(1, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(320, 50),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, 10),
        )

    def forward(self, images):
        """Returns the logits (N, 10) of images (N, 1, *in_size)."""
        return self.classifier(self.stn(images))


def scale(theta):
    """Side of the sampled region over the side of the image: sqrt(|det A|) with theta = [A | t], averaged.

    Under 1 the transformer zooms in, over 1 it shrinks the image. `theta` is (N, 2, 3), the result a scalar tensor,
    at least 1e-7, so that the gradient of a penalty on it is finite where det A is 0.
    """
    det = theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]
    return det.abs().clamp(min=1e-14).sqrt().mean()


def inside(theta, out_size=28):
    """Fraction (0 to 1, a scalar tensor) of the sampling grids' points that lie within the image, [-1, 1] x [-1, 1].

    `theta` is (N, 2, 3), `out_size` the side of the output in pixels, or (height, width). At 0 the transformer sees
    only fill.
    """
    height, width = sides(out_size)
    grid = F.affine_grid(theta, [theta.size(0), 1, height, width], align_corners=False)
    return (grid.abs() <= 1).all(dim=-1).float().mean()


def spread(theta):
    """Standard deviation of the regions' centres over the images: sqrt((var(t_x) + var(t_y)) / 2), theta = [A | t].

    At 0 all images are sampled at one place; digits uniform over 32 of 60 pixels, followed exactly, have 0.31.
    `theta` is (N, 2, 3), the result a scalar tensor in `grid_sample`'s coordinates, where the image's side is 2. To be
    logged and not trained on: its gradient is not finite at 0.
    """
    return theta[:, :, 2].var(dim=0, correction=0).mean().sqrt()
