"""What holds of every experiment's script, whatever scripts there are, and what is easy to get wrong in some."""

import ast
import copy
import json
import math
import runpy
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, run

import common
import stn

NUMBERS = sorted(int(path.stem.rpartition("_")[2]) for path in ROOT.glob("classification_experiment_*.py"))
every_script = pytest.mark.parametrize("number", NUMBERS)


def path_of(number):
    return ROOT / f"classification_experiment_{number}.py"


def read(number):
    return common.read_script(path_of(number))


def only(number):
    (experiment,) = read(number)
    return experiment


# ------------------------------------------------------------------------------------------------------- every script


@every_script
def test_titles_fit_a_legend_and_tell_a_scripts_runs_apart(number):
    titles, variants = zip(*((each.title, each.variant) for each in read(number)), strict=True)
    assert len(set(titles)) == len(set(variants)) == len(titles) and (len(titles) > 1) == (variants != (None,))
    assert all(10 < len(title) <= 70 for title in titles)


@every_script
def test_help_begins_with_what_the_experiment_asks(number, monkeypatch, capsys):
    docstring = ast.get_docstring(ast.parse(path_of(number).read_text()))
    assert "?" in docstring and docstring.startswith("Experiment ")
    monkeypatch.setattr(sys, "argv", [path_of(number).name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path_of(number)), run_name="__main__")
    out = capsys.readouterr().out
    usage, _, rest = out.partition("\n\n")
    assert end.value.code == 0 and usage.startswith("usage: ") and rest.startswith(docstring + "\n\n")
    assert out.count("usage: ") == out.count(docstring) == 1


@every_script
def test_a_script_runs_an_epoch_and_records_its_settings(number, log_dir):
    """On plain digits, which take less time than canvases."""
    experiments = read(number)
    ended = run(log_dir, "--limit=384", "--epochs=1", "--dataset=mnist", number=number)
    assert ended.code == 0 and ended.err == "", ended.err
    for experiment in experiments:
        variant = [] if experiment.variant is None else [str(experiment.variant)]
        folder = log_dir / "_".join(
            [path_of(number).stem, *variant, *["mnist"] * (experiment.dataset != "mnist"), "limit384"]
        )
        run_json = json.loads((folder / "run.json").read_text())
        for name in ("title", "mean", "std", "fill", "max_grad_norm", "max_motion", "variant"):
            assert run_json[name] == getattr(experiment, name), name
        assert run_json["experiment"] == path_of(number).stem and run_json["epoch"] == run_json["epochs"] == 1
        chosen = {"digits": "embedded", "limit": 384, "dataset": "mnist"}
        settings = experiment.settings(common.make_network(experiment))
        assert settings | chosen == {name: run_json[name] for name in settings}
        state = common.load_state(folder / "weights" / "001.pt")
        assert all(value.isfinite().all() for value in state.values())
    assert len(list(log_dir.iterdir())) == len(experiments) == ended.out.count("finished: epoch 1")


