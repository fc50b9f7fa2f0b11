"""What holds of every experiment's script, whatever scripts there are, and what is easy to get wrong in some."""

import ast
import copy
import inspect
import json
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, files, run

import common
import stn

NUMBERS = sorted(int(path.stem.rpartition("_")[2]) for path in ROOT.glob("classification_experiment_*.py"))
every_script = pytest.mark.parametrize("number", NUMBERS)


def path_of(number):
    return ROOT / f"classification_experiment_{number}.py"


def calls(number):
    """What a script calls `run_experiment` with: a list of dicts, every argument in it."""
    called, signature = [], inspect.signature(common.run_experiment)

    def note(**arguments):
        bound = signature.bind(**arguments)
        bound.apply_defaults()
        called.append(bound.arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "run_experiment", note)
        runpy.run_path(str(path_of(number)))
    return called


def call(number):
    (only,) = calls(number)
    return only


# ------------------------------------------------------------------------------------------------------- every script


@every_script
def test_a_script_begins_with_a_docstring_that_asks_a_question(number):
    docstring = ast.get_docstring(ast.parse(path_of(number).read_text()))
    assert "?" in docstring and docstring.startswith("Experiment ")


@every_script
def test_a_script_differs_from_experiment_1_in_docstring_imports_arguments_and_the_transformers_class(number):
    """Its statements: the docstring, imports, a class if the transformer is its own, one call, in a loop at most."""
    _, *statements = ast.parse(path_of(number).read_text()).body
    rest = [each for each in statements if not isinstance(each, ast.Import | ast.ImportFrom)]
    *classes, last = rest
    looped = isinstance(last, ast.For)
    if looped:
        (last,) = last.body
    assert isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    assert last.value.func.id == "run_experiment" and not last.value.args
    given = {keyword.arg: keyword.value for keyword in last.value.keywords}
    assert given.keys() >= {"title", "mean", "std", "make_optimizer", "epochs"} and ("variant" in given) == looped
    if classes:
        (transformer,) = classes
        assert isinstance(transformer, ast.ClassDef) and given["transformer"].id == transformer.name
        assert len(transformer.body) == 1 and [base.id for base in transformer.bases] == ["SpatialTransformer"]
    else:
        assert "transformer" not in given


@every_script
def test_titles_fit_a_legend_and_tell_a_scripts_runs_apart(number):
    titles, variants = zip(*((arguments["title"], arguments["variant"]) for arguments in calls(number)), strict=True)
    assert len(set(titles)) == len(set(variants)) == len(titles)
    assert all(10 < len(title) <= 60 for title in titles)


@every_script
def test_a_script_trains_plainly(number):
    for arguments in calls(number):
        optimizer = arguments["make_optimizer"](stn.STNClassifier(28, arguments["fill"], arguments["transformer"]))
        for group in optimizer.param_groups:
            assert not group.get("momentum") and not group["weight_decay"] and not group.get("amsgrad")


@every_script
def test_every_parameter_is_held_once(number):
    for arguments in calls(number):
        model = stn.STNClassifier(28, arguments["fill"], arguments["transformer"])
        held = [
            id(parameter) for group in arguments["make_optimizer"](model).param_groups for parameter in group["params"]
        ]
        assert sorted(held) == sorted(map(id, model.parameters()))


@every_script
def test_a_script_runs_an_epoch_and_records_its_settings_and_given_again_changes_nothing(number, log_dir):
    ended = run(log_dir, "--limit=384", "--epochs=1", number=number)
    assert ended.code == 0 and ended.err == "", ended.err
    called = calls(number)
    for arguments in called:
        variant = [] if arguments["variant"] is None else [str(arguments["variant"])]
        mnist = ["mnist"] * (arguments["dataset"] != "cluttered" and not variant)
        folder = log_dir / "_".join([path_of(number).stem, *variant, *mnist, "limit384"])
        run_json = json.loads((folder / "run.json").read_text())
        for name in ("title", "mean", "std", "fill", "max_grad_norm", "dataset", "variant"):
            assert run_json[name] == arguments[name], name
        assert run_json["experiment"] == path_of(number).stem and run_json["epoch"] == run_json["epochs"] == 1
        own = arguments["transformer"] is not stn.SpatialTransformer
        assert run_json["transformer"].startswith(("class " if own else "") + arguments["transformer"].__name__)
        model = stn.STNClassifier(28, arguments["fill"], arguments["transformer"])
        optimizer = arguments["make_optimizer"](model)
        assert run_json["optimizer"].startswith(type(optimizer).__name__ + "(")
        for group in optimizer.param_groups:
            assert f"lr={group['lr']}" in run_json["optimizer"]
        assert run_json["optimizer"].count("lr=") == len(optimizer.param_groups)
        state = common.load_state(folder / "weights" / "001.pt")
        assert all(value.isfinite().all() for value in state.values())
    assert len(list(log_dir.iterdir())) == len(called) == ended.out.count("finished: epoch 1")

    kept = files(log_dir)
    again = run(log_dir, "--limit=384", "--epochs=1", number=number)
    assert again.code == 0 and again.err == "" and again.out.count("finished: epoch 1") == len(called)
    assert again.out.count("\n") == 2 * len(called) and files(log_dir) == kept


