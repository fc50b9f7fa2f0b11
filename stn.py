"""A spatial transformer network predicts an affine map, resamples the image with it, and classifies what it sees.

Jaderberg, Simonyan, Zisserman, Kavukcuoglu: Spatial Transformer Networks, 2015, https://arxiv.org/abs/1506.02025

This file needs torch alone and can be copied as it is. Before a classifier of your own, for RGB of 64 x 96 pixels:

    transformer = SpatialTransformer(in_size=(64, 96), out_size=32, channels=3, slope=0.1)
    model = torch.nn.Sequential(transformer, classifier)  # the classifier sees (N, 3, 32, 32)
    groups = [{"params": transformer.parameters()}, {"params": classifier.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.001)
    schedule = DriftLR(optimizer, transformer.theta, images)  # 64 fixed ones of the training set

    optimizer.step()
    schedule.step()

and log `schedule.drift`, and `scale`, `inside` and `spread` of `transformer.theta(images)` over all test images.
"""

import inspect
import math
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from numbers import Integral
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils import get_total_norm


def sides(size):
    """Turns a side in pixels, or (height, width), into (height, width). Raises ValueError if it is neither."""
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side > 0 for side in pair):
        raise ValueError(f"a size is {size!r}, but should be a side in pixels or (height, width)")
    return int(pair[0]), int(pair[1])


@fx.wrap  # torch.fx takes such a function as a whole, and what is in it need not be traced
def check_images(images, channels: int, height: int, width: int):
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"images are a {type(images)}, but should be a tensor")
    if list(images.shape[1:]) != [channels, height, width]:
        raise ValueError(f"images are {list(images.shape)}, but should be [N, {channels}, {height}, {width}]")


@fx.wrap
def linear(features, weight, bias):
    """F.linear without autocast: in 8 bits, a region of 512 pixels could be placed to a pixel or two only."""
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features.to(weight.dtype), weight, bias)


@fx.wrap
def affine_grid(theta, height: int, width: int):
    """F.affine_grid without autocast and in float32 at least, for the same reason; of no images too."""
    theta = theta.to(torch.promote_types(theta.dtype, torch.float32))
    if theta.size(0) == 0:
        return theta.new_empty([0, height, width, 2])
    with torch.autocast(theta.device.type, enabled=False):
        return F.affine_grid(theta, [theta.size(0), 1, height, width], align_corners=False)


class Regression(nn.Linear):
    """The linear layer that `theta` comes from: zero weights and the identity's bias to begin with.

    An initialization of your own, of all linear layers, has to leave it out, or to call its `reset_parameters` last.
    """

    def __init__(self, features):
        super().__init__(features, 6)

    @torch.no_grad()
    def reset_parameters(self):
        super().reset_parameters()  # which draws the random numbers that it always drew
        self.weight.zero_()
        self.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, features):
        return linear(features, self.weight, self.bias)


