"""A run in whatever a user has: shell, terminal, locale, settings, signals, GPU; what cannot go on says so."""

import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, experiment, finish, read_metrics, run, start, write_script
from torch.utils._python_dispatch import TorchDispatchMode

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


def test_a_script_runs_from_a_shell_without_a_network_and_prints_a_command_that_can_be_pasted(tmp_path):
    log_dir = tmp_path / 'my runs, it\'s $HOME & "more"'
    command = f"{sys.executable} {ROOT}/classification_experiment_4.py {' '.join(SHORT)} --epochs=1 --seed=3"
    ended = shell(f"{command} --digits=embedded --log-dir={shlex.quote(str(log_dir))}", tmp_path)
    folder = log_dir / "classification_experiment_4_mnist_seed3_limit384"
    assert ended.returncode == 0, ended.stderr
    files, _, command = ended.stdout.splitlines()[-1].partition(", curves: ")
    assert shlex.split(command) == ["tensorboard", "--logdir", str(log_dir), *common.TENSORBOARD_OPTIONS.split()]
    assert shlex.split(files) == ["files:", str(folder)]
    run_json = json.loads((folder / "run.json").read_text())
    assert run_json["fill"] == -0.1307 / 0.3081 and run_json["optimizer"] == "SGD(lr=0.01)" and run_json["seed"] == 3


def test_where_one_run_of_a_script_diverges_the_others_run_and_the_exit_code_says_it(tmp_path):
    root = write_script(tmp_path / "scripts", DIVERGES)
    command = f"{sys.executable} {root}/classification_experiment_1.py {' '.join(SHORT)} --digits=embedded"
    ended = shell(command, tmp_path)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
    assert "the loss is not finite in epoch 1" in ended.stderr and ended.stdout.count("finished: epoch 1") == 2


@pytest.mark.parametrize(
    "option, message",
    [
        ("--epochs=0", "argument --epochs: 0 is not from 1 to 9999"),
        ("--epochs=ten", "argument --epochs: invalid int value: 'ten'"),
        ("--limit=100", "argument --limit: 100 is not from 384 to 60000"),
        ("--seed=-1", "argument --seed: -1 is not from 0 to 99999"),
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


# ------------------------------------------------------------------------------------------------------ what is printed


def test_what_was_started_with_ctrl_c_ignored_ignores_it(log_dir):
    """As a shell starts jobs."""
    process = start(log_dir, *SHORT, "--epochs=3", before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    while process.is_alive() and not (log_dir / NAME / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process, log_dir).code == 0 and len(read_metrics(log_dir / NAME)) == 3


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
    RuntimeError("CUDA error: no kernel image is available for execution on the device"): True,
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."): True,
    torch.AcceleratorError("CUDA error: unspecified launch failure"): True,
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


def test_a_device_needs_no_float64():
    """Apple's has none (simulated: no operation may take or make a tensor of it)."""

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            tensors = [x for x in (*args, *(out if isinstance(out, (tuple, list)) else [out])) if torch.is_tensor(x)]
            assert all(x.dtype != torch.float64 or x.dim() == 0 and not x.requires_grad for x in tensors), function
            assert not (torch.is_tensor(out) and out.dtype == torch.float64), function
            return out

    (images, labels), *_ = common.load_images("mnist", "nowhere", "embedded", 384)
    limited = experiment(dataset="mnist", max_motion=0.1, max_grad_norm=1, fill=-0.4)
    network = common.make_network(limited)
    with NoFloat64():
        common.train(limited, network, images[:128], labels[:128])
        common.test(limited, network.model, images[:128], labels[:128])


# ----------------------------------------------------------------------------------------------- the pages and pictures


def test_pages_and_pictures_do_not_depend_on_the_users_locale_and_settings_of_matplotlib(tmp_path):
    """The pages hold letters that ASCII has not, and the tables of the committed files."""
    shutil.copytree(ROOT / "assets", tmp_path / "assets", ignore=shutil.ignore_patterns("*.py", "*.gif", "*.png"))
    pages = tmp_path / "README.md", tmp_path / "assets" / "README.md"
    pages[0].write_text((ROOT / "README.md").read_text(encoding="utf-8") + "std²\n", encoding="utf-8")
    before = [page.read_bytes() for page in pages]
    assert not any(page.isascii() for page in before)
    command = "from pathlib import Path; from assets.figures import put_tables; import matplotlib; "
    command += "put_tables(Path('assets').absolute()); "
    command += "print(matplotlib.rcParams['image.origin'], matplotlib.rcParams['font.size'])"
    (tmp_path / "matplotlibrc").write_text("image.origin: lower\nfont.size: 30\nsavefig.dpi: 300\n")
    theirs = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONSAFEPATH": "1"}
    theirs |= {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLBACKEND": "a notebook of another version"}
    ended = shell(f'{sys.executable} -c "{command}"', tmp_path, **theirs)
    assert ended.returncode == 0 and ended.stdout == "upper 10.0\n", ended.stderr
    assert [page.read_bytes() for page in pages] == before
