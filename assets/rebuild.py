"""Makes a run's network and optimizer again, by its experiment's script, for the scripts here that look into runs."""

import inspect
import runpy
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch

ASSETS, ROOT = Path(__file__).parent, Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ASSETS)]
from collect import SETTINGS, read_folder  # noqa: E402

import common  # noqa: E402
import stn  # noqa: E402


def read_calls(script):
    """Returns the arguments of each `run_experiment` in a script, as dicts; "look" is the transformer in run.json."""
    signature, calls = inspect.signature(common.run_experiment), []

    def keep(**given):
        call = signature.bind(**given)
        call.apply_defaults()
        calls.append(call.arguments | {"look": common.describe_transformer(call.arguments["transformer"])})

    with mock.patch.object(common, "run_experiment", keep):
        runpy.run_path(str(script), run_name="__main__")
    return calls


def rebuild(folder):
    """Returns the run in a folder (see `collect.read_folder`), its network, its optimizer and its `to_batch`.

    Network and optimizer are as before training. Raises RunError if the folder holds no run, or the experiment's script
    is gone or another than when it ran.
    """
    run = read_folder(folder)
    script = ROOT / f"classification_experiment_{run['experiment']}.py"
    calls = read_calls(script) if script.exists() else []
    call = next((call for call in calls if call["variant"] == run["variant"]), None)
    if call is None:
        raise common.RunError(f"{folder} is a run of {script} that it does not have any more: put that script there")
    model = stn.STNClassifier(60 if run["dataset"] == "cluttered" else 28, call["fill"], call["transformer"])
    model.to(memory_format=torch.channels_last)
    optimizer = call["make_optimizer"](model)
    made = {name: call[name] for name in ("mean", "std", "fill", "max_grad_norm")} | {"transformer": call["look"]}
    made |= {"optimizer": common.describe_optimizer(optimizer, model), "batch_size": common.BATCH_SIZE}
    differs = [f"{name} was {run[name]}, is {made[name]}" for name in SETTINGS if run[name] != made[name]]
    if differs:
        raise common.RunError(f"{script} was changed since {folder} ({'; '.join(differs)}): put that script there")
    peak = 1 if run["dataset"] == "cluttered" else 255
    return run, model, optimizer, partial(common.normalize, peak=peak, mean=run["mean"], std=run["std"])


def load_weights(folder, epoch, model):
    """Loads what the run in a folder saved after an epoch. Raises RunError if it saved none then."""
    path = folder / "weights" / f"{epoch:03}.pt"
    if not path.exists():
        saved = sorted(int(path.stem) for path in path.parent.glob("*.pt"))
        raise common.RunError(f"{folder} has no weights of epoch {epoch}: give one of those that it has, {saved}")
    model.load_state_dict(common.load_state(path))
