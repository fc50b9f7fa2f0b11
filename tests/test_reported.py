"""What users of such code reported elsewhere, tried here: each is a kind, and this is the right behaviour."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT, experiment, files, finish, pretend_gpu, read_metrics, run, start
from PIL import ImageFont
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode

import common
import stn

SHORT = "--limit=384", "--dataset=mnist"
NAME = "classification_experiment_1_mnist_limit384"


def write_script(folder, text, number=1):
    """A script of a user, in a folder of its own, that begins as ours do."""
    folder.mkdir(exist_ok=True)
    head = '"""Experiment: a user\'s?"""\n\nimport numpy as np\nimport torch\n\nfrom common import run_experiment\n\n'
    (folder / f"classification_experiment_{number}.py").write_text(head + text)
    return folder


def shell(command, cwd, **environment):
    """Runs a command line with our modules on the path; returns the finished process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


RATES = """
for rate in np.geomspace(0.001, 0.1, 3):
    run_experiment(
        title=f"rate {rate}", mean=np.float32(0.5), std=np.float64(0.25), epochs=np.int64(1), variant=rate,
        make_optimizer=lambda model, rate=rate: torch.optim.Adam(model.parameters(), lr=rate, betas=(rate, 0.9)),
        make_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.cos(epoch / 9)),
    )