@every_script
def test_help_begins_with_what_the_experiment_asks_and_a_wrong_argument_is_a_line_once(number, monkeypatch, capsys):
    docstring = ast.get_docstring(ast.parse(path_of(number).read_text()))
    monkeypatch.setattr(sys, "argv", [path_of(number).name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path_of(number)))
    out = capsys.readouterr().out
    usage, _, rest = out.partition("\n\n")
    assert end.value.code == 0 and usage.startswith("usage: ") and rest.startswith(docstring + "\n\n")
    assert out.count("usage: ") == out.count(docstring) == 1

    monkeypatch.setattr(sys, "argv", [path_of(number).name, "--epochs=0"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path_of(number)))
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1


# ----------------------------------------------------------------------------------- what is easy to get wrong in some


def rates(model, optimizer):
    """The learning rate of each parameter, by its name."""
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    return {named[id(each)]: group["lr"] for group in optimizer.param_groups for each in group["params"]}


def test_experiment_10_lets_the_whole_localization_net_learn_ten_times_slower():
    model = stn.STNClassifier()
    found = rates(model, call(10)["make_optimizer"](model))
    assert found == {name: 0.001 if name.startswith("stn.") else 0.01 for name, _ in model.named_parameters()}


def test_experiment_12_takes_std_back_at_exactly_the_two_weights_that_see_the_image():
    model = stn.STNClassifier()
    found = rates(model, call(12)["make_optimizer"](model))
    first = "stn.localization.0.weight", "classifier.0.weight"
    assert {name for name, rate in found.items() if rate != 0.01} == set(first)
    assert [found[name] for name in first] == [pytest.approx(0.01 * call(12)["std"] ** 2, rel=1e-12)] * 2
    assert call(12)["std"] == 0.3081 and call(2)["std"] == 1


def test_experiment_17_has_a_run_a_rate_of_the_localization_net():
    found = []
    for arguments in calls(17):
        model = stn.STNClassifier(28)
        rate = rates(model, arguments["make_optimizer"](model))
        assert {rate[name] for name in rate if name.startswith("classifier.")} == {0.01}
        (own,) = {rate[name] for name in rate if name.startswith("stn.")}
        assert own == arguments["variant"] and arguments["dataset"] == "mnist" and arguments["epochs"] == 20
        found.append(own)
    assert found == sorted(found) and len(set(found)) == 7 and {0.001, 0.01, 0.1} < set(found)


@pytest.mark.parametrize("number, bound", [(11, 1), (14, 25)])
def test_no_step_of_experiments_11_and_14_is_longer_than_rate_times_bound(number, bound):
    """Whatever the gradient: of inputs a thousand times as large, it is huge. Experiment 1 takes the long step."""
    torch.manual_seed(0)
    images, labels = torch.randint(2, (64, 1, 28, 28), dtype=torch.uint8), torch.randint(10, (64,))

    def step(number):
        torch.manual_seed(0)
        model = stn.STNClassifier(28, transformer=call(number)["transformer"])
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer, max_grad_norm = call(number)["make_optimizer"](model), call(number)["max_grad_norm"]
        row = common.train(model, optimizer, images, labels, lambda batch: 1e3 * batch.float(), max_grad_norm)
        return row, (torch.nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()

    row, length = step(number)
    assert row["train/grad_norm"] > 100 * bound and row["train/clipped"] == 1
    assert length == pytest.approx(0.01 * bound, rel=1e-3)
    row, length = step(1)
    assert length == pytest.approx(0.01 * row["train/grad_norm"], rel=1e-3) and row["train/clipped"] == 0


def test_experiment_13_cannot_leave_the_image():
    """Whatever the localization net says, also where the region is a point or turned over: it touches the image."""
    transformer = call(13)["transformer"](28)
    torch.manual_seed(0)
    transformer.fc_loc[-1].weight.data.normal_(std=1e4)
    images = torch.rand(256, 1, 28, 28)
    for bias in ([1.0, 0, 50, 0, 1, 50], [-1e6, 0, -1e6, 0, -1e6, -1e6], [0.0] * 6):
        transformer.fc_loc[-1].bias.data = torch.tensor(bias)
        theta = transformer.theta(images)
        corners = common.outlines(theta, 2) - 1  # in grid_sample's coordinates
        assert (theta.abs() <= 1).all() and (theta[:, :, 2].abs() <= 1).all()
        assert (corners.amin(dim=1) <= 1).all() and (corners.amax(dim=1) >= -1).all()
    plain = stn.SpatialTransformer(28)
    plain.load_state_dict(transformer.state_dict())
    assert torch.equal(plain.theta(images).tanh(), theta)


@pytest.mark.parametrize("number", [15, 16])
def test_experiments_15_and_16_smooth_what_is_sampled_and_not_what_the_localization_net_sees(number):
    torch.manual_seed(0)
    smoothed, plain = call(number)["transformer"](60, fill=0.3), stn.SpatialTransformer(60, fill=0.3)
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
    model = stn.STNClassifier(60, transformer=call(18)["transformer"])
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
    optimizer = call(18)["make_optimizer"](model)
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
