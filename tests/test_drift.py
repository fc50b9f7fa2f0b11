"""How far the region drifts, and a learning rate that follows it."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.multiprocessing import start_processes
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from stn import DriftLR, STNClassifier, drift, predict_in_eval_mode

EYE = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
RIGHT = torch.tensor([[0.0, 0, 1], [0, 0, 0]])
IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def test_drift_is_the_movement_of_a_sampled_grid_over_the_side_of_its_region():
    before, after = torch.randn(2, 10, 2, 3, generator=torch.Generator().manual_seed(0)) / 4
    grids = [F.affine_grid(theta.double(), [10, 1, 200, 200], align_corners=False) for theta in (before, after)]
    moved = ((grids[1] - grids[0]) / 2).square().sum(dim=3).mean().sqrt()  # of the image's side, which is 2
    areas = after[:, 0, 0] * after[:, 1, 1] - after[:, 0, 1] * after[:, 1, 0]
    assert drift(before, after).item() == pytest.approx((moved / areas.abs().sqrt().mean()).item(), rel=1e-4)


# ------------------------------------------------------------------------------------------- a network that is made up


class Shift(nn.Module):
    """Looks `gain` times its weight to the right; its loss is the weight, so that SGD moves it by the rate a step."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.zeros(())), gain

    def forward(self, images):
        return (EYE + self.gain * self.weight * RIGHT).expand(len(images), 2, 3)


def steered(gain=1.0, lr=1.0, **options):
    net = Shift(gain)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    return net, optimizer, DriftLR(optimizer, net, IMAGES, **options)


def descend(net, optimizer):
    """One step of the optimizer; returns the rate that it was made with."""
    before = net.weight.item()
    net.weight.grad = torch.ones(())
    optimizer.step()
    return before - net.weight.item()


def windows(net, optimizer, schedule, count):
    """The drift and the rate of each of `count` windows."""
    seen = []
    for _ in range(count):
        rates = []
        for _ in range(schedule.every):
            rates.append(descend(net, optimizer))
            schedule.step()
        assert max(rates) == pytest.approx(min(rates), rel=1e-3)
        seen.append((schedule.drift, rates[0]))
    return seen


@pytest.mark.parametrize("gain", [0.03, 30])
def test_a_drift_that_is_proportional_to_the_rate_is_brought_to_the_target_and_stays(gain):
    """From a hundredth of the group's rate, too small or too large, by factors of 1/4 to 2."""
    net, optimizer, schedule = steered(gain, target=0.05)
    seen = windows(net, optimizer, schedule, 12)
    assert seen[0][1] == pytest.approx(0.01)
    for (moved, rate), (_, following) in zip(seen, seen[1:], strict=False):
        assert moved == pytest.approx(rate * 64 * gain / 2, rel=1e-3)
        assert following == pytest.approx(rate * min(max(0.05 / moved, 0.25), 2), rel=1e-3)
    assert [moved for moved, _ in seen[-5:]] == pytest.approx([0.05] * 5, rel=1e-2)
    assert optimizer.param_groups[0]["lr"] == 1


def test_other_windows_and_other_groups():
    net, other = Shift(), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([{"params": [other], "lr": 0.5}, {"params": net.parameters(), "lr": 1.0}])
    schedule = DriftLR(optimizer, net, IMAGES, target=0.05, every=5, group=1)
    other.grad = torch.ones(())
    seen = windows(net, optimizer, schedule, 12)
    assert seen[-1] == pytest.approx((0.05, 0.05 / 5 * 2), rel=1e-2) and other.item() == pytest.approx(-0.5 * 60)


def test_the_rate_never_exceeds_the_groups_own_and_falls_from_there():
    net, optimizer, schedule = steered(gain=1e-4, lr=0.1)
    rates = [rate for _, rate in windows(net, optimizer, schedule, 10)]
    assert rates == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.1, 0.1, 0.1], rel=1e-3)
    assert schedule.rate > 0.1
    optimizer.param_groups[0]["lr"], net.gain = 0.01, 1
    rates = [rate for _, rate in windows(net, optimizer, schedule, 4)]
    assert rates == pytest.approx([0.01, 0.01, 0.008, 0.002], rel=1e-3)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_length_of_a_gradient_does_not_matter_unless_it_is_0(factor):
    """That of the group's weights together, so that its direction is kept; other groups are left alone."""
    first, second, other = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = torch.optim.SGD([{"params": [first, second]}, {"params": [other]}], lr=100.0)
    schedule = DriftLR(optimizer, lambda images: (EYE + (first + second).sum()).expand(4, 2, 3), IMAGES)
    for weight, gradient in ((first, [2.0, 0]), (second, [-1.0, 2]), (other, [3.0, 4])):
        weight.grad = factor * torch.tensor(gradient)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()  # which moves nothing
    assert schedule.rate == 1 and torch.allclose(first, torch.tensor([-2 / 3, 0]))
    assert torch.allclose(second, torch.tensor([1 / 3, -2 / 3]))
    assert torch.allclose(other, -100 * factor * torch.tensor([3.0, 4]))