"""


def test_a_script_may_compute_its_numbers_with_numpy(log_dir, tmp_path):
    root = write_script(tmp_path / "scripts", RATES)
    assert run(log_dir, *SHORT, root=root).code == 0
    again = run(log_dir, *SHORT, "--epochs=2", root=root)
    assert again.code == 0 and again.err == "" and again.out.count("finished: epoch 2") == 3
    for rate in ("0.001", "0.01", "0.1"):
        folder = log_dir / f"classification_experiment_1_{rate}_mnist_limit384"
        assert json.loads((folder / "run.json").read_text())["variant"] == float(rate)
        (group,) = torch.load(folder / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(float(rate) * np.cos(2 / 9)) and type(group["betas"][0]) is float


def test_what_no_checkpoint_can_hold_is_said_before_there_is_an_epoch_to_lose(log_dir, tmp_path):
    call = RATES.replace("for rate in np.geomspace(0.001, 0.1, 3):", "for rate in [0.1]:")
    call = call.replace("betas=(rate, 0.9)", "weight_decay=np.array([0.1])").replace("variant=rate", "variant=None")
    ended = run(log_dir, *SHORT, root=write_script(tmp_path / "scripts", call))
    assert ended.code == 1 and ended.err.count("\n") == 1, ended.err
    assert "checkpoint.pt holds what torch does not load" in ended.err and "damaged" not in ended.err


@pytest.mark.parametrize("variant", ['"a/b"', '"../up"', '""', "(1, 2)", '"two words"'])
def test_a_variant_that_makes_no_folder_name_is_refused_in_a_line(log_dir, tmp_path, variant):
    call = RATES.replace("for rate in np.geomspace(0.001, 0.1, 3):", "for rate in [0.1]:")
    root = write_script(tmp_path / "scripts", call.replace("variant=rate", f"variant={variant}"))
    ended = run(log_dir, *SHORT, root=root)
    assert ended.err.count("\n") == 1 and "the variant should be a number or a word" in ended.err, ended.err
    assert not list(log_dir.iterdir()) and not (log_dir.parent / "up").exists()


@pytest.mark.parametrize("separator", ["=", " "])
def test_a_tilde_is_the_home_folder(tmp_path, separator):
    command = f"{sys.executable} {ROOT}/classification_experiment_1.py {' '.join(SHORT)} --epochs=1 --digits=embedded"
    command = command.replace("--digits=embedded", "--digits=auto")
    home = tmp_path / "home"
    home.mkdir()
    (home / "mnist").write_text("a file where the folder goes")
    ended = shell(f"{command} --log-dir{separator}'~/runs' --data-dir{separator}'~/mnist'", tmp_path, HOME=str(home))
    assert f"{home}/mnist" in ended.stderr and ended.stderr.count("\n") == 1
    assert (home / "runs" / NAME).is_dir() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("after", ["at the first line", "in the second epoch"])
def test_a_run_goes_on_when_its_terminal_is_closed(log_dir, after):
    """As after `disown`: whatever is written there fails with EIO."""
    keeper, terminal = pty.openpty()

    def on_the_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for descriptor in (1, 2):
            os.dup2(terminal, descriptor)
        sys.stdout, sys.stderr = (open(descriptor, "w", closefd=False) for descriptor in (1, 2))
        os.close(keeper)

    process = start(log_dir, *SHORT, "--epochs=4", before=on_the_terminal)
    os.close(terminal)
    metrics = log_dir / NAME / "metrics.csv"
    while after == "in the second epoch" and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        os.read(keeper, 1000)
        time.sleep(0.01)
    os.close(keeper)
    assert finish(process, log_dir).code == 0
    assert read_metrics(log_dir / NAME)["epoch"].tolist() == [1, 2, 3, 4]


def test_an_error_is_told_though_nobody_reads_what_else_is_printed(tmp_path):
    call = RATES.replace("np.geomspace(0.001, 0.1, 3)", "(1e30,)")
    call = re.sub("torch.optim.Adam.*0.9.*,", "torch.optim.SGD(model.parameters(), lr=rate),", call)
    root = write_script(tmp_path / "scripts", call)
    command = f"{sys.executable} {root}/classification_experiment_1.py {' '.join(SHORT)} --digits=embedded"
    ended = shell(f"{command} | true", tmp_path)
    assert "the loss is not finite in epoch 1" in ended.stderr


def test_pictures_do_not_depend_on_the_users_settings_of_matplotlib(tmp_path, log_dir):
    (tmp_path / "matplotlibrc").write_text("image.origin: lower\nfont.size: 30\nsavefig.dpi: 300\n")
    script = f"{sys.executable} {ROOT}/classification_experiment_1.py {' '.join(SHORT)} --epochs=1 --digits=embedded"
    settings = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "MPLBACKEND": "a notebook of another version"}
    for name, environment in (("plain", {}), ("set", settings)):
        ended = shell(f"{script} --log-dir={name}", tmp_path, **environment)
        assert ended.returncode == 0, ended.stderr
    ours, theirs = (tmp_path / name / NAME / "figures" / "001.png" for name in ("plain", "set"))
    assert ours.read_bytes() == theirs.read_bytes()
    draw = "import assets.figures, matplotlib as m; print(m.rcParams['image.origin'], m.rcParams['font.size'])"
    ended = shell(f'{sys.executable} -c "{draw}"', tmp_path, **settings)
    assert ended.returncode == 0 and ended.stdout == "upper 10.0\n", ended.stderr


def test_the_pages_stay_as_they_are_where_the_locale_is_not_utf_8(tmp_path):
    """Both hold letters that ASCII has not, and the tables of the committed files."""
    shutil.copytree(ROOT / "assets", tmp_path / "assets", ignore=shutil.ignore_patterns("*.py", "*.gif", "*.png"))
    shutil.copy(ROOT / "README.md", tmp_path)
    pages = tmp_path / "README.md", tmp_path / "assets" / "README.md"
    before = [page.read_bytes() for page in pages]
    assert not any(page.isascii() for page in before)
    command = "from pathlib import Path; from assets.figures import put_tables; put_tables(Path('assets').absolute())"
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONSAFEPATH": "1"}
    ended = shell(f'{sys.executable} -c "{command}"', tmp_path, **ascii_only)
    assert ended.returncode == 0, ended.stderr
    assert [page.read_bytes() for page in pages] == before


def test_a_notebook_runs_a_script(log_dir):
    """Its streams have no reconfigure, and no descriptor, as those of IPython's kernel."""

    class Stream:
        def __init__(self, file):
            self.file = file

        def write(self, text):
            return self.file.write(text)

        def flush(self):
            self.file.flush()

        def isatty(self):
            return False

    def in_a_notebook():
        sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)

    ended = run(log_dir, *SHORT, "--epochs=1", before=in_a_notebook)
    assert ended.code == 0 and ended.err == "" and "finished: epoch 1" in ended.out


