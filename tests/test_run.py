"""What a run writes and says, what TensorBoard shows of it, and which settings make a run another."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import PLAIN, PLAIN_NAME, ROOT, SWEEP, files, read_metrics, refused_run, run, write_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import common
from assets.records import read_table

# ------------------------------------------------------------------------------------------------------ files and lines


def test_a_run_writes_what_it_says(whole_run):
    paths = (str(path.relative_to(whole_run.folder)) for path in whole_run.folder.rglob("*") if path.is_file())
    written = {re.sub(r"tfevents\..*", "tfevents", path) for path in paths}
    series = {path.format(epoch) for epoch in ("000", "005", "007") for path in ("figures/{}.png", "weights/{}.pt")}
    series |= {"events.out.tfevents", "metrics.csv", "progress.gif", "checkpoint.pt", "run.json", ".lock"}
    assert written == series | {"code/classification_experiment_1.py"}
    script = ROOT / "classification_experiment_1.py"
    assert (whole_run.folder / "code" / script.name).read_text() == script.read_text()
    metrics, run_json = read_metrics(whole_run.folder), json.loads((whole_run.folder / "run.json").read_text())
    assert metrics["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    best = metrics["test/accuracy"].argmax()
    assert run_json["best_accuracy"] == metrics["test/accuracy"][best] and run_json["best_epoch"] == best + 1
    assert run_json["last_accuracy"] == metrics["test/accuracy"][-1] and run_json["epoch"] == 7
    assert run_json["collapsed"] is run_json["lost_solution"] is run_json["failed"] is None
    assert run_json["torch"] == torch.__version__ and run_json["digits"] == "embedded" and run_json["device"] == "cpu"
    assert f"best accuracy {run_json['best_accuracy']:.4g}, best epoch {best + 1}" in whole_run.out
    assert all(f"accuracy {accuracy:.2f} %" in whole_run.out for accuracy in metrics["test/accuracy"])
    history = torch.load(whole_run.folder / "checkpoint.pt", weights_only=True)["history"]
    assert read_table(whole_run.folder / "metrics.csv") == history


# ---------------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_reads_what_metrics_csv_holds(whole_run):
    events = EventAccumulator(str(whole_run.folder)).Reload()
    metrics = read_metrics(whole_run.folder)
    tags = {tag for tag in metrics.dtype.names if np.isfinite(metrics[tag]).all()} - {"epoch"}
    assert set(events.Tags()["scalars"]) == {*tags, "outcome/best_accuracy"} and len(tags) > 10
    for tag in tags:
        assert [event.step for event in events.Scalars(tag)] == metrics["epoch"].tolist()
        assert np.array_equal([event.value for event in events.Scalars(tag)], metrics[tag].astype(np.float32))
    best = np.maximum.accumulate(metrics["test/accuracy"])
    assert np.array_equal([event.value for event in events.Scalars("outcome/best_accuracy")], best.astype(np.float32))
    for image, epoch in zip(events.Images("progress"), (0, 5, 7), strict=True):
        figure = imageio.imread(whole_run.folder / "figures" / f"{epoch:03}.png")
        assert image.step == epoch and np.array_equal(imageio.imread(image.encoded_image_string), figure)
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "|digits|embedded|" in text and f"|torch|{torch.__version__}|" in text and "|std|0.3081|" in text


def test_tensorboard_lists_the_run_with_its_settings_and_what_it_compares_runs_by(whole_run):
    content = EventAccumulator(str(whole_run.folder)).Reload().PluginTagToContent("hparams")
    shown = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in shown.items()}
    told = json.loads((whole_run.folder / "run.json").read_text())
    assert shown == {name: "none" if told[name] is None else told[name] for name in ("title", *common.SETTINGS)}
    metrics = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment.metric_infos
    wanted = {"outcome/best_accuracy", "outcome/failed_in_epoch", "stn/scale"}
    assert {metric.name.tag for metric in metrics} == wanted


# ------------------------------------------------------------------------------------------------------------- settings

OWN = """
from functools import partial

from bounds import SMALL
from stn import SpatialTransformer