@pytest.mark.parametrize("how", ["", "None", "closure=None", "closure", "closure=closure"])
def test_a_step_may_be_given_a_closure(how):
    """Which computes the gradient, of any length, or finds it there."""
    net, optimizer, _ = steered()

    def closure():
        net.weight.grad = torch.tensor(7.0)
        return 3.0

    closure()
    returned = eval(f"optimizer.step({how})")
    assert net.weight.item() == pytest.approx(-0.01) and returned == (3.0 if how.endswith("closure") else None)


def test_steps_that_move_the_net_are_counted_and_that_there_are_none_is_said():
    net, optimizer, schedule = steered(every=2)
    for _ in range(70):
        optimizer.step()  # while the net is frozen and has no gradient
        schedule.step()
    rates = []
    for _ in range(6):
        rates.append(descend(net, optimizer))
        schedule.step()
        schedule.step()  # as in each batch of several whose gradients are accumulated
    assert rates == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.035, 0.035])
    for _ in range(62):  # as many may be skipped, in a row
        schedule.step()
    with pytest.raises(ValueError, match="made no step in 64: give DriftLR the one that makes them"):
        schedule.step()


def test_that_it_is_not_called_after_every_step_is_said_once():
    net, optimizer, schedule = steered()
    with pytest.warns(UserWarning, match="to be called after every step") as said:
        for epoch in range(100):
            descend(net, optimizer)
            descend(net, optimizer)
            schedule.step()
            assert bool(said) == (epoch >= 63)
    assert len(said) == 1


def test_a_second_one_takes_the_place_of_the_first_and_a_step_that_is_broken_off_leaves_no_trace():
    net, optimizer, _ = steered()
    DriftLR(optimizer, net, IMAGES)

    def run_out_of_memory(*_):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(run_out_of_memory)
    assert optimizer.param_groups[0]["lr"] == 1
    hook = optimizer.register_step_pre_hook(run_out_of_memory)  # when the rate is the smaller one
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    hook.remove()
    assert descend(net, optimizer) == pytest.approx(0.01) and optimizer.param_groups[0]["lr"] == 1


def test_a_ceiling_that_falls_to_0_for_a_while_takes_no_more_than_three_quarters_of_the_rate():
    net, optimizer, schedule = steered(gain=30, every=2)
    for _ in range(6):
        rate = schedule.rate
        for ceiling in (1.0, 0.0):
            optimizer.param_groups[0]["lr"] = ceiling
            descend(net, optimizer)
            schedule.step()
        assert schedule.rate >= rate / 4 > 0


SCHEDULES = {
    "cosine": lambda optimizer: CosineAnnealingLR(optimizer, T_max=9),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=2.0, total_steps=10, cycle_momentum=False),
    "warm-up from 0": lambda optimizer: LambdaLR(optimizer, lambda window: window / 9),
}


@pytest.mark.parametrize("which", SCHEDULES)
def test_another_schedule_sets_the_ceiling_and_is_not_disturbed(which):
    """Drift is too small throughout, and then too large; at a ceiling of 0 the rate is not lost."""
    alone = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    undisturbed, wanted = SCHEDULES[which](alone), []
    net, optimizer, schedule = steered(gain=1e-4)
    beside = SCHEDULES[which](optimizer)
    for _ in range(9):
        ceiling = alone.param_groups[0]["lr"]
        ((_, rate),) = windows(net, optimizer, schedule, 1)
        assert optimizer.param_groups[0]["lr"] == ceiling and rate <= ceiling * (1 + 1e-3)
        wanted.append((rate, ceiling))
        alone.step()
        undisturbed.step()
        beside.step()
    assert any(rate == pytest.approx(ceiling, rel=1e-3) and ceiling for rate, ceiling in wanted)
    assert any(rate < 0.5 * ceiling for rate, ceiling in wanted)


def test_a_drift_that_is_not_finite_makes_the_rate_a_quarter():
    net, optimizer, schedule = steered(target=0.64)
    windows(net, optimizer, schedule, 1)
    rate = schedule.rate
    net.gain = math.nan
    windows(net, optimizer, schedule, 1)
    assert math.isnan(schedule.drift) and schedule.rate == rate / 4


def test_a_localization_net_that_hardly_learns_is_said_once_and_only_at_the_full_rate():
    net, optimizer, schedule = steered(gain=0.3 * 0.05 / 32, target=0.05)  # at the full rate 0.3 of the target
    with pytest.warns(UserWarning) as said:
        windows(net, optimizer, schedule, 25)  # the rate is the full one from the eighth on
        windows(*steered(gain=0.36 * 0.05 / 32, target=0.05), 60)
        assert not said
        windows(net, optimizer, schedule, 30)
    assert "hardly learns (dead units, too small a rate, or nothing to follow)" in str(said.pop().message) and not said


