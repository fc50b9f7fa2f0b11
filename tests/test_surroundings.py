"""A run in whatever a user has: shell, terminal, locale, settings, signals, GPU; what cannot go on says so."""

import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, read_metrics, run, write_script

import common

SHORT = "--limit=384", "--dataset=mnist"
NAME = "classification_experiment_1_mnist_limit384"


def shell(command, cwd, **environment):
    """Runs a command line with our modules on the path; returns the finished process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


DIVERGES = """
for rate in (0.001, 1e30, 0.01):
    run_experiment(
        title=f"rate {rate}", mean=0.5, std=0.25, epochs=1, variant=rate,
        make_optimizer=lambda model, rate=rate: torch.optim.SGD(model.parameters(), lr=rate),
    )
"""


# --------------------------------------------------------------------------------------------------------------- shells


def test_from_a_shell_where_one_run_of_a_script_diverges_the_others_run_and_the_exit_code_says_it(tmp_path):
    """Without a network, and the command that is printed can be pasted."""
    root, log_dir = write_script(tmp_path / "scripts", DIVERGES), tmp_path / 'my runs, it\'s $HOME & "more"'
    command = f"{sys.executable} {root}/classification_experiment_1.py {' '.join(SHORT)} --digits=embedded --seed=3"
    ended = shell(f"{command} --log-dir={shlex.quote(str(log_dir))}", tmp_path)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert "the loss is not finite in epoch 1" in ended.stderr and ended.stdout.count("finished: epoch 1") == 2
    files, _, command = ended.stdout.splitlines()[-1].partition(", curves: ")
    assert shlex.split(command) == ["tensorboard", "--logdir", str(log_dir), *common.TENSORBOARD_OPTIONS.split()]
    folder = log_dir / "classification_experiment_1_0.01_mnist_seed3_limit384"
    assert shlex.split(files) == ["files:", str(folder)]
    assert json.loads((folder / "run.json").read_text())["seed"] == 3


@pytest.mark.parametrize(
    "option, message",
    [
        ("--epochs=0", "argument --epochs: 0 is not from 1 to 9999"),
        ("--seed=100000", "argument --seed: 100000 is not from 0 to 99999"),
        ("--device=cuda:99", "argument --device: invalid choice: 'cuda:99' (choose from "),
        ("--epoch=5", "unrecognized arguments: --epoch=5"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_exit_code_2(monkeypatch, capsys, option, message):
    script = ROOT / "classification_experiment_1.py"
    monkeypatch.setattr(sys, "argv", [script.name, option])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    assert printed.err.count("\n") == 1 and f"classification_experiment_1.py: error: {message}" in printed.err


# ------------------------------------------------------------------------------------------------------------- machines


def pretend_gpu(monkeypatch, fail):
    """Lets torch believe that there is a GPU, which is the CPU under another name, and training call `fail`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "made up")
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, *_, **__: model)
    to, train = torch.Tensor.to, common.train
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *args, **kw: x if "cuda" in args else to(x, *args, **kw))
    monkeypatch.setattr(common, "train", lambda *args: fail() if torch.initial_seed() == 2 else train(*args))


GPU_ERRORS = {  # and whether they are the device's; others are the program's, and shown whole
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."): True,
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x90 and 10x32)"): False,
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU that it makes up cannot stand in for a real one")
@pytest.mark.parametrize("error", GPU_ERRORS, ids=str)
def test_of_errors_on_a_gpu_those_of_the_device_are_a_line_and_others_pass(log_dir, monkeypatch, error):
    def fail():
        raise error

    ended = run(log_dir, *SHORT, "--epochs=3", before=lambda: pretend_gpu(monkeypatch, fail))
    assert ended.code == 1 and ("Traceback" in ended.err) != GPU_ERRORS[error]
    assert (f"cuda cannot be used: {error}: mend this, or use --device cpu" in ended.err) == GPU_ERRORS[error]
    assert len(read_metrics(log_dir / NAME)) == 1  # what was trained is kept
    run_json = json.loads((log_dir / NAME / "run.json").read_text())
    assert run_json["device"] == "cuda (made up)" and run_json["cpu"].startswith("made up, ")


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