def test_a_device_needs_no_float64():
    """Apple's has none (simulated: no operation may take or make a tensor of it)."""

    class NoFloat64(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            tensors = [x for x in (*args, *(out if isinstance(out, (tuple, list)) else [out])) if torch.is_tensor(x)]
            assert all(x.dtype != torch.float64 or x.dim() == 0 and not x.requires_grad for x in tensors), function
            assert not (torch.is_tensor(out) and out.dtype == torch.float64), function
            return out

    (images, labels), _, _ = common.load_canvases("mnist", "nowhere", "embedded", 384)
    limited = experiment(dataset="mnist", max_motion=0.1, max_grad_norm=1, fill=-0.4)
    network = common.make_network(limited)
    with NoFloat64():
        common.train(limited, network, images[:128], labels[:128])
        common.test(limited, network.model, images[:128], labels[:128])


def test_where_one_run_of_a_script_diverges_the_others_run_and_the_exit_code_says_it(tmp_path):
    call = RATES.replace("np.geomspace(0.001, 0.1, 3)", "(0.001, 1e30, 0.01)")
    call = re.sub("torch.optim.Adam.*0.9.*,", "torch.optim.SGD(model.parameters(), lr=rate),", call)
    root = write_script(tmp_path / "scripts", call)
    for _ in range(2):
        command = f"{sys.executable} {root}/classification_experiment_1.py {' '.join(SHORT)} --digits=embedded"
        ended = shell(command, tmp_path)
        assert ended.returncode == 1 and ended.stderr.count("\n") == 1, ended.stderr
        assert "the loss is not finite in epoch 1" in ended.stderr and ended.stdout.count("finished: epoch 1") == 2


@pytest.mark.parametrize("hours", [2, 0])
def test_tensorboard_shows_all_epochs_though_the_clock_went_back(log_dir, monkeypatch, hours):
    """Twice, and a run that goes on within the second in which it was begun."""
    for epochs in (2, 4, 5):

        def at_another_time(epochs=epochs):
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now - hours * 3600 * epochs if hours else 1.7e9)

        assert run(log_dir, *SHORT, f"--epochs={epochs}", before=at_another_time).code == 0
    events = EventAccumulator(str(log_dir / NAME)).Reload()
    assert [event.step for event in events.Scalars("test/accuracy")] == [1, 2, 3, 4, 5]
    assert len(list((log_dir / NAME).glob("events*"))) == 3


def test_a_warning_while_gpus_are_counted_is_not_taken_for_having_none(monkeypatch, capsys):
    """Simulated: NVML warns, and the GPU works."""

    def count():
        warnings.warn("Can't initialize NVML", stacklevel=2)
        return 1

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", count)
    monkeypatch.setattr(sys, "argv", ["x"])
    assert common.parse_arguments(experiment(), "").device == "cuda"
    err = capsys.readouterr().err
    assert err == "Can't initialize NVML\n"


def test_a_script_runs_under_a_profiler_and_its_class_is_known_there_as_elsewhere(tmp_path):
    script = f"{ROOT}/classification_experiment_15.py {' '.join(SHORT)} --epochs=1 --digits=embedded --log-dir=runs"
    for module in ("", "-m cProfile -o profile"):
        ended = shell(f"{sys.executable} {module} {script}", tmp_path)
        assert ended.returncode == 0 and "finished: epoch 1" in ended.stdout, ended.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    wanted = "class Smoothed(SpatialTransformer): def sample(self, images, theta): return super().sample(F.avg_pool2d("
    assert json.loads((folder / "run.json").read_text())["transformer"].startswith(wanted)


def test_a_comment_in_a_scripts_class_does_not_make_its_runs_anothers(log_dir, tmp_path):
    text = (ROOT / "classification_experiment_13.py").read_text()
    for name, old, new, code in (
        ("first", "theta through", "theta through", 0),
        ("commented", "        return super()", "        # squash it\n        return super()", 0),
        ("other", ".tanh()", ".sigmoid()", 1),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "classification_experiment_13.py").write_text(text.replace(old, new))
        assert run(log_dir, *SHORT, "--epochs=1", number=13, root=tmp_path / name).code == code, name


CHANGES = {  # of a script, each of which makes its run another
    "a base of the class": ("theta * 0.5", "theta * 0.25"),
    "a number that the class holds": ("half = 2", "half = 3"),
    "a default of the penalty": ("weight=0.1", "weight=0.2"),
    "a schedule's function": ("0.9**epoch", "0.8**epoch"),
}
OWN = """
from stn import SpatialTransformer

class Base(SpatialTransformer):
    def sample(self, images, theta):
        return super().sample(images, theta * 0.5)

class Own(Base):
    half = 2

run_experiment(
    title="own", mean=0, std=1, epochs=1, transformer=Own,
    make_optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.01),
    make_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
    penalty=lambda theta, weight=0.1: weight * theta.square().mean(),
)
"""


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_of_its_own_a_script_changes_makes_its_run_another(log_dir, tmp_path, change):
    assert run(log_dir, *SHORT, root=write_script(tmp_path / "scripts", OWN)).code == 0
    assert run(log_dir, *SHORT, root=write_script(tmp_path / "scripts", OWN)).code == 0
    old, new = CHANGES[change]
    assert OWN.count(old) == 1
    ended = run(log_dir, *SHORT, root=write_script(tmp_path / "scripts", OWN.replace(old, new)))
    assert ended.code == 1 and "is another run's" in ended.err and ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize("lost", [["metrics.csv"], ["run.json"], ["metrics.csv", "run.json"]])
