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
from assets import records
from assets.records import format_cell, parse_cell

NUMBERS = sorted(int(path.stem.rpartition("_")[2]) for path in ROOT.glob("classification_experiment_*.py"))
RUNS = records.read_runs()
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
        for name in ("title", "mean", "std", "fill", "max_grad_norm", "max_motion", "drift", "variant"):
            assert run_json[name] == getattr(experiment, name), name
        assert run_json["experiment"] == path_of(number).stem and run_json["epoch"] == run_json["epochs"] == 1
        chosen = {"digits": "embedded", "limit": 384, "dataset": "mnist"}
        settings = experiment.settings()
        assert settings | chosen == {name: run_json[name] for name in settings}
        state = common.load_state(folder / "weights" / "001.pt")
        assert all(value.isfinite().all() for value in state.values())
    assert len(list(log_dir.iterdir())) == len(experiments) == ended.out.count("finished: epoch 1")


@every_script
def test_a_scripts_settings_are_those_of_the_runs_that_were_made_with_it(number):
    """All but what the command line chooses, which is told by the name of a run's folder."""
    compared = [name for name in records.SETTINGS if name != "data"]
    for experiment in read(number):
        settings = {name: parse_cell(name, format_cell(value)) for name, value in experiment.settings().items()}
        variant = format_cell(experiment.variant) or None
        for made in RUNS:
            if (made["experiment"], made["variant"]) == (number, variant):
                assert [settings[name] for name in compared] == [made[name] for name in compared]


def test_every_run_has_a_script_that_makes_it():
    made = {(run["experiment"], run["variant"]) for run in RUNS}
    assert made <= {(number, format_cell(each.variant) or None) for number in NUMBERS for each in read(number)}


@every_script
def test_each_optimizer_holds_every_parameter_once(number):
    for experiment in read(number):
        network = common.make_network(experiment)
        held = [id(weight) for group in network.optimizer.param_groups for weight in group["params"]]
        assert sorted(held) == sorted(map(id, network.model.parameters()))


# ----------------------------------------------------------------------------------- what is easy to get wrong in some


def test_experiment_12_takes_std_back_at_exactly_the_two_weights_that_see_the_image():
    model, optimizer, *_ = common.make_network(only(12))
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
