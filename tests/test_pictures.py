"""The pictures that are made of run folders: the states of a transformer, and two runs side by side."""

import sys

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "assets"))
import make_comparison
import make_states
import thin_gif

import common
import stn


def call(script, monkeypatch, folder, *arguments):
    """Runs a script's main() with these arguments, its pictures going into `folder`."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    monkeypatch.setattr(script, "ASSETS", folder, raising=False)
    script.main()


def test_states_are_what_the_saved_weights_do_to_the_first_eight_test_images(whole_run, monkeypatch, tmp_path):
    call(make_states, monkeypatch, tmp_path, "begins", whole_run.folder, 0, "ends", whole_run.folder, 7)
    _, (images, _), _ = common.load_canvases("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier()
    model.load_state_dict(torch.load(whole_run.folder / "weights" / "007.pt", weights_only=True))
    with torch.no_grad():
        batch = (images[:8].float() - 0.1307) / 0.3081
        theta, seen = model.stn.theta(batch), (model.stn(batch) * 0.3081 + 0.1307).clamp(0, 1)
    states = np.load(tmp_path / "states.npz")
    assert states["names"].tolist() == ["begins", "ends"] and np.array_equal(states["images"], images[:8, 0])
    assert np.allclose(states["theta"][0], np.array([[1, 0, 0], [0, 1, 0]]))
    assert np.allclose(states["theta"][1], theta, atol=1e-5)
    assert np.allclose(states["seen"][1] / 255, seen[:, 0], atol=0.003)


def test_the_comparison_has_a_frame_for_every_weights_file_that_both_runs_have(whole_run, monkeypatch, tmp_path):
    call(make_comparison, monkeypatch, tmp_path, whole_run.folder, whole_run.folder)
    frames = imageio.imread(tmp_path / "comparison.gif")
    assert frames.shape[:3] == (3, make_comparison.HEIGHT, make_comparison.WIDTH)
    top, bottom = make_comparison.HEAD, make_comparison.HEAD + 2 * make_comparison.TILE + make_comparison.SEEN
    starts = make_comparison.MARGIN, 2 * make_comparison.MARGIN + make_comparison.PANEL
    left, right = (frames[1][top:bottom, start : start + make_comparison.PANEL] for start in starts)
    assert np.array_equal(left, right)  # the same run twice
    assert left.max() > 200 and not np.array_equal(frames[0], frames[2])


@pytest.mark.parametrize("every, kept", [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4])])
def test_a_thin_gif_has_every_nth_frame_and_the_last(every, kept, monkeypatch, tmp_path):
    frames = [np.full((9, 9, 3), 50 * i, np.uint8) for i in range(5)]
    imageio.imwrite(tmp_path / "all.gif", np.stack(frames))
    call(thin_gif, monkeypatch, tmp_path, tmp_path / "all.gif", every, tmp_path / "some.gif")
    assert [frame[0, 0, 0] // 50 for frame in imageio.imread(tmp_path / "some.gif")] == kept


def test_a_gif_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    for arguments, line in (((tmp_path / "none.gif", 2, tmp_path / "to.gif"), "none.gif"), ((), "usage: ")):
        with pytest.raises(SystemExit) as end:
            call(thin_gif, monkeypatch, tmp_path, *arguments)
        assert line in end.value.code and "\n" not in end.value.code


@pytest.mark.parametrize("script", [make_states, make_comparison])
def test_wrong_folders_are_one_line(script, monkeypatch, tmp_path):
    arguments = ("name", tmp_path, 5) if script is make_states else (tmp_path, tmp_path)
    for wrong, line in ((arguments, "holds no run"), ((), "usage: ")):
        with pytest.raises(SystemExit) as end:
            call(script, monkeypatch, tmp_path, *wrong)
        assert line in end.value.code and "\n" not in end.value.code


def test_an_epoch_without_weights_is_refused_with_those_that_there_are(whole_run, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        call(make_states, monkeypatch, tmp_path, "name", whole_run.folder, 6)
    assert "no weights of epoch 6" in end.value.code and "[0, 5, 7]" in end.value.code
