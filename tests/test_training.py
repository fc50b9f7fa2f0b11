"""What decides a result: what the network sees, how it begins, how it is trained, and what is measured.

The numbers stand here as the design has them; none is read from the code that it checks.
"""

import copy
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PLAIN, ROOT, experiment, read_metrics, result, run

import common
import stn


@pytest.fixture(scope="module")
def digits():
    """Images and labels of 17 batches of plain digits."""
    return common.load_images("mnist", "nowhere", "embedded", 17 * 64)[0]


# ------------------------------------------------------------------------------------------ what it sees, how it begins


@pytest.mark.parametrize(
    "number, mean, std, fill",
    [(1, 0.1307, 0.3081, 0), (2, 0, 1, 0), (4, 0.1307, 0.3081, -0.1307 / 0.3081), (5, 0, 0.3081, 0), (6, 0.1307, 1, 0)],
)
def test_a_scripts_network_sees_normalized_canvases_and_its_fill_around_them(number, mean, std, fill):
    (script,) = common.read_script(ROOT / f"classification_experiment_{number}.py")
    _, (images, labels), *_ = common.load_images("cluttered", "nowhere", "embedded", 384)
    model, seen, sampled = common.make_network(script).model, [], []

    def look_away(batch):
        seen.append(batch.clone())
        return torch.tensor([[1.0, 0, 9], [0, 1, 9]]).expand(len(batch), 2, 3)

    model.stn.theta = look_away
    model.classifier.register_forward_pre_hook(lambda _, inputs: sampled.append(inputs[0]))
    common.test(script, model, images, labels)
    assert images.unique().tolist() == [0, 255]
    assert torch.allclose(torch.cat(seen), ((images == 255).float() - mean) / std, atol=1e-6)
    sampled = torch.cat(sampled)
    assert sampled.shape == (len(images), 1, 28, 28) and torch.allclose(sampled, torch.tensor(fill + 0.0), atol=1e-6)


def test_a_seed_decides_the_first_weights_and_how_each_epoch_is_shuffled(log_dir, monkeypatch):
    """By what decides shuffling and dropout: torch's seed as an epoch begins."""
    train, seeds, states = common.train, [], []

    def seeded(*args):
        print("seed", torch.initial_seed())
        return train(*args)

    for seed, name in ((0, "mnist"), (12, "mnist_seed12")):
        options = *PLAIN, "--epochs=2", f"--seed={seed}"
        ended = run(log_dir, *options, before=lambda: monkeypatch.setattr(common, "train", seeded))
        seeds += [int(line.split()[1]) for line in ended.out.splitlines() if line.startswith("seed ")]
        path = log_dir / f"classification_experiment_1_{name}_limit384" / "weights" / "000.pt"
        states.append(common.load_state(path))
        torch.manual_seed(10_000 * seed)
        fresh = stn.STNClassifier(28).state_dict()
        assert all(torch.equal(states[-1][key], fresh[key]) for key in fresh)
    assert seeds == [1, 2, 120_001, 120_002]
    begun_alike = {key for key in states[0] if torch.equal(states[0][key], states[1][key])}
    assert begun_alike == {"stn.fc_loc.2.weight", "stn.fc_loc.2.bias", "stn.fill"}  # 0, the identity, and 0


# ---------------------------------------------------------------------------------------------------- how it is trained