@pytest.mark.filterwarnings("error")
def test_a_schedule_that_ends_at_0_is_no_net_that_hardly_learns():
    net, optimizer, schedule = steered(gain=1e-3)
    cosine = CosineAnnealingLR(optimizer, T_max=40)
    for _ in range(40):
        windows(net, optimizer, schedule, 1)
        cosine.step()
    optimizer.param_groups[0].pop("initial_lr")  # now by hand
    optimizer.param_groups[0]["lr"] = 1e-3
    windows(net, optimizer, schedule, 25)


@pytest.mark.parametrize("how", ["state_dict", "copy", "pickle"])
def test_it_goes_on_to_the_same_numbers_from_within_a_window(how):
    own = steered(gain=3000, target=0.05, every=2)
    windows(*own, 3)
    descend(*own[:2])
    own[2].step()
    if how == "state_dict":
        other = steered(gain=3000, target=0.05, every=2)
        for old, new in zip(own, other, strict=True):
            new.load_state_dict(pickle.loads(pickle.dumps(old.state_dict())))
    else:
        other = copy.deepcopy(own) if how == "copy" else pickle.loads(pickle.dumps(own))
    ended = []
    for part in (own, other):
        descend(*part[:2])
        part[2].step()
        ended.append((windows(*part, 4), part[0].weight.item(), part[2].rate))
    assert ended[0] == ended[1] and ended[0][0][0][0] != ended[0][0][3][0]


# -------------------------------------------------------------------------------------------------------- real networks


class Normalized(nn.Module):
    """A localization net with batch normalization, dropout, and dropout that only `self.training` turns off."""

    def __init__(self):
        super().__init__()
        self.localization = nn.Sequential(nn.Conv2d(1, 4, 7), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.fc_loc = nn.Linear(4 * 22 * 22, 6)
        nn.init.normal_(self.fc_loc.weight, std=0.01)

    def forward(self, images):
        features = F.dropout(self.localization(images), training=self.training)
        return self.fc_loc(features).view(-1, 2, 3)


WAYS = {  # to give the prediction of a network that asks for `self.training` itself
    "a method": lambda net: net.forward,
    "a function that names it": lambda net: lambda images: net.forward(images),
    "a compiled module": lambda net: torch.compile(net, backend="eager"),
}


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # its hooks fire twice, which does no harm
@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_a_prediction_is_made_in_eval_mode_and_leaves_no_trace(how):
    torch.manual_seed(0)
    net = Normalized()
    net.localization[2].eval()  # frozen by the user
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    modes = {module: module.training for module in net.modules()}
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    predict = how(net)
    schedule = DriftLR(optimizer, predict, IMAGES)
    net.fc_loc.bias.grad = torch.zeros(6)
    for _ in range(64):
        optimizer.step()
        schedule.step()
    assert getattr(predict, "training", True) and schedule.drift == 0
    assert modes == {module: module.training for module in net.modules()}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and net.fc_loc.weight.grad is None


def test_observers_of_quantization_do_not_see_the_images():
    """Those of quantization-aware training watch in eval mode too; one that is switched off stays so."""
    observer = {"observer": MovingAverageMinMaxObserver, "quant_min": 0, "quant_max": 255}
    watching, resting = FakeQuantize(**observer), FakeQuantize(**observer)
    resting.disable_observer()
    net = nn.Sequential(nn.Flatten(), watching, nn.Linear(28 * 28, 6), resting, nn.Unflatten(1, (2, 3)))
    net(IMAGES)
    seen = watching.activation_post_process.max_val.clone()
    predict_in_eval_mode(net, 100 * IMAGES)
    assert torch.equal(watching.activation_post_process.max_val, seen)
    assert watching.observer_enabled and not resting.observer_enabled
    net(100 * IMAGES)
    assert watching.activation_post_process.max_val > seen


def test_a_buffer_that_is_used_again_is_copied():
    net, buffer = Shift(), torch.empty(4, 2, 3)

    @torch.no_grad()
    def replay(images):
        return buffer.copy_(net(images))

    with pytest.warns(UserWarning, match="theta has no gradient"):
        schedule = DriftLR(optimizer := torch.optim.SGD(net.parameters(), lr=1.0), replay, IMAGES)
    ((moved, _),) = windows(net, optimizer, schedule, 1)
    assert moved == pytest.approx(0.32, rel=1e-3)


def test_a_prediction_that_has_no_gradient_in_eval_mode_is_followed_too():
    """As that of a recurrent net on a GPU; an error in a hook stands for its."""
    net, optimizer, _ = steered()
    net.weight.register_hook(lambda gradient: gradient.view(2))
    assert windows(net, optimizer, DriftLR(optimizer, net, IMAGES), 1) == [pytest.approx((0.32, 0.01), rel=1e-3)]


def test_wrong_arguments_are_one_clear_error():
    net = STNClassifier(28)
    of_net, of_all = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (net.stn, net))
    theta = net.stn.theta
    refused = {
        "target is 0, but should be a drift over 0": (of_net, theta, IMAGES, 0),
        "target is nan": (of_net, theta, IMAGES, math.nan),
        "every is 0": (of_net, theta, IMAGES, 0.1, 0),
        "the optimizer has no parameter group 1": (of_net, theta, IMAGES, 0.1, 1, 1),
        "images are empty or no tensor": (of_net, theta, IMAGES[:0]),
        "or no tensor": (of_net, theta, [*IMAGES]),
        "group 0 is 0, but should be the largest": (torch.optim.SGD(net.stn.parameters(), lr=0.0), theta, IMAGES),
        "predict returns <class 'tuple'>": (of_net, lambda images: (theta(images), 1), IMAGES),
        "weights that theta does not come from, of shape [10": (of_all, theta, IMAGES),
        "predict returns [4, 6]": (of_net, lambda images: theta(images).flatten(1), IMAGES),
        "theta is not finite": (of_net, lambda images: theta(images) / 0, IMAGES),
        "another theta each time": (of_net, lambda images: theta(images) + torch.rand(()), IMAGES),
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError) as error:
            DriftLR(*arguments)
        assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="the state is of 4 images, but here are 2: give the same"):
        DriftLR(of_net, theta, IMAGES[:2]).load_state_dict(DriftLR(of_net, theta, IMAGES).state_dict())


