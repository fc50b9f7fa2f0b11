"""A spatial transformer network predicts an affine map, resamples the image with it, and classifies what it sees.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu: Spatial Transformer Networks, 2015, https://arxiv.org/abs/1506.02025
"""

import torch
import torch.nn.functional as F
from torch import nn


class SpatialTransformer(nn.Module):
    """Resamples every image of a batch with an affine map that it predicts from that image.

    Args:
        in_size: side of the square input images in pixels, at least 18.
        out_size: side of the square output images in pixels.
        fill: value sampled outside the image. `grid_sample` itself knows 0 only, which is black in a raw image and
            grey in one normalized by (x - mean) / std; there, black is -mean / std.
    """

    def __init__(self, in_size, out_size=28, fill=0.0):
        super().__init__()
        features = ((in_size - 6) // 2 - 4) // 2  # side of the last feature map
        if features < 1:
            raise ValueError(f"in_size is {in_size}, but the localization net needs images of at least 18 x 18 pixels")
        self.in_size, self.out_size, self.fill = in_size, out_size, fill
        self.localization = nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=7),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * features**2, 32), nn.ReLU(), nn.Linear(32, 6))
        nn.init.zeros_(self.fc_loc[-1].weight)  # training starts from the identity map
        self.fc_loc[-1].bias = nn.Parameter(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def theta(self, images):
        """Predicts the affine maps (N, 2, 3) of the images (N, 1, in_size, in_size).

        `theta` maps a point (x, y, 1) of the output to the point of the input that is sampled there, both in
        `grid_sample`'s coordinates: x to the right, y down, the image's outer edges at -1 and 1.
        """
        if images.shape[1:] != (1, self.in_size, self.in_size):
            raise ValueError(f"images are {tuple(images.shape)}, but should be (N, 1, {self.in_size}, {self.in_size})")
        return self.fc_loc(self.localization(images).flatten(1)).view(-1, 2, 3)

    def sample(self, images, theta):
        """Resamples images (N, 1, H, W), of any range of values, with `theta` (N, 2, 3), bilinearly.

        Returns (N, 1, out_size, out_size).
        """
        grid = F.affine_grid(theta, (len(images), 1, self.out_size, self.out_size), align_corners=False)
        return F.grid_sample(images - self.fill, grid, align_corners=False) + self.fill

    def forward(self, images):
        """Resamples images (N, 1, in_size, in_size) to (N, 1, out_size, out_size)."""
        return self.sample(images, self.theta(images))


class STNClassifier(nn.Module):
    """A spatial transformer to 28 x 28 pixels, and a small convolutional network that classifies what it returns.

    Args:
        in_size: side of the square input images in pixels, at least 18.
        fill: value sampled outside the image, see `SpatialTransformer`.
    """

    def __init__(self, in_size=60, fill=0.0):
        super().__init__()
        self.stn = SpatialTransformer(in_size, out_size=28, fill=fill)
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
        """Returns the logits (N, 10) of images (N, 1, in_size, in_size)."""
        return self.classifier(self.stn(images))


def scale(theta):
    """Side of the sampled region over the side of the image: sqrt(|det A|) with theta = [A | t], averaged.

    Under 1 the transformer zooms in, over 1 it shrinks the image. `theta` is (N, 2, 3), the result a scalar tensor.
    """
    det = theta[:, 0, 0] * theta[:, 1, 1] - theta[:, 0, 1] * theta[:, 1, 0]
    return det.abs().sqrt().mean()


def inside(theta, out_size=28):
    """Fraction (0 to 1, a scalar tensor) of the sampling grids' points that lie within the image, [-1, 1] x [-1, 1].

    `theta` is (N, 2, 3), `out_size` the side of the square output in pixels. At 0 the transformer sees only fill.
    """
    grid = F.affine_grid(theta, (len(theta), 1, out_size, out_size), align_corners=False)
    return (grid.abs() <= 1).all(dim=-1).float().mean()
