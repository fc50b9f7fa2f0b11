"""A run in whatever a user has: shell, terminal, locale, settings, signals, GPU; what cannot go on says so."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PLAIN, PLAIN_NAME, ROOT, SWEEP, read_metrics, refused_run, run, write_script

import common


def shell(command, cwd, **environment):
    """Runs a command line with our modules on the path; returns the finished process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


# --------------------------------------------------------------------------------------------------------------- shells


def test_from_a_shell_where_one_run_of_a_script_diverges_the_others_run_and_the_exit_code_says_it(tmp_path):
    """Without a network, and the command that is printed can be pasted."""
    root = write_script(tmp_path / "scripts", SWEEP.replace("RATES", "(0.001, 1e30, 0.01)"))
    log_dir = tmp_path / 'my runs, it\'s $HOME & "more"'
    command = f"{sys.executable} {root}/classification_experiment_1.py {' '.join(PLAIN)} --digits=embedded --seed=3"
    ended = shell(f"{command} --log-dir={shlex.quote(str(log_dir))}", tmp_path)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert "the loss is not finite in epoch 1" in ended.stderr and ended.stdout.count("finished: epoch 1") == 2
    files, _, command = ended.stdout.splitlines()[-1].partition(", curves: ")
    assert shlex.split(command) == ["tensorboard", "--logdir", str(log_dir), *common.TENSORBOARD_OPTIONS.split()]
    folder = log_dir / "classification_experiment_1_0.01_mnist_seed3_limit384"
    assert shlex.split(files) == ["files:", str(folder)]
    assert json.loads((folder / "run.json").read_text())["seed"] == 3


WRONG = {
    "--epochs=0": "argument --epochs: 0 is not from 1 to 9999",
    "--epoch=5": "unrecognized arguments: --epoch=5",
}


@pytest.mark.parametrize("option", WRONG)
def test_wrong_arguments_end_in_one_line_and_exit_code_2(log_dir, option):
    ended = run(log_dir, option)
    assert ended.code == 2 and ended.out == "" and ended.err.count("\n") == 1
    assert f"classification_experiment_1.py: error: {WRONG[option]}" in ended.err


# ------------------------------------------------------------------------------------------------------------- machines


def pretend_gpu(monkeypatch, fail=None):
    """Lets torch believe that there is a GPU, which is the CPU under another name, and training call `fail`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "made up")
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, *_, **__: model)
    to, train = torch.Tensor.to, common.train
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *args, **kw: x if "cuda" in args else to(x, *args, **kw))
    monkeypatch.setattr(common, "train", lambda *args: fail() if fail and torch.initial_seed() == 2 else train(*args))


GPU_ERRORS = {  # and whether they are the device's; others are the program's, and shown whole
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."): True,
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x90 and 10x32)"): False,
}


@pytest.mark.parametrize("error", GPU_ERRORS, ids=str)
def test_of_errors_on_a_gpu_those_of_the_device_are_a_line_and_others_pass(log_dir, monkeypatch, error):
    def fail():
        raise error

    ended = run(log_dir, *PLAIN, "--epochs=3", before=lambda: pretend_gpu(monkeypatch, fail))
    assert ended.code == 1 and ("Traceback" in ended.err) != GPU_ERRORS[error]
    assert (f"cuda cannot be used: {error}: mend this, or use --device cpu" in ended.err) == GPU_ERRORS[error]
    assert len(read_metrics(log_dir / PLAIN_NAME)) == 1  # what was trained is kept
    run_json = json.loads((log_dir / PLAIN_NAME / "run.json").read_text())
    assert run_json["device"] == "cuda (made up)" and run_json["cpu"].startswith("made up, ")


def test_convolutions_on_a_gpu_are_in_float32():
    """As matrices are by torch's default; seen by the switches alone."""
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_a_run_that_went_from_a_gpu_to_a_cpu_names_both(log_dir, monkeypatch):
    """A made-up GPU."""
    assert run(log_dir, *PLAIN, "--epochs=1", before=lambda: pretend_gpu(monkeypatch)).code == 0
    for epochs in (2, 3):
        assert run(log_dir, *PLAIN, f"--epochs={epochs}", "--device=cpu").code == 0
    cpu = json.loads((log_dir / PLAIN_NAME / "run.json").read_text())["cpu"]
    first, second = cpu.split(", then ")
    assert first == f"made up, {second}"


# --------------------------------------------------------------------------------------------- a user's own experiments