@pytest.mark.parametrize("bound", [None, 2.5])
def test_training_is_the_plain_loop_and_its_figures_are_those_of_the_steps(bound):
    """Also where the last batch is smaller and with the weights in channels_last. In float64, not from the identity.

    In float32 rounding may pick another pixel where a point is sampled between two, or another maximum in a pool: its
    gradient jumps there, and at the identity, where training starts, some points lie exactly on such places.
    """
    torch.manual_seed(0)
    images, labels = torch.randint(256, (400, 1, 40, 40), dtype=torch.uint8), torch.randint(10, (400,))
    plain = stn.STNClassifier(40).double()
    torch.nn.init.normal_(plain.stn.fc_loc[-1].weight, std=0.05)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)

    class InFloat64(common.Experiment):
        def normalize(self, images):
            return to_batch(images)

    def to_batch(images):
        return (images.double() / 255 - 0.1307) / 0.3081

    torch.manual_seed(2)
    network = common.Network(fast, torch.optim.SGD(fast.parameters(), lr=0.01))
    row = common.train(InFloat64(**vars(experiment(max_grad_norm=bound))), network, images, labels)

    torch.manual_seed(2)
    plain.train()
    order, losses, norms = torch.randperm(400), [], []
    for index in order.split(64):
        each = F.cross_entropy(plain(to_batch(images[index])), labels[index], reduction="none")
        gradients = torch.autograd.grad(each.mean(), list(plain.parameters()))
        norms.append(math.sqrt(sum((gradient**2).sum().item() for gradient in gradients)))
        shrunk = min(1, bound / (norms[-1] + 1e-6)) if bound else 1  # as torch documents it
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= 0.01 * shrunk * gradient
        losses += each.tolist()
    assert row["train/loss"] == pytest.approx(sum(losses) / 400, rel=1e-6)
    assert row["train/grad_norm"] == pytest.approx(sorted(norms)[3], rel=1e-6)  # of seven
    assert row["train/grad_norm_max"] == pytest.approx(max(norms), rel=1e-6) and sorted(norms)[3] < max(norms)
    assert bound is None or min(norms) < bound < max(norms), norms
    for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_motion_and_drift_are_those_of_the_loop_written_out(digits, monkeypatch):
    """Motion of every 16th step on its batch, before and after it; drift of the first 64 images over windows of steps.

    On 208 batches of 5, in eval mode, and without a trace in the run. Of two rates, that of the localization net is
    the larger.
    """

    def two_rates(model):
        last = {"params": model.stn.fc_loc.parameters(), "lr": 0.002}
        return torch.optim.SGD([last, {"params": model.stn.localization.parameters()}], lr=0.01)

    images, labels = (part[:1040] for part in digits)
    fast = experiment(dataset="mnist", make_optimizer=two_rates)
    network = common.make_network(fast)
    plain = copy.deepcopy(network.model)
    optimizer = two_rates(plain)
    monkeypatch.setattr(common, "BATCH_SIZE", 5)
    torch.manual_seed(6)
    row = common.train(fast, network, images, labels)

    torch.manual_seed(6)
    batches, thetas, motions = (images.float() / 255 - 0.1307) / 0.3081, [], []
    for index in torch.randperm(1040).split(5):
        thetas.append(plain.eval().stn.theta(batches[:64]).detach())
        before = plain.stn.theta(batches[index]).detach()
        optimizer.zero_grad()
        F.cross_entropy(plain.train()(batches[index]), labels[index]).backward()
        optimizer.step()
        maps = before, plain.eval().stn.theta(batches[index]).detach()
        grids = [F.affine_grid(theta, [5, 1, 200, 200], align_corners=False) for theta in maps]
        motions.append(((grids[1] - grids[0]) * 14).square().sum(dim=3).mean().sqrt().item())  # a unit is 14 pixels
    assert row["stn/motion"] == pytest.approx(np.median(motions[::16]), rel=1e-3)
    assert row["stn/motion_max"] == pytest.approx(max(motions[::16]), rel=1e-3)
    drifts = [stn.drift(*pair).item() for pair in zip(thetas[:192:64], thetas[64::64], strict=True)]
    assert row["stn/drift"] == pytest.approx(np.median(drifts), rel=1e-3)
    assert row["stn/drift_max"] == pytest.approx(max(drifts), rel=1e-3) and row["stn/rate"] == 0.01


def test_a_limited_run_learns_and_no_step_goes_further(log_dir):
    assert run(log_dir, "--limit=3840", "--epochs=2", "--dataset=mnist", number=21).code == 0
    metrics = read_metrics(log_dir / "classification_experiment_21_mnist_limit3840")
    assert metrics["test/accuracy"][1] > 40
    assert metrics["stn/motion_max"].max() < 0.15  # the limit of 0.1 holds on 16 of the 64 images that are measured


def test_a_penalty_is_trained_on_and_not_logged(digits):
    """Weighed so that it decides: theta stays at what it asks for. The loss of the first step is that without it."""
    images, labels = (part[:640] for part in digits)
    rows = {}
    for name, penalty in (("without", None), ("with", lambda theta: 30 * (theta[:, 0, 2] - 0.2).square().mean())):
        chosen = experiment(dataset="mnist", penalty=penalty)
        network = common.make_network(chosen)
        rows[name] = common.train(chosen, network, images[:64], labels[:64])
        for _ in range(3):
            common.train(chosen, network, images, labels)
        shift = network.model.stn.theta(chosen.normalize(images[:64]))[:, 0, 2].mean().item()
        assert (abs(shift - 0.2) < 0.02) == (name == "with")
    assert rows["with"]["train/loss"] == rows["without"]["train/loss"]
    assert rows["with"]["train/grad_norm"] > rows["without"]["train/grad_norm"]


# ----------------------------------------------------------------------------------------------------- what is measured


