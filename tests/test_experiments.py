"""What holds of every experiment's script, whatever scripts there are, and what is easy to get wrong in some."""

import ast
import json

import pytest
import torch
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


def test_help_begins_with_what_the_experiment_asks(log_dir):
    docstring = ast.get_docstring(ast.parse(path_of(26).read_text()))  # which makes several runs
    ended = run(log_dir, "--help", number=26)
    usage, _, rest = ended.out.partition("\n\n")
    assert ended.code == 0 and usage.startswith("usage: ") and rest.startswith(docstring + "\n\n")


@every_script
def test_a_script_runs_an_epoch_and_records_its_settings(number, log_dir):
    """On plain digits, which take less time than canvases."""
    experiments = read(number)
    ended = run(log_dir, "--limit=384", "--epochs=1", "--dataset=mnist", number=number)
    assert ended.code == 0 and ended.err == "", ended.err
    told = [json.loads(path.read_text()) for path in log_dir.glob("*/run.json")]
    told = {run_json["variant"]: run_json for run_json in told}
    assert len(told) == len({each.title for each in experiments}) == ended.out.count("finished: epoch 1")
    for experiment in experiments:
        chosen = {"title": experiment.title, "epoch": 1, "digits": "embedded", "limit": 384, "dataset": "mnist"}
        wanted = experiment.settings() | chosen
        assert wanted == {name: told[experiment.variant][name] for name in wanted}
    for path in log_dir.glob("*/weights/001.pt"):
        assert all(value.isfinite().all() for value in common.load_state(path).values())


def test_every_run_has_a_script_that_makes_it_with_its_settings():
    """All but what the command line chooses, which is told by the name of a run's folder."""
    scripts = {}
    for number in NUMBERS:
        scripts |= {(number, format_cell(each.variant) or None): each.settings() for each in read(number)}
    compared = [name for name in records.SETTINGS if name != "data"]
    for made in RUNS:
        settings = scripts[made["experiment"], made["variant"]]
        assert [parse_cell(name, format_cell(settings[name])) for name in compared] == [made[name] for name in compared]


@every_script
def test_each_optimizer_holds_every_parameter_once(number):
    for experiment in read(number):
        network = common.make_network(experiment)
        held = [id(weight) for group in network.optimizer.param_groups for weight in group["params"]]
        assert sorted(held) == sorted(map(id, network.model.parameters()))


# ----------------------------------------------------------------------------------- what is easy to get wrong in some


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
    edges = torch.nn.functional.pad(images, (1, 1, 1, 1), "replicate")
    mean = sum(edges[:, :, y : y + 60, x : x + 60] for y in range(3) for x in range(3)) / 9
    theta = plain.theta(images)
    assert torch.allclose(smoothed(images), plain.sample(mean, theta), atol=1e-5)
    assert not torch.allclose(smoothed(images), plain(images), atol=1e-2)


def test_experiment_18_is_the_identity_whatever_the_weights():
    transformer = only(18).transformer(60)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter)
    assert transformer.theta(torch.rand(5, 1, 60, 60)).tolist() == [[[1, 0, 0], [0, 1, 0]]] * 5
