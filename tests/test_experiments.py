"""What holds of every experiment's script, whatever scripts there are, and what is easy to get wrong in some."""

import ast
import copy
import json
import runpy
import sys

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


DOSES = [0.03, 0.1, 0.3, 1, 3, None]
LIMITS = {20: 0.1, 21: 0.1, 22: 0.1, 24: 0.1, 25: 0.1, 26: DOSES, 30: [*[None] * 4, 0.1], 32: 0.1, 35: DOSES}
LEAKY = {19: 0.1, **dict.fromkeys((21, 23, 24, 25, 32), 0.1), 26: [0.1] * 6, 30: [*[0] * 4, 0.1], 35: [0.1] * 6}


def listed(wanted, count):
    return wanted if isinstance(wanted, list) else [wanted] * count


@every_script
def test_limit_slope_and_clipping_are_what_the_design_says(number):
    experiments = read(number)
    assert [each.max_grad_norm for each in experiments] == listed({11: 1, 14: 25}.get(number), len(experiments))
    if number == 31:
        return  # the localization nets of others
    assert [each.max_motion for each in experiments] == listed(LIMITS.get(number), len(experiments))
    for experiment, slope in zip(experiments, listed(LEAKY.get(number, 0), len(experiments)), strict=True):
        modules = experiment.transformer(60).modules()
        assert {m.negative_slope for m in modules if isinstance(m, torch.nn.LeakyReLU)} == ({slope} - {0})


@every_script
def test_each_optimizer_holds_every_parameter_once_at_the_rate_that_the_design_says(number):
    wanted = OPTIMIZERS.get(number)  # in experiment 12 two weights have a rate of their own, see below
    experiments = read(number)
    for experiment, design in zip(experiments, listed(wanted, len(experiments)), strict=True):
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


def test_experiment_13_puts_theta_through_tanh():
    squashed, plain = only(13).transformer(28), stn.SpatialTransformer(28)
    torch.nn.init.normal_(squashed.fc_loc[-1].weight)
    plain.load_state_dict(squashed.state_dict())
    images = torch.rand(8, 1, 28, 28)
    assert torch.equal(squashed.theta(images), plain.theta(images).tanh())


@pytest.mark.parametrize("number", [15, 16])
def test_experiments_15_and_16_smooth_what_is_sampled_and_not_what_the_localization_net_sees(number):
    torch.manual_seed(0)
    smoothed, plain = only(number).transformer(60, fill=0.3), stn.SpatialTransformer(60, fill=0.3)
    torch.nn.init.normal_(plain.fc_loc[-1].weight, std=0.5)
    smoothed.load_state_dict(plain.state_dict())
    images = torch.rand(8, 1, 60, 60)
    assert torch.equal(smoothed.theta(images), plain.theta(images))
    edges = torch.cat([images[:, :, :1], images, images[:, :, -1:]], dim=2)
    edges = torch.cat([edges[..., :1], edges, edges[..., -1:]], dim=3)
    mean = sum(edges[:, :, y : y + 60, x : x + 60] for y in range(3) for x in range(3)) / 9
    theta = plain.theta(images)
    assert torch.allclose(smoothed(images), plain.sample(mean, theta), atol=1e-5)
    assert not torch.allclose(smoothed(images), plain(images), atol=1e-2)


def test_experiment_18_is_the_identity_whatever_the_weights():
    torch.manual_seed(0)
    model = stn.STNClassifier(60, transformer=only(18).transformer)
    for parameter in model.stn.parameters():
        torch.nn.init.normal_(parameter)

    images = torch.rand(5, 1, 60, 60)
    theta = model.stn.theta(images)
    assert theta.tolist() == [[[1, 0, 0], [0, 1, 0]]] * 5
    optimizer = only(18).make_optimizer(model)
    before = copy.deepcopy(model.state_dict())
    F.cross_entropy(model(images), torch.arange(5)).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("classifier.")}