class Base(SpatialTransformer):
    @staticmethod
    def shrink(theta):
        return theta * 0.5

    def sample(self, images, theta):
        return super().sample(images, self.shrink(theta) + SMALL)

class Own(Base):
    pass

class Step(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)

def helper(value):
    for _ in range(2):
        value += 0
        value *= 1
    return value

FACTOR = 0.9
for rate in (0.01,):
    run_experiment(
        title="own", mean=0.1307, std=1, epochs=1, transformer=partial(Own, slope=helper(0)), max_grad_norm=1,
        make_optimizer=lambda model: Step(model.parameters(), lr=rate),
        make_scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3], gamma=FACTOR),
        penalty=lambda theta: (
            theta.square().mean() * 1
        ),
    )
"""
BOUNDS = "SMALL = 0.1\n"  # the module beside it
ALL = "model.parameters(), lr=rate"
RATES = '[{"params": model.stn.parameters(), "lr": 0.001}, {"params": model.classifier.parameters()}], lr=0.01'
CHANGES = {  # of the two, each of which makes its run another: old, new, and what is said of it
    "rate": (ALL, "model.parameters(), lr=0.02", "optimizer was Step(lr=0.01), is Step(lr=0.02)"),
    "rate, in the loop": ("(0.01,)", "(0.02,)", "optimizer was Step(lr=0.01), is Step(lr=0.02)"),
    "nesterov": (ALL, f"{ALL}, momentum=0.9, nesterov=True", "is Step(lr=0.01, momentum=0.9, nesterov=True)"),
    "held": (ALL, "model.stn.parameters(), lr=rate", "is Step(lr=0.01 on stn)"),
    "rates": (ALL, RATES, "is Step(lr=0.001 on stn; lr=0.01 on classifier)"),
    "mean": ("mean=0.1307", "mean=0", "mean was 0.1307, is 0"),
    "drift": ("max_grad_norm=1,", "max_grad_norm=1, drift=0.1,", "drift was None, is 0.1"),
    "slope": ("helper(0)", "helper(0.1)", "transformer was Own(slope=0), is Own(slope=0.1)"),
    "a static method of a base": ("theta * 0.5", "theta * 0.25", "now `return theta * 0.25`"),
    "a schedule's number": ("FACTOR = 0.9", "FACTOR = 0.8", "MultiStepLR(gamma=0.8, last_epoch=0)"),
    "a lambda's second line": ("* 1", "* 2", "* 1"),
    "an indentation": ("        value *= 1", "    value *= 1", "`    value *= 1` was there, now `value *= 1`"),
    "a module": ("SMALL = 0.1", "SMALL = 0.2", "bounds.py: `SMALL = 0.1` was there, now `SMALL = 0.2`"),
}


def write_own(folder, old="", new=""):
    """OWN and the module that it takes a number from, with one text in the place of another."""
    write_script(folder, OWN.replace(old, new))
    (folder / "bounds.py").write_text(BOUNDS.replace(old, new))
    return folder


def import_afresh(root):
    """As in a new process: a fork of the tests' may hold another module of such a name."""
    for name in ("bounds", "maker"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(root))


def run_own(log_dir, root, *options):
    return run(log_dir, *PLAIN, *options, root=root, before=lambda: import_afresh(root))


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A finished run of a script of a user's own, on plain digits; its log folder."""
    path = tmp_path_factory.mktemp("own")
    (path / "runs").mkdir()
    ended = run_own(path / "runs", write_own(path))
    assert ended.code == 0, ended.err
    return path / "runs"


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_begun_with_other_settings_is_refused_in_a_line_with_old_and_new(own_run, tmp_path, change):
    (old, new, said), kept = CHANGES[change], files(own_run)
    assert (OWN + BOUNDS).count(old) == 1
    refused = run_own(own_run, write_own(tmp_path, old, new), "--epochs=2")
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1, refused.err
    assert f"{own_run / PLAIN_NAME} is another run's (" in refused.err and said in refused.err, refused.err
    assert "take that back, or choose another --log-dir" in refused.err and "remove" not in refused.err
    assert files(own_run) == kept