# ------------------------------------------------------------------------------------------------- other people's loops


ADAMS = {
    "plain": {"lr": 0.01},
    "fused": {"lr": 0.01, "fused": True},
    "a rate that is a tensor": {"lr": torch.tensor(0.01), "foreach": False},
}


@pytest.mark.parametrize("adam, batches", [*((name, 1) for name in ADAMS), ("plain", 3)])
def test_it_works_around_other_loops(adam, batches):
    """A step every batch, or every few, of losses under autocast: its rate is the schedule's, the group's is kept."""
    torch.manual_seed(0)
    model = STNClassifier(28)
    groups = [{"params": model.stn.parameters()}, {"params": model.classifier.parameters()}]
    optimizer = torch.optim.Adam(groups, **ADAMS[adam])
    schedule = DriftLR(optimizer, model.stn.theta, IMAGES, every=4)
    seen, wanted = [], []
    optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    for _ in range(24):
        optimizer.zero_grad()
        for _ in range(batches):
            with torch.autocast("cpu", torch.bfloat16, enabled=batches > 1):
                F.cross_entropy(model(torch.rand(8, 1, 28, 28)), torch.randint(10, (8,))).backward()
        wanted.append(schedule.rate)
        optimizer.step()
        schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.01)
    assert [float(rate) for rate in seen] == pytest.approx(wanted, rel=1e-6) and len(set(wanted)) > 3
    assert {type(rate) for rate in seen} == {type(ADAMS[adam]["lr"])}


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_of_the_gradients_changes_nothing(fused):
    weights = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = STNClassifier(28).eval()
        optimizer = torch.optim.SGD(model.stn.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        schedule = DriftLR(optimizer, model.stn.theta, IMAGES, every=2)
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(torch.rand(8, 1, 28, 28)), torch.arange(8))).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
        weights.append(torch.cat([weight.flatten() for weight in model.stn.parameters()]))
    assert torch.allclose(*weights, atol=1e-6) and schedule.rate > 0.004


def train_in_one_of_two_processes(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    net = nn.parallel.DistributedDataParallel(STNClassifier(28))
    groups = [{"params": net.module.stn.parameters()}, {"params": net.module.classifier.parameters()}]
    optimizer = torch.optim.Adam(groups, lr=0.01)
    schedule = DriftLR(optimizer, net.module.stn.theta, IMAGES, every=2)
    for _ in range(8):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.rand(8, 1, 28, 28)), torch.randint(10, (8,))).backward()
        optimizer.step()
        schedule.step()
    torch.save([schedule.state_dict(), net.module.state_dict()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_that_train_one_network_together_stay_together(tmp_path):
    start_processes(train_in_one_of_two_processes, (tmp_path,), nprocs=2, start_method="fork")
    (schedule, net), (other_schedule, other_net) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(value, other_net[name]) for name, value in net.items())
    assert schedule.pop("before").equal(other_schedule.pop("before")) and schedule == other_schedule
    assert schedule["steps"] == 8 and schedule["rate"] > 1e-4
