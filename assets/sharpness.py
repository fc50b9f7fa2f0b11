"""Measures how sharp the loss is where a run saved its weights, and adds it to sharpness.csv.

Gradient descent stays only where the sharpness is under about 2 / learning rate (Cohen et al., Gradient Descent on
Neural Networks Typically Occurs at the Edge of Stability, 2021, https://arxiv.org/abs/2103.00065). It is the largest
(algebraic) eigenvalue of the Hessian of the mean training loss by the localization net's weights, here on the first
2,048 training images as the run saw them, dropout off.

The Hessian is seen through central differences of the gradient. The loss has kinks (ReLU, max pooling, bilinear
sampling; before training, on 28 x 28, every point that is sampled lies on one), so that its eigenvalue depends on the
step of the difference: each row says for which step it holds, and with its residual how much it is one, see
`eigenvalues`. Kinks or not, `curvature` holds: that of the loss itself over a step to either side along the vector
that was found, (loss(w + step v) - 2 loss(w) + loss(w - step v)) / step^2. The largest in any direction is at least
that. Rows of the same run and epoch are replaced. A weights file takes one to two minutes of one core on 60 x 60, about
half a minute on 28 x 28.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from assets import ASSETS, Command, positive
from assets.rebuild import SavedRun
from assets.records import add_rows, key_columns
from common import RunError

IMAGES = 2048
STEPS = (0.001, 0.01)  # of the central difference, in the Euclidean norm of all the localization net's weights


def eigenvalues(gradient, weights, step):
    """Largest (algebraic) eigenvalue of a Hessian, the one that is largest in size, and the residual of the first.

    Args:
        gradient: function of weights (n,) that returns the loss's gradient (n,) there, both float64 numpy arrays.
        weights: float64 (n,), where the Hessian is taken.
        step: of the central difference, (gradient(w + step v) - gradient(w - step v)) / (2 step) with v of norm 1.

    Returns three floats and the first one's vector (n,), of norm 1. The eigenvalues are good to about 1 % where the
    loss is smooth over a step. Where it is not, the differences are no linear map, and the residual tells:
    |Hv - xv| / |x| with eigenvalue x and its vector v. The floats are 0 where the gradient does not change, with any
    vector; what ARPACK does not find in 10 restarts is nan.
    """

    def product(vector):
        norm = np.linalg.norm(vector)
        shift = step * vector / norm
        return (gradient(weights + shift) - gradient(weights - shift)) * (norm / (2 * step))

    def largest(which):
        options = {"v0": start, "ncv": 10, "tol": 0.01, "maxiter": 10}
        try:
            values, vectors = eigsh(hessian, k=1, which=which, **options)
        except ArpackNoConvergence:
            return math.nan, np.full_like(start, math.nan)
        return float(values[0]), vectors[:, 0]

    anywhere = np.random.default_rng(0).standard_normal(len(weights))  # seeded, so that results repeat
    start = product(anywhere)
    if not start.any():
        return 0.0, 0.0, 0.0, anywhere / np.linalg.norm(anywhere)  # ARPACK cannot begin with 0
    hessian = LinearOperator((len(weights), len(weights)), matvec=product, dtype=np.float64)
    in_size, vector = largest("LM")
    value, vector = (in_size, vector) if in_size > 0 else largest("LA")
    residual = float(np.linalg.norm(product(vector) - value * vector)) / abs(value)
    return value, in_size, residual, vector


def set_weights(model, weights):
    """Sets the localization net's weights to a float64 numpy array (n,), or what is like it."""
    parameters = list(model.stn.parameters())
    parts = torch.as_tensor(weights).split([parameter.numel() for parameter in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def loss_gradient(model, images, labels, normalize):
    """Returns the gradient of the mean loss on images, as a function of the localization net's weights (n,).

    It takes and returns float64 numpy arrays; the network computes in its own precision. Sets the network's weights.
    """
    parameters = list(model.stn.parameters())

    def gradient(weights):
        set_weights(model, weights)
        total = torch.zeros(len(weights), dtype=parameters[0].dtype)
        for part, part_labels in zip(images.split(256), labels.split(256), strict=True):
            loss = F.cross_entropy(model(normalize(part)), part_labels, reduction="sum") / len(images)
            # experiment 18's loss does not depend on these weights
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            total += torch.cat([gradient.flatten() for gradient in gradients])
        return total.double().numpy()

    return gradient


def curvature(loss, weights, shift):
    """Second difference of a loss, a function of weights (n,), over a shift (n,) to either side, over its square."""
    return (loss(weights + shift) - 2 * loss(weights) + loss(weights - shift)) / float(shift @ shift)


def measure(folder, every=1):
    """Yields the rows of sharpness.csv of the run in a folder, for each epoch with weights a list of two, see `STEPS`.

    scale, inside, spread and loss are of the same 2,048 training images, not of the test images as elsewhere; lr is
    the localization net's learning rate, the largest if its weights have several. Raises RunError if there is no run,
    or it has no weights at an epoch that `every` divides.
    """
    saved = SavedRun(folder)
    model, epochs = saved.model, [epoch for epoch in saved.saved_epochs() if epoch % every == 0]
    if not epochs:
        raise RunError(f"{folder} has no weights at an epoch that {every} divides: it needs its weights/*.pt")
    (images, labels), _ = saved.canvases(IMAGES)
    held = {id(parameter) for parameter in model.stn.parameters()}
    lr = max(group["lr"] for group in saved.optimizer.param_groups if held & {id(p) for p in group["params"]})

    def loss(weights):
        set_weights(model, weights)
        return saved.test(images, labels)["test/loss"]

    for epoch in epochs:
        saved.load(epoch)
        figures = saved.test(images, labels)  # it turns dropout off
        weights = torch.cat([weights.detach().flatten() for weights in model.stn.parameters()]).double().numpy()
        gradient = loss_gradient(model, images, labels, saved.experiment.normalize)
        rows = []
        for step in STEPS:
            *values, vector = eigenvalues(gradient, weights, step)
            found = dict(zip(("sharpness", "largest_in_size", "residual"), values, strict=True))
            found["curvature"] = curvature(loss, weights, step * vector)
            row = key_columns(saved.run, epoch) | {"step": step} | found
            row |= {name: figures[f"stn/{name}"] for name in ("scale", "inside", "spread")}
            rows.append(row | {"loss": figures["test/loss"], "lr": lr})
            print(f"{folder.name}, epoch {epoch}, step {step}: {found}", flush=True)
        yield rows


def add_sharpness(folders, every, assets=ASSETS):
    torch.set_num_threads(1)
    for folder in folders:
        for rows in measure(folder, every):  # minutes each
            add_rows(assets / "sharpness.csv", rows)


def main():
    command = Command(prog="python -m assets.sharpness", description=__doc__)
    command.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER")
    command.add_argument("--every", type=positive, default=1, metavar="N", help="at the epochs that N divides only")
    command.set_defaults(function=add_sharpness)
    command.run()


if __name__ == "__main__":
    main()