HIDDEN = {  # in a script's sweep, or beside the script: what its settings and its own text do not show
    "a lambda": 'for name, penalty in (("a", lambda theta: 0.1 * theta.square().mean()),):',
    "a list": 'for name, bounds in (("a", [0.1, 1]),):\n    def penalty(theta): return bounds[0] * theta.mean()',
    "a tuple": 'for name, bounds in (("a", (0.1, 1)),):\n    def penalty(theta): return bounds[0] * theta.mean()',
    "a file": "low = float(open(__file__ + '.txt').read())\nfor name in 'a':\n"
    "    def penalty(theta): return low * theta.mean()",
}
HIDING = """
    run_experiment(
        title="own", mean=0.5, std=1, epochs=1, variant=name, penalty=penalty,
        make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    )
"""


@pytest.mark.parametrize("how", HIDDEN)
def test_what_a_sweep_or_a_file_hides_is_found(log_dir, tmp_path, how):
    for number in ("0.1", "0.2"):
        root = write_script(tmp_path / "scripts", HIDDEN[how].replace("0.1", number) + HIDING)
        (root / "classification_experiment_1.py.txt").write_text(number)
        ended = run(log_dir, *PLAIN, "--epochs=2", root=root)
        assert ended.err.count("\n") == (number == "0.2"), ended.err
    assert "is another run's" in ended.err and "0.1" in ended.err and "0.2" in ended.err, ended.err


def test_a_script_that_failed_before_there_was_an_epoch_may_be_mended(log_dir, tmp_path):
    for how, failure in (("0.1 * theta.square()", "RuntimeError: "), ("0.1 * theta.square().mean()", "")):
        text = HIDDEN["a lambda"].replace("0.1 * theta.square().mean()", how) + HIDING
        ended = run(log_dir, *PLAIN, root=write_script(tmp_path / "scripts", text))
        assert failure in ended.err
    assert ended.err == "" and "finished: epoch 1" in ended.out, ended.err


def test_what_a_script_imports_is_kept_also_where_its_path_is_relative_or_a_link(log_dir, tmp_path):
    root, linked = write_own(tmp_path / "scripts"), tmp_path / "linked"
    linked.mkdir()
    (linked / "classification_experiment_1.py").symlink_to(root / "classification_experiment_1.py")

    def from_there():
        os.chdir(root)
        import_afresh(root)

    for number, folder in enumerate((Path(), linked)):
        into = log_dir / str(number)
        into.mkdir()
        assert run(into, *PLAIN, root=folder, before=from_there).code == 0
        assert (into / PLAIN_NAME / "code" / "bounds.py").exists()


SAME = {  # of a script, none of which makes its run another
    "a comment": ("theta * 0.5", "theta * 0.5  # half"),
    "layout, as black has it": ("theta.square().mean() * 1\n", "theta.square(\n            ).mean() * 1\n"),
    "a docstring": ("    for _ in", '    """Adds nothing."""\n    for _ in'),
    "the title": ('title="own"', 'title="mine"'),
    "the epochs": ("epochs=1", "epochs=2"),
    "a sweep's values": ("(0.01,)", "(0.01,)[:2]"),
}


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_define_a_run_does_not_make_it_another(own_run, log_dir, tmp_path, change):
    old, new = SAME[change]
    assert OWN.count(old) == 1
    shutil.copytree(own_run / PLAIN_NAME, log_dir / PLAIN_NAME)
    again = run_own(log_dir, write_own(tmp_path / "scripts", old, new), "--epochs=2")
    assert again.code == 0 and "finished: epoch 2" in again.out, again.err