class SpatialTransformer(nn.Module):
    """Resamples every image of a batch with an affine map that it predicts from that image.

    Args:
        in_size: side of the input images in pixels, or (height, width), at least 18.
        out_size: side of the output images in pixels, or (height, width).
        fill: value sampled outside the image, one or one a channel. `grid_sample` itself knows 0 only, which is black
            in a raw image and grey in one normalized by (x - mean) / std; there, black is -mean / std.
        channels: of the images, in and out; 1 for grey, 3 for RGB.
        slope: of the localization net's LeakyReLUs where their input is negative; 0 for ReLUs, whose units can die.

    Raises ValueError if `in_size` is too small, a size is neither a side nor (height, width), or `fill` is not finite.
    """

    def __init__(self, in_size, out_size=28, fill=0.0, channels=1, slope=0.0):
        super().__init__()
        self.in_size, self.out_size, self.channels = sides(in_size), sides(out_size), int(channels)
        values = torch.as_tensor(fill, dtype=torch.float32, device="cpu").clone().view(-1, 1, 1)
        if len(values) not in (1, channels) or not values.isfinite().all():
            raise ValueError(f"fill is {fill}, but should be a finite number, or one for each of {channels} channels")
        self.register_buffer("fill", values)
        if min(self.in_size) < 18:
            raise ValueError(f"in_size is {in_size}, but the localization net needs images of at least 18 x 18 pixels")
        height, width = (((side - 6) // 2 - 4) // 2 for side in self.in_size)  # of the last feature map
        activation = partial(nn.LeakyReLU, slope) if slope else nn.ReLU
        self.localization = nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=7),
            nn.MaxPool2d(2),
            activation(),
            nn.Conv2d(8, 10, kernel_size=5),
            nn.MaxPool2d(2),
            activation(),
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * height * width, 32), activation(), Regression(32))

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        state_dict.setdefault(f"{prefix}fill", self.fill)  # of before it was kept
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def theta(self, images):
        """Predicts the affine maps (N, 2, 3) of the images (N, channels, height, width).

        `theta` maps a point (x, y, 1) of the output to the point of the input that is sampled there, both in
        `grid_sample`'s coordinates: x to the right, y down, the image's outer edges at -1 and 1.

        Raises ValueError if the images are not of `channels` and `in_size`.
        """
        check_images(images, self.channels, *self.in_size)
        return self.fc_loc(self.localization(images).flatten(1)).view(-1, 2, 3)

    def sample(self, images, theta):
        """Resamples images (N, C, H, W), of any range of values, with `theta` (N, 2, 3), to (N, C, *out_size).

        Of whole numbers it returns float32, since what lies between two pixels is none.
        """
        grid = affine_grid(theta, *self.out_size)
        shifted = images - self.fill.to(grid.dtype)  # so that fill is 0; in the grid's precision if that is higher
        sampled = F.grid_sample(shifted, grid.to(shifted.dtype), align_corners=False)  # bilinearly
        return (sampled + self.fill).to(torch.result_type(images, 0.5))

    def forward(self, images):
        """Resamples images (N, channels, *in_size) to (N, channels, *out_size)."""
        return self.sample(images, self.theta(images))