def test_the_lowest_python_that_the_requirements_install_on_can_read_every_file():
    for path in (*ROOT.glob("*.py"), *ROOT.glob("assets/*.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 10))
        indices = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
        tuples = [index for index in indices if isinstance(index, ast.Tuple)]
        # x[a, *b] is new in 3.11, and a newer Python's parser takes it all the same
        assert not any(isinstance(part, ast.Starred) for index in tuples for part in index.elts), path


# ----------------------------------------------------------------------------------- what is easy to get wrong in some


ALL, ADAM = {"stn": 0.01, "classifier": 0.01}, {"stn": 0.001, "classifier": 0.001}
SLOW_ADAM = {"stn": 0.0001, "classifier": 0.0001}
OPTIMIZERS = {  # class, rates of the two parts, and momentum, as the design has them; a list where there are variants
    **dict.fromkeys((1, 2, 4, 5, 6, 11, 13, 14, 15, 22, 23, 24), ("SGD", ALL, 0)),
    **dict.fromkeys((3, 7, 16, 18), ("Adam", SLOW_ADAM, None)),
    8: ("SGD", {"stn": 0.001, "classifier": 0.001}, 0),
    9: ("Adam", ADAM, None),
    10: ("SGD", ALL | {"stn": 0.001}, 0),
    17: [("SGD", ALL | {"stn": rate}, 0) for rate in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)],
    **dict.fromkeys((19, 20, 21, 32), ("Adam", ADAM, None)),
    25: ("SGD", ALL, 0.9),
    26: [("Adam", ADAM, None)] * 6,
    27: ("Adam", ADAM | {"stn": 0.0001}, None),
    28: [("SGD", ALL | {"stn": rate}, 0.9) for rate in (0.0001, 0.0003, 0.001)],
    29: ("SGD", ALL | {"stn": 0.005}, 0),
    30: [("SGD", ALL | {"stn": rate}, 0) for rate in (0.0003, 0.001, 0.003, 0.01, 0.01)],
    31: [("Adam", ADAM, None)] * 4,
    33: [("SGD", ALL, 0)] * 2,
    34: ("SGD", ALL, 0),
    35: [("SGD", ALL, 0.9)] * 6,
}


@every_script
def test_each_optimizer_holds_every_parameter_once_at_the_rate_that_the_design_says(number):
    wanted = OPTIMIZERS.get(number)  # in experiment 12 two weights have a rate of their own, see below
    experiments = read(number)
    wanted = wanted if isinstance(wanted, list) else [wanted] * len(experiments)
    for experiment, design in zip(experiments, wanted, strict=True):
        model, optimizer, _ = common.make_network(experiment)
        held = {id(each): group for group in optimizer.param_groups for each in group["params"]}
        assert sorted(held) == sorted(map(id, model.parameters()))
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(held)
        for name, parameter in model.named_parameters() if number != 12 else ():
            kind, rates, momentum = design
            group = held[id(parameter)]
            assert type(optimizer).__name__ == kind and group["lr"] == rates[name.partition(".")[0]], name
            assert group.get("momentum") == momentum and not group["weight_decay"]


def test_experiment_12_takes_std_back_at_exactly_the_two_weights_that_see_the_image():
    model, optimizer, _ = common.make_network(only(12))
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {named[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}
    first = "stn.localization.0.weight", "classifier.0.weight"
    assert {name for name, rate in found.items() if rate != 0.01} == set(first)
    assert [found[name] for name in first] == [pytest.approx(0.01 * 0.3081**2, rel=1e-12)] * 2


@pytest.mark.parametrize("number, bound", [(11, 1), (14, 25)])
def test_no_step_of_experiments_11_and_14_is_longer_than_rate_times_bound(number, bound):
    """Whatever the gradient: of inputs a thousand times as large, it is huge. Experiment 1 takes the long step."""
    torch.manual_seed(0)
    images, labels = torch.randint(2, (64, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (64,))

    def step(number):
        experiment = replace(only(number), dataset="mnist", mean=0, std=1 / 255e3)
        network = common.make_network(experiment)
        before = [parameter.detach().clone() for parameter in network.model.parameters()]
        row = common.train(experiment, network, images, labels)
        changes = zip(network.model.parameters(), before, strict=True)
        return row, math.sqrt(sum((now - start).square().sum().item() for now, start in changes))

    row, length = step(number)
    assert row["train/grad_norm"] > 100 * bound and row["train/clipped"] == 1
    assert length == pytest.approx(0.01 * bound, rel=1e-3)
    row, length = step(1)
    assert length == pytest.approx(0.01 * row["train/grad_norm"], rel=1e-3) and row["train/clipped"] == 0


def test_experiment_13_cannot_leave_the_image():
    """Whatever the localization net says, also where the region is a point or turned over: it touches the image."""
    transformer = only(13).transformer(28)
    torch.manual_seed(0)
    transformer.fc_loc[-1].weight.data.normal_(std=1e4)
    images = torch.rand(256, 1, 28, 28)
    for bias in ([1.0, 0, 50, 0, 1, 50], [-1e6, 0, -1e6, 0, -1e6, -1e6], [0.0] * 6):
        transformer.fc_loc[-1].bias.data = torch.tensor(bias)
        theta = transformer.theta(images)
        corners = common.outlines(theta, 2, 2) - 1  # in grid_sample's coordinates
        assert (theta.abs() <= 1).all() and (theta[:, :, 2].abs() <= 1).all()
        assert (corners.amin(dim=1) <= 1).all() and (corners.amax(dim=1) >= -1).all()
    plain = stn.SpatialTransformer(28)
    plain.load_state_dict(transformer.state_dict())
    assert torch.equal(plain.theta(images).tanh(), theta)


@pytest.mark.parametrize("number", [15, 16])
def test_experiments_15_and_16_smooth_what_is_sampled_and_not_what_the_localization_net_sees(number):
    torch.manual_seed(0)
    smoothed, plain = only(number).transformer(60, fill=0.3), stn.SpatialTransformer(60, fill=0.3)
    torch.nn.init.normal_(plain.fc_loc[-1].weight, std=0.5)
    smoothed.load_state_dict(plain.state_dict())
    images = torch.rand(8, 1, 60, 60)
    assert torch.equal(smoothed.theta(images), plain.theta(images))
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(8, 2, 3)
    constant = smoothed.sample(torch.full((8, 1, 60, 60), 2.5), identity)
    assert torch.allclose(constant, torch.tensor(2.5), atol=1e-6)  # to the edges

    edges = torch.cat([images[:, :, :1], images, images[:, :, -1:]], dim=2)
    edges = torch.cat([edges[..., :1], edges, edges[..., -1:]], dim=3)
    mean = sum(edges[:, :, y : y + 60, x : x + 60] for y in range(3) for x in range(3)) / 9
    theta = plain.theta(images)
    assert torch.allclose(smoothed(images), plain.sample(mean, theta), atol=1e-5)
    assert not torch.allclose(smoothed(images), plain(images), atol=1e-2)


def test_experiment_18_is_the_identity_whatever_the_weights_and_does_not_run_its_localization_net():
    torch.manual_seed(0)
    model = stn.STNClassifier(60, transformer=only(18).transformer)
    for parameter in model.stn.parameters():
        torch.nn.init.normal_(parameter)

    def refuse(*_):
        raise AssertionError("the localization net ran")

    for module in model.stn.modules():
        if module is not model.stn:
            module.register_forward_hook(refuse)
    images = torch.rand(5, 1, 60, 60)
    theta = model.stn.theta(images)
    assert theta.tolist() == [[[1, 0, 0], [0, 1, 0]]] * 5
    optimizer = only(18).make_optimizer(model)
    before = copy.deepcopy(model.state_dict())
    F.cross_entropy(model(images), torch.arange(5)).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("classifier.")}


def test_dividing_by_std_is_a_learning_rate_and_an_initialization_of_the_two_first_convolutions():
    """The identity that experiment 12 rests on, in float64: ten steps of SGD with dropout, the same losses."""
    s, rate = 0.3081, 0.01
    torch.manual_seed(0)
    images, labels = torch.rand(640, 1, 28, 28).double(), torch.randint(10, (640,))
    model = stn.STNClassifier(28).double()
    torch.nn.init.normal_(model.stn.fc_loc[-1].weight, std=0.05)
    twin = copy.deepcopy(model)
    for part in (twin.stn.localization, twin.classifier):
        part[0].weight.data /= s
    untouched = copy.deepcopy(twin)

    def losses(model, divisor, first_rate):
        first = [model.stn.localization[0].weight, model.classifier[0].weight]
        others = [parameter for parameter in model.parameters() if all(parameter is not weight for weight in first)]
        optimizer = torch.optim.SGD([{"params": first, "lr": first_rate}, {"params": others}], lr=rate)
        found = []
        torch.manual_seed(1)
        model.train()
        for batch, truth in zip(images.split(64), labels.split(64), strict=True):
            loss = F.cross_entropy(model(batch / divisor), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    divided = losses(model, s, rate)
    assert len(set(divided)) == 10
    assert losses(twin, 1, rate / s**2) == pytest.approx(divided, rel=1e-9)
    assert losses(untouched, 1, rate) != pytest.approx(divided, rel=1e-3)  # the initialization alone is not enough
    for part, other in ((model.stn.localization, twin.stn.localization), (model.classifier, twin.classifier)):
        assert torch.allclose(part[0].weight / s, other[0].weight, rtol=1e-9, atol=1e-12)