OWN = """
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau
from stn import SpatialTransformer

class NoLinear(SpatialTransformer):
    def theta(self, images):
        features = self.localization(images)
        return features[:, :6, 0, 0].view(-1, 2, 3) + torch.eye(2, 3, device=images.device)

torch.optim.SGD([torch.zeros(1)])  # after which torch calls hooks in its step also where that of a child calls it

class ScheduleFree(torch.optim.SGD):
    mode = None
    def train(self):
        self.mode = "train"
    def eval(self):
        self.mode = "eval"
    def step(self, closure=None):
        assert self.mode == "train"
        return super().step(closure)
    def state_dict(self):
        assert self.mode in (None, "eval")
        return super().state_dict()

run_experiment(title="own", mean=0.1307, std=0.3081, epochs=2, GIVEN)
"""
GROUPS = "[{'params': model.stn.parameters()}, {'params': model.classifier.parameters()}]"
SGD = "make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)"
WORKS = {
    "one cycle": f"{SGD}, make_scheduler=lambda o: OneCycleLR(o, max_lr=0.1, total_steps=13)",
    "cyclic": f"{SGD}, make_scheduler=lambda o: CyclicLR(o, 0.001, 0.1)",
    "plateau": f"{SGD}, make_scheduler=lambda o: ReduceLROnPlateau(o, patience=0, threshold=9)",
    "schedule-free": f"make_optimizer=lambda model: ScheduleFree({GROUPS}, lr=0.01), drift=0.035",
    "no linear layer": f"{SGD}, transformer=NoLinear",
    "a classifier alone": "make_optimizer=lambda model: torch.optim.SGD(model.classifier.parameters(), lr=0.01)",
}


@pytest.mark.parametrize("given", WORKS)
def test_optimizers_schedules_and_transformers_of_other_kinds_work(log_dir, tmp_path, given):
    root = write_script(tmp_path / "scripts", OWN.replace("GIVEN", WORKS[given]))
    for epochs in (1, 2):
        ended = run(log_dir, *PLAIN, f"--epochs={epochs}", root=root)
        assert ended.code == 0 and ended.err == "", ended.err
    metrics = read_metrics(log_dir / PLAIN_NAME)
    group, *_ = common.load_state(log_dir / PLAIN_NAME / "checkpoint.pt")["optimizer"]["param_groups"]
    wanted = {"plateau": pytest.approx(1e-4), "one cycle": pytest.approx(4e-7, rel=1e-3)}  # after its last step but one
    assert given not in wanted or group["lr"] == wanted[given]
    assert np.isnan(metrics["stn/active"]).all() == (given == "no linear layer")
    assert np.isnan(metrics["stn/rate"]).all() == (given == "a classifier alone")


REFUSED = {
    "LBFGS's step has a missing a required argument": "make_optimizer=lambda m: torch.optim.LBFGS(m.parameters())",
    "drift cannot be followed: parameter group 0 holds weights that theta does not come from": f"{SGD}, drift=0.035",
    "2 epochs are 12 steps, but its schedule ends after 11": WORKS["one cycle"].replace("13", "11"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_trained_is_refused_in_a_line_before_training(log_dir, tmp_path, words):
    root = write_script(tmp_path / "scripts", OWN.replace("GIVEN", REFUSED[words]))
    assert refused_run(log_dir, words, *PLAIN, "--epochs=2", root=root).out == ""


def test_where_the_data_folder_cannot_be_made_the_embedded_digits_are_taken(tmp_path):
    (tmp_path / "file").write_text("")
    assert common.load_digits(tmp_path / "file" / "data")[2] == "embedded"
    with pytest.raises(common.RunError, match="another --data-dir"):
        common.load_digits(tmp_path / "file" / "data", "full")


def test_a_call_without_a_script_is_a_line(tmp_path):
    ended = shell(f"{sys.executable} -c 'from common import run_experiment; run_experiment(title=1)'", tmp_path)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1 and "has to be called by a script" in ended.stderr


# ----------------------------------------------------------------------------------------------- the pages and pictures


def test_pages_and_pictures_do_not_depend_on_the_users_locale_and_settings_of_matplotlib(tmp_path):
    """The pages hold letters that ASCII has not, and the tables of the committed files."""
    shutil.copytree(ROOT / "assets", tmp_path / "assets", ignore=shutil.ignore_patterns("*.py", "*.gif", "*.png"))
    page = tmp_path / "README.md"
    page.write_text((ROOT / "README.md").read_text(encoding="utf-8") + "std²\n", encoding="utf-8")
    before = page.read_bytes()
    command = "from pathlib import Path; from assets.figures import put_tables; import matplotlib; "
    command += "put_tables(Path('assets').absolute()); print(matplotlib.rcParams['image.origin'])"
    (tmp_path / "matplotlibrc").write_text("image.origin: lower\n")
    theirs = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "MATPLOTLIBRC": str(tmp_path)}
    theirs |= {"PYTHONSAFEPATH": "1", "MPLBACKEND": "a notebook of another version"}
    ended = shell(f'{sys.executable} -c "{command}"', tmp_path, **theirs)
    assert ended.returncode == 0 and ended.stdout == "upper\n", ended.stderr
    assert page.read_bytes() == before


def test_bare_pytest_finds_the_project_from_any_folder(tmp_path):
    command = f"{sys.executable} -m pytest --collect-only -q {ROOT}/tests/test_study.py"
    ended = shell(command, tmp_path, PYTHONPATH="")
    assert ended.returncode == 0, ended.stdout + ended.stderr