def test_a_script_that_is_changed_while_its_runs_go_on_is_recorded_as_it_was(log_dir, tmp_path, monkeypatch):
    root = write_script(tmp_path / "scripts", SWEEP.replace("RATES", "[0.1, 0.2]"))
    script, train = root / "classification_experiment_1.py", common.train
    text = script.read_text()

    def train_and_change_it(*args):
        script.write_text(text.replace("mean=0.5", "mean=0.7"))
        return train(*args)

    ended = run(log_dir, *PLAIN, root=root, before=lambda: monkeypatch.setattr(common, "train", train_and_change_it))
    assert ended.code == 0 and script.read_text() != text, ended.err
    for rate in ("0.1", "0.2"):
        folder = log_dir / f"classification_experiment_1_{rate}_mnist_limit384"
        assert json.loads((folder / "run.json").read_text())["mean"] == 0.5
        assert (folder / "code" / script.name).read_text() == text


def test_two_runs_of_a_script_need_variants(log_dir, tmp_path):
    """The first run is there, and stays; no advice may lead to its removal."""
    root = write_script(tmp_path / "scripts", SWEEP.replace("RATES", "[0.1, 0.2]").replace("variant=rate, ", ""))
    refused_run(log_dir, "give each one of its own", *PLAIN, root=root)
    assert json.loads((log_dir / PLAIN_NAME / "run.json").read_text())["epoch"] == 1


def test_an_experiment_may_be_made_in_another_module_which_is_part_of_what_it_is(log_dir, tmp_path):
    root = write_script(tmp_path / "scripts", "from maker import make\n\nmake(0.1)\n")
    for mean, code in (("0.5", 0), ("0.5 * 1", 1)):
        text = f"import torch\nfrom common import run_experiment\n\n\ndef make(rate):\n    mean = {mean}\n"
        text += "    run_experiment(title='made', mean=mean, std=1, epochs=1, make_optimizer=lambda model: "
        (root / "maker.py").write_text(text + "torch.optim.SGD(model.parameters(), lr=rate))\n")
        ended = run_own(log_dir, root)
        assert ended.code == code, ended.err
    assert "maker.py: `mean = 0.5` was there, now `mean = 0.5 * 1`" in ended.err
    assert (log_dir / PLAIN_NAME / "code" / "maker.py").exists()


NUMPY = """
for rate in np.geomspace(0.001, 0.1, 3):
    run_experiment(
        title=f"rate {rate}", mean=np.float32(0.5), std=np.float64(0.25), epochs=np.int64(1), variant=rate,
        make_optimizer=lambda model, rate=rate: torch.optim.Adam(model.parameters(), lr=rate, betas=(rate, 0.9)),
        make_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.cos(epoch / 9)),
    )
"""
ONE = NUMPY.replace("np.geomspace(0.001, 0.1, 3)", "[0.1]")


def test_a_script_may_compute_its_numbers_with_numpy(log_dir, tmp_path):
    root = write_script(tmp_path / "scripts", NUMPY)
    assert run(log_dir, *PLAIN, root=root).code == 0
    again = run(log_dir, *PLAIN, "--epochs=2", root=root)
    assert again.code == 0 and again.err == "" and again.out.count("finished: epoch 2") == 3
    for rate in ("0.001", "0.01", "0.1"):
        folder = log_dir / f"classification_experiment_1_{rate}_mnist_limit384"
        assert json.loads((folder / "run.json").read_text())["variant"] == float(rate)
        (group,) = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(float(rate) * np.cos(2 / 9)) and type(group["betas"][0]) is float


def test_what_no_checkpoint_can_hold_is_said_before_there_is_an_epoch_to_lose(log_dir, tmp_path):
    call = ONE.replace("betas=(rate, 0.9)", "weight_decay=np.array([0.1])").replace("variant=rate", "variant=None")
    refused_run(log_dir, "(such as numpy's)", *PLAIN, root=write_script(tmp_path / "scripts", call))


@pytest.mark.parametrize("variant", ['"a/b"', '"../up"', '""', "(1, 2)", '"two words"'])
def test_a_variant_that_makes_no_folder_name_is_refused_in_a_line(log_dir, tmp_path, variant):
    root = write_script(tmp_path / "scripts", ONE.replace("variant=rate", f"variant={variant}"))
    ended = run(log_dir, *PLAIN, root=root)
    assert ended.err.count("\n") == 1 and "the variant should be a number or a word" in ended.err, ended.err
    assert not list(log_dir.iterdir()) and not (log_dir.parent / "up").exists()