class STNClassifier(nn.Module):
    """A spatial transformer, and a small convolutional network that classifies what it returns.

    Args:
        in_size, fill, channels: see `SpatialTransformer`.
        transformer: called like `SpatialTransformer`; its `out_size`, 16 pixels or more, is what the classifier sees.
    """

    def __init__(self, in_size=60, fill=0.0, transformer=SpatialTransformer, channels=1):
        super().__init__()
        self.stn = transformer(in_size, fill=fill, channels=channels)
        height, width = (((side - 4) // 2 - 4) // 2 for side in self.stn.out_size)  # of the last feature map
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, 10, kernel_size=5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(10, 20, kernel_size=5),
            nn.Dropout2d(),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(20 * height * width, 50),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(50, 10),
        )

    def forward(self, images):
        """Returns the logits (N, 10) of images (N, channels, *in_size)."""
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

    At 0 the transformer sees only fill. `theta` is (N, 2, 3), `out_size` the output's side, or (height, width).
    """
    height, width = sides(out_size)
    parts = theta.split(64)  # the grids of all images at once could be gigabytes
    counts = [(affine_grid(part, height, width).abs() <= 1).all(dim=-1).sum() for part in parts]
    return sum(counts) / (len(theta) * height * width)


def spread(theta):
    """Standard deviation of the regions' centres over the images: sqrt((var(t_x) + var(t_y)) / 2), theta = [A | t].

    At 0 all images are sampled at one place; digits uniform over 32 of 60 pixels, followed exactly, have 0.31.
    `theta` is (N, 2, 3), the result a scalar tensor in `grid_sample`'s coordinates, where the image's side is 2. To be
    logged and not trained on: its gradient is not finite at 0.
    """
    return theta[:, :, 2].var(dim=0, correction=0).mean().sqrt()


def motion(before, after, size):
    """How far a change of `theta` moves the sampling points, in pixels of the input: a scalar tensor.

    The root of the mean square over the images and over the region, in closed form: the mean of u u^T over the output's
    [-1, 1] x [-1, 1] is I / 3. A bilinear sample's gradient holds between neighbouring pixels, that is for a pixel.

    `before` and `after` are (N, 2, 3), else it raises ValueError; `size` is the input's side, or (height, width).
    """
    if before.shape[1:] != (2, 3) or after.shape != before.shape:
        raise ValueError(f"theta is {list(before.shape)} and {list(after.shape)}, but should be [N, 2, 3] both times")
    height, width = sides(size)
    dtype = torch.promote_types(before.dtype, torch.float32)
    change = after.to(dtype) - before.to(dtype)
    squares = change[:, :, 2] ** 2 + (change[:, :, :2] ** 2).sum(dim=2) / 3
    return (squares * change.new_tensor([width / 2, height / 2]) ** 2).sum(dim=1).mean().sqrt()


def drift(before, after):
    """How far a change of `theta` moves the sampling points, as a fraction of the sampled region's side afterwards.

    A scalar tensor without a unit; over 64 steps of training 0.035 is one to aim for. `before`, `after` are (N, 2, 3).
    """
    return motion(before, after, 1) / scale(after)


@contextmanager
def eval_mode(predict):
    """Puts all modules that `predict` calls or names into eval mode, and has observers of quantization see nothing."""
    named = [getattr(predict, "__self__", None)]  # which may ask for `self.training` without being called
    if inspect.isfunction(predict):
        variables = inspect.getclosurevars(predict)
        named += [*variables.nonlocals.values(), *variables.globals.values()]
    with ExitStack() as restore:

        @torch.compiler.disable
        def to_eval_mode(module, *_):
            for each in module.modules():
                if each.training:
                    each.training = False
                    restore.callback(setattr, each, "training", True)
                if getattr(each, "observer_enabled", False):
                    each.observer_enabled.zero_()
                    restore.callback(each.observer_enabled.fill_, 1)

        for owner in named:
            if isinstance(owner, nn.Module):
                to_eval_mode(owner)
        restore.enter_context(register_module_forward_pre_hook(to_eval_mode))
        yield


@torch.no_grad()
def predict_in_eval_mode(predict, images):
    """Returns a copy of `predict(images)`, with all modules that it calls or names in eval mode meanwhile.

    Without gradient and autocast. Observers of quantization-aware training are switched off too. Raises ValueError if
    that is not a `theta` (N, 2, 3) of N images.
    """
    with eval_mode(predict), torch.autocast(images.device.type, enabled=False):
        theta = predict(images)
    found = list(theta.shape) if isinstance(theta, torch.Tensor) else type(theta)
    if found != [len(images), 2, 3]:
        raise ValueError(f"predict returns {found}, but should return theta, [{len(images)}, 2, 3]")
    return theta.clone()


class DriftLR:
    """Sets the localization net's learning rate by how far its region drifts: a rate that need not be found.

        schedule = DriftLR(optimizer, model.stn.theta, images)  # before training
        ...
        optimizer.step()
        schedule.step()  # after every step

    Every 64 steps that the optimizer makes it measures the `drift` of the images' `theta` over these, and multiplies
    the rate by target / drift, by 1/4 at least and by 2 at most; by 1/4 where the drift is not finite. Steps in which
    no weight of the group has a gradient do not count. It starts with a hundredth of the group's rate, of its
    `initial_lr` if a scheduler has set that (of OneCycleLR, if that is made before it, max_lr / 25). The group's rate
    itself is the ceiling: other schedulers see and set it as ever, and within `optimizer.step()` the group has the
    smaller of it and `rate`. There the group's gradient is scaled to norm 1, so that single large ones do not count
    more than others; with SGD, 0.1 is then a ceiling that does not limit.

    Args:
        optimizer: its parameter group `group` holds weights of the localization net alone.
        predict: function of images that returns their `theta` (N, 2, 3), such as `SpatialTransformer.theta`. Modules
            that it calls are in eval mode meanwhile; nothing else should be random in it. What fails without autocast
            has to have it in `predict`.
        images: (N, C, H, W), as the network sees them, 64 fixed ones of the training set, the same in all processes
            that train one network together.
        target: drift to aim for, over 0.
        every: steps that a drift is measured over; 0.035 is a target for 64.
        group: index of the parameter group.

    Attributes:
        drift: the last that was measured, a number; None before that.
        rate: what steps are made with, unless the group's own is smaller.

    Raises ValueError if an argument is not as above; if the group holds weights that `theta` does not come from, where
    `predict` can be differentiated; and in `step()`, if the optimizer has made none in 64: of one that wraps another,
    give the inner one. Warns if `theta` has no gradient, if 64 steps were not followed by `step()`, and if the
    localization net hardly learns at its full rate, where no scheduler lowers that.

    A deep copy predicts with the copied net only where `predict` is its method. Not for Rprop, whose steps do not
    follow the rate, nor for LBFGS, which reads it before it asks for the gradient.
    """

    def __init__(self, optimizer, predict, images, target=0.035, every=64, group=0):
        if not 0 < target < math.inf:
            raise ValueError(f"target is {target}, but should be a drift over 0, such as 0.035")
        if every < 1:
            raise ValueError(f"every is {every}, but should be a number of steps from 1 on")
        if not isinstance(images, torch.Tensor) or len(images) == 0:
            raise ValueError("images are empty or no tensor, but should be some of the training set, such as 64")
        if not 0 <= group < len(optimizer.param_groups):
            raise ValueError(f"the optimizer has no parameter group {group}, but {len(optimizer.param_groups)} in all")
        self.optimizer, self.predict, self.images = optimizer, predict, images.detach().clone()
        self.target, self.every, self.group = target, every, group
        self.before = predict_in_eval_mode(predict, self.images)
        if not self.before.isfinite().all():
            raise ValueError("theta is not finite for these images")
        if not torch.equal(self.before, predict_in_eval_mode(predict, self.images)):
            raise ValueError("predict returns another theta each time: put all that is random in it into eval mode")
        self.check_group()
        self.drift, self.ceiling, self.stepped = None, None, False
        self.steps, self.missed, self.forgotten, self.idle = 0, 0, 0, 0
        self.full_rate = float(self.param_group.get("initial_lr", self.param_group["lr"]))  # a scheduler's, if any
        if self.full_rate == 0:
            raise ValueError(f"the rate of parameter group {group} is 0, but should be the largest it may have")
        self.rate = self.full_rate / 100
        self.add_hooks()

    @property
    def param_group(self):
        return self.optimizer.param_groups[self.group]

    def check_group(self):
        weights = [weight for weight in self.param_group["params"] if weight.requires_grad]
        with eval_mode(self.predict), torch.enable_grad():
            theta = self.predict(self.images)
        if weights and not theta.requires_grad:
            what = "theta has no gradient, so that the group's weights cannot be checked"
            warnings.warn(f"{what}: leave no_grad and detach out of predict", stacklevel=3)
        try:
            gradients = torch.autograd.grad(theta.sum(), weights, allow_unused=True)
        except (RuntimeError, ValueError):  # nothing to follow, or not in eval mode (cuDNN's recurrent nets)
            return
        others = [list(weight.shape) for weight, found in zip(weights, gradients, strict=True) if found is None]
        if others:
            what = f"parameter group {self.group} holds weights that theta does not come from, of shape {others[0]}"
            raise ValueError(f"{what}: give the localization net a group of its own")

    def add_hooks(self):
        """In the place of those that an earlier one has on the same group, as where a notebook's cell runs again."""
        hooks = vars(self.optimizer).setdefault("drift_hooks", {})
        for hook in hooks.get(self.group, ()):
            hook.remove()
        before = self.optimizer.register_step_pre_hook(self.before_step)
        hooks[self.group] = before, self.optimizer.register_step_post_hook(self.after_step)

    def before_step(self, optimizer, args, kwargs):
        closure = args[1] if len(args) > 1 else kwargs.pop("closure", None)
        if closure is None:
            self.limit_step()
            return None

        def closure_and_limit():
            loss = closure()
            self.limit_step()  # not before, so that a closure that is broken off leaves the rate as it was
            return loss

        return (optimizer, closure_and_limit), kwargs

    def limit_step(self):
        if self.ceiling is None:  # else the last step was broken off
            self.ceiling = self.param_group["lr"]
        if isinstance(self.ceiling, torch.Tensor):  # it stays one, for steps that are compiled
            self.param_group["lr"] = self.ceiling.clamp(max=self.rate)
        else:
            self.param_group["lr"] = min(self.ceiling, self.rate)
        gradients = [weight.grad for weight in self.param_group["params"] if weight.grad is not None]
        self.frozen = not gradients
        norm = get_total_norm(gradients).clamp(min=1e-6)
        if getattr(self.optimizer, "grad_scale", None) is not None:
            norm = norm / self.optimizer.grad_scale  # which a fused optimizer divides by itself
        for gradient in gradients:
            gradient.div_(norm)

    def after_step(self, *_):
        if self.ceiling is None:  # the second time, of a class whose step calls that of its base
            return
        self.param_group["lr"], self.ceiling = self.ceiling, None
        if self.stepped:
            self.forgotten += 1
            if self.forgotten == 64:
                warnings.warn("DriftLR's step() is to be called after every step of the optimizer", stacklevel=2)
        self.stepped, self.missed = True, 0

    def step(self):
        """To be called after every `optimizer.step()`."""
        if not self.stepped:  # as while gradients are accumulated
            self.missed += 1
            if self.missed == 64:
                raise ValueError(f"the optimizer made no step in {self.missed}: give DriftLR the one that makes them")
            return
        self.stepped = False
        if self.frozen:
            return
        self.steps += 1
        if self.steps % self.every:
            return
        after = predict_in_eval_mode(self.predict, self.images)
        moved = drift(self.before, after)
        self.drift, self.before = moved.item(), after
        factor = (self.target / moved).clamp(0.25, 2).nan_to_num(0.25).item()
        ceiling = float(self.param_group["lr"])
        limited = self.rate >= ceiling
        if factor < 1 or not limited:
            self.rate = max(factor * min(self.rate, ceiling), self.rate / 4)
        untouched = ceiling == self.full_rate  # by a schedule, which may end at 0
        # Dead nets had 0.1 to 0.3 of the target at their full rate, nets that learned 0.4 and more.
        self.idle = self.idle + 1 if limited and untouched and self.drift < self.target / 3 else 0
        if self.idle == 20:
            what = "the localization net hardly learns (dead units, too small a rate, or nothing to follow)"
            warnings.warn(f"drift is {self.drift:.2g} at the full learning rate: {what}", stacklevel=2)

    def state_dict(self):
        return {name: getattr(self, name) for name in ("rate", "drift", "steps", "idle", "before")}

    def load_state_dict(self, state):
        if len(state["before"]) != len(self.images):
            what = f"the state is of {len(state['before'])} images, but here are {len(self.images)}"
            raise ValueError(f"{what}: give the same ones")
        vars(self).update(state)
        self.before = state["before"].to(self.images.device)

    def __setstate__(self, state):  # of a copy, whose optimizer has lost its hooks
        vars(self).update(state)
        self.add_hooks()


def check_limit(images, parameters, pixels):
    if math.isnan(pixels) or pixels <= 0:
        raise ValueError(f"pixels is {pixels}, but should be over 0")
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images are {list(images.shape)}, but should be [N, channels, height, width] with N over 0")
    if any(hasattr(each, "left") and not torch.equal(each, each.left.to(each)) for each in parameters):
        what = "the weights are not what the last limited step left: they were loaded anew"
        warnings.warn(f"{what}, or the optimizer keeps weights of its own and steps are not limited", stacklevel=4)


def shorten(step, parameters, old, moved, pixels):
    """Takes parameters back along a step, towards what they were, until `moved()` is at most `pixels`.

    Each keeps what is left of it, for `check_limit`.
    """
    new = [parameter.detach().clone() for parameter in parameters]
    if not get_total_norm(new).isfinite():
        step.motion = step.motion.new_tensor(math.inf)  # else a bias of -inf before a ReLU would not show in theta
    while step.kept and step.motion > pixels:
        # Motion is about proportional to the step, so that the first try is mostly the last.
        step.kept *= 0.99 * (pixels / step.motion).item()
        if step.kept <= 1e-6:
            step.kept, new = 0.0, old
        for parameter, start, end in zip(parameters, old, new, strict=True):
            torch.lerp(start, end, step.kept, out=parameter.detach())
        step.motion = moved()
    if step.motion > pixels:
        what = f"the region moves by {step.motion:.2g} pixels with the modules' step taken back"
        raise ValueError(f"{what}: modules should be all that theta comes from")
    for parameter in parameters:
        parameter.left = parameter.detach().clone()


@contextmanager
def limit_motion(predict, images, modules, pixels=0.1):
    """Around `optimizer.step()`: shortens the localization net's part of a step that moves the region too far.

    Where the step moves the sampling points of `images` by more than `pixels` (see `motion`), the modules' parameters
    go back along it until it does not; the whole way if it makes them or `theta` infinite or nan. All else is as it
    would be without: other weights, buffers, gradients, the optimizer's state, random numbers, train and eval mode.
    Around `scaler.step(optimizer)` gradients need not be unscaled, and a step that it skips has a motion of 0.

    The parameters have to be the only copy of the weights: not with an optimizer that keeps others (schedule-free ones,
    float32 masters); it warns where such come back between two steps. Around the second step of SAM it limits the way
    from where the first has led. Take averages of the weights after the block, not in a hook of the step. With batch
    normalization the limit holds in eval mode; by a batch's statistics, eight times as far was measured. Autocast, if
    needed, has to be in `predict`.

    Yields an object that has, after the step, `motion`, a scalar tensor in pixels, inf if it is nan, and `kept`, the
    fraction of the step that is left. Raises ValueError if an argument is not as below (TypeError if modules are none),
    `theta` is not finite before the step (an image of nan), or depends on more than the modules.

    Args:
        predict: function of images that returns their `theta` (N, 2, 3), such as `SpatialTransformer.theta`.
        images: (N, C, H, W), some of those of the step, the same in all processes that train one network together.
        modules: the whole localization net, modules and no parameters, in eval mode while `theta` is predicted.
        pixels: of the images, over 0; `math.inf` measures and limits nothing.
    """
    several = nn.ModuleList([modules] if isinstance(modules, nn.Module) else modules)
    parameters = [parameter for parameter in several.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("nothing in the modules is trained, but they should be the localization net's")
    check_limit(images, parameters, pixels)
    if images.is_floating_point():
        images = images.to(parameters[0].dtype)  # they may be half of it under autocast

    before, old = predict_in_eval_mode(predict, images), [parameter.detach().clone() for parameter in parameters]
    if not before.isfinite().all():
        raise ValueError("theta is not finite before the step: leave out the images that it is not finite of")

    def moved():
        after = predict_in_eval_mode(predict, images)
        return motion(before, after, images.shape[2:]).nan_to_num(math.inf, posinf=math.inf)  # nan is too far as well

    step = SimpleNamespace(motion=None, kept=1.0)
    yield step
    step.motion = moved()
    if pixels != math.inf:
        shorten(step, parameters, old, moved, pixels)