def test_test_figures_are_those_of_the_saved_weights_over_all_test_images(whole_run):
    _, (images, labels), *_ = common.load_images("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier()
    model.load_state_dict(common.load_state(whole_run.folder / "weights" / "007.pt"))
    model.eval()
    with torch.no_grad():
        batch = (images.float() / 255 - 0.1307) / 0.3081
        logits, theta = model(batch), model.stn.theta(batch)
    last = read_metrics(whole_run.folder)[-1]
    assert last["test/loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert last["test/accuracy"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert last["stn/scale"] == pytest.approx(stn.scale(theta).item(), rel=1e-5)
    assert last["stn/inside"] == pytest.approx(stn.inside(theta).item(), rel=1e-5)
    assert last["stn/spread"] == pytest.approx(stn.spread(theta).item(), rel=1e-3) and last["stn/spread"] > 1e-4


@pytest.mark.parametrize("slope", [0, 0.1])
def test_a_unit_is_active_where_its_input_is_positive(digits, slope):
    images, labels = (part[:150] for part in digits)
    chosen = experiment(dataset="mnist", transformer=partial(stn.SpatialTransformer, slope=slope))
    model = common.make_network(chosen).model
    torch.nn.init.normal_(model.stn.fc_loc[0].bias)
    row = common.test(chosen, model, images, labels)
    hidden = model.stn.fc_loc[0](model.stn.localization(chosen.normalize(images)).flatten(1))
    assert row["stn/active"] == pytest.approx((hidden > 0).double().mean().item(), abs=1e-6)
    assert 0.1 < row["stn/active"] < 0.9


def row(epoch, train_loss=1.0, inside=0.5):
    return {"epoch": epoch, "train/loss": train_loss, "test/accuracy": 50.0 + epoch, "stn/inside": inside}


def test_collapse_is_the_first_epoch_with_less_than_a_twentieth_inside():
    assert common.collapsed([]) is None
    assert common.collapsed([row(1), row(2, inside=0.05)]) is None
    assert common.collapsed([row(1), row(2, inside=0.049), row(3), row(4, inside=0.0)]) == 2  # it came back meanwhile


def test_a_solution_is_lost_when_the_loss_stays_above_one_and_a_half_times_its_minimum_for_five_epochs():
    def history(*losses):
        return [row(epoch, loss) for epoch, loss in enumerate(losses, start=1)]

    assert common.lost_solution(history(2.0, 1.0, *[1.51] * 4, 1.4, *[1.51] * 4)) is None
    assert common.lost_solution(history(2.0, 1.0, *[1.5] * 9)) is None
    assert common.lost_solution(history(2.0, 1.0, 1.6, 0.5, *[0.8] * 5, 0.1)) == 5


def test_a_run_fails_in_the_epoch_in_which_it_first_does_either():
    lasts = [row(epoch) for epoch in range(1, 9)]
    lost = [*lasts, *(row(epoch, 1.6) for epoch in range(9, 14))]
    assert common.failed(lasts) is None and common.failed(lost[:-1]) is None
    assert common.failed([*lost, row(14, inside=0.0)]) == 9
    assert common.failed([row(1, inside=0.0), *lost[1:]]) == 1


# ------------------------------------------------------------------------------------------------- what is gone on with


HALVES = {  # experiment: its runs, images and epochs
    32: (("",), 384, 3),  # a rate that falls along half a cosine
    36: (("_adam", "_sgd", "_momentum"), 2560, 2),  # a rate that follows drift; 40 steps an epoch, less than a window
}


@pytest.mark.parametrize("number", HALVES)
def test_a_stopped_run_with_a_schedule_and_optimizer_state_ends_with_the_same_numbers(log_dir, tmp_path, number):
    variants, limit, epochs = HALVES[number]
    halves = tmp_path / "halves" / "runs"
    halves.mkdir(parents=True)
    for folder, last in ((log_dir, epochs), (halves, epochs - 1), (halves, epochs)):
        assert run(folder, f"--limit={limit}", "--dataset=mnist", f"--epochs={last}", number=number).code == 0
    for variant in variants:
        name = f"classification_experiment_{number}{variant}_mnist_limit{limit}"
        assert result(log_dir / name) == result(halves / name)
        states = [common.load_state(folder / name / "checkpoint.pt") for folder in (log_dir, halves)]
        if number == 32:
            assert states[0]["scheduler"] == states[1]["scheduler"] and states[0]["scheduler"]["last_epoch"] == 3
            (group,) = states[0]["optimizer"]["param_groups"]
            assert group["lr"] == pytest.approx(0.001 * (1 + np.cos(np.pi * 3 / 100)) / 2, rel=1e-9)
            assert "CosineAnnealingLR(T_max=100" in states[0]["settings"]["scheduler"]
        else:
            schedules = [state["drift_lr"] for state in states]
            assert schedules[0].pop("before").equal(schedules[1].pop("before")) and schedules[0] == schedules[1]
            assert schedules[0]["steps"] == 80
            assert schedules[0]["rate"] == read_metrics(log_dir / name)["stn/rate"][-1]


def test_a_run_of_an_older_format_goes_on_and_what_it_did_not_measure_is_an_empty_cell(short_run, log_dir):
    """Begun before there were motion, active, limits, penalties and schedules, and its code was kept."""
    folder = shutil.copytree(short_run.folder, log_dir / short_run.folder.name)
    state = common.load_state(folder / "checkpoint.pt")
    for name in ("max_motion", "scheduler", "penalty", "drift", "data"):
        del state["settings"][name]
    state["settings"]["transformer"] = "class SpatialTransformer(nn.Module): as it was described then"
    del state["code"]
    for measured in state["history"]:
        del measured["stn/motion"], measured["stn/active"]
    torch.save(state, folder / "checkpoint.pt")
    assert run(log_dir, *PLAIN, "--epochs=3").code == 0
    metrics = read_metrics(folder)
    assert metrics["epoch"].tolist() == [1, 2, 3] and np.isfinite(metrics["test/loss"]).all()
    for name in ("stn/motion", "stn/active"):
        assert np.isnan(metrics[name]).tolist() == [True, True, False]