def test_the_tables_of_a_finished_run_are_written_again_where_they_are_lost(log_dir, lost):
    assert run(log_dir, *SHORT, "--epochs=2").code == 0
    folder = log_dir / NAME
    before = files(folder)
    for name in lost:
        (folder / name).unlink()
    ended = run(log_dir, *SHORT, "--epochs=2")
    after = files(folder)
    assert ended.code == 0 and "finished: epoch 2" in ended.out and after.keys() == before.keys()
    assert all(after[name][1] == before[name][1] for name in before)


def test_a_second_signal_changes_nothing(log_dir):
    process = start(log_dir, *SHORT, "--epochs=9999")
    while not (log_dir / NAME / "checkpoint.pt").exists():
        time.sleep(0.01)
    for _ in range(3):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.03)
    ended = finish(process, log_dir)
    assert ended.code == 143 and re.fullmatch(r"stopped: the same command goes on after epoch \d+\n", ended.err)


def test_what_was_started_with_ctrl_c_ignored_ignores_it(log_dir):
    def as_a_shell_starts_jobs():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(log_dir, *SHORT, "--epochs=3", before=as_a_shell_starts_jobs)
    while process.is_alive() and not (log_dir / NAME / "checkpoint.pt").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    ended = finish(process, log_dir)
    assert ended.code == 0 and len(read_metrics(log_dir / NAME)) == 3


@pytest.mark.parametrize("words", [1, 10, 40])
def test_the_whole_title_is_in_the_figure(words):
    """The strip above the panels, where the title stands, is white at its right edge, and black not far from it."""
    title = "normalized, of a long name, " * words + "epoch 99, COLLAPSED in epoch 31"
    images = torch.zeros(16, 1, 28, 28, dtype=torch.uint8)
    figure = common.draw_figure(experiment(), stn.STNClassifier(28), images, title)
    strip = (figure[:30] < 128).any(axis=(0, 2))
    (inked,) = np.nonzero(strip)
    assert inked.max() < figure.shape[1] - 8
    width = max(s for s in range(1, 17) if ImageFont.load_default(s).getlength(title) < figure.shape[1] - 18)
    assert inked.max() > 0.9 * ImageFont.load_default(width).getlength(title)


GPU_ERRORS = {
    "CUDA error: no kernel image is available for execution on the device": True,
    "CUDA out of memory. Tried to allocate 20.00 MiB.": True,
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED": True,
    "mat1 and mat2 shapes cannot be multiplied (64x90 and 10x32)": False,
    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!": False,
}


@pytest.mark.parametrize("message", GPU_ERRORS)
def test_of_errors_on_a_gpu_those_of_the_device_are_a_line_and_others_pass(log_dir, monkeypatch, message):
    """The device is the CPU, under the name of a GPU."""

    def with_a_gpu():
        pretend_gpu(monkeypatch)

        def fail(*_):
            raise RuntimeError(message)

        monkeypatch.setattr(common, "train", fail)

    ended = run(log_dir, *SHORT, "--epochs=1", before=with_a_gpu)
    assert ended.code == 1 and ("Traceback" in ended.err) != GPU_ERRORS[message]
    assert (f"cuda cannot be used: {message}: mend this, or use --device cpu" in ended.err) == GPU_ERRORS[message]


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: unspecified launch failure"), torch.OutOfMemoryError("full")]
)
def test_torchs_own_classes_of_device_errors_are_a_line(error):
    folder = common.RunFolder(ROOT / "nowhere", experiment(), {})
    with pytest.raises(SystemExit, match="cuda cannot be used"), common.errors_in_one_line(folder, "cuda"):
        raise error


def test_an_intact_checkpoint_is_not_called_damaged(log_dir):
    assert run(log_dir, *SHORT, "--epochs=1").code == 0
    path = log_dir / NAME / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"epoch": np.float64(1)}, path)  # as older versions wrote it
    kept = path.read_bytes()
    for data, damaged in ((kept, False), (kept[:-400], True), (kept[:3000] + b"x" * 64 + kept[3064:], True)):
        path.write_bytes(data)
        ended = run(log_dir, *SHORT, "--epochs=2")
        assert ended.code == 1 and ended.err.count("\n") == 1 and ("is damaged" in ended.err) == damaged, ended.err
        assert path.read_bytes() == data
