"""The pictures that are made of run folders: the states of a transformer, and smaller GIFs."""

import json

import imageio.v3 as imageio
import numpy as np
import torch

import common
import stn
from assets import pictures
from assets.rebuild import SavedRun


def test_states_are_what_the_saved_weights_do_to_the_first_eight_test_images(whole_run, tmp_path):
    pictures.make_states([("begins", whole_run.folder, "0"), ("ends", whole_run.folder, "7")], tmp_path)
    _, (images, _), *_ = common.load_images("cluttered", "nowhere", "embedded", 384)
    model = stn.STNClassifier()
    model.load_state_dict(torch.load(whole_run.folder / "weights" / "007.pt", weights_only=True))
    with torch.no_grad():
        batch = (images[:8].float() / 255 - 0.1307) / 0.3081
        theta, seen = model.stn.theta(batch), (model.stn(batch) * 0.3081 + 0.1307).clamp(0, 1)
    states = np.load(tmp_path / "states.npz")
    assert states["names"].tolist() == ["begins", "ends"] and np.array_equal(states["images"], images[:8, 0])
    assert np.allclose(states["theta"][0], np.array([[1, 0, 0], [0, 1, 0]]))
    assert np.allclose(states["theta"][1], theta, atol=1e-5)
    assert np.allclose(states["seen"][1] / 255, seen[:, 0], atol=0.003)


def test_a_thin_gif_has_every_nth_frame_and_the_last(tmp_path):
    imageio.imwrite(tmp_path / "all.gif", np.stack([np.full((9, 9, 3), 50 * i, np.uint8) for i in range(5)]))
    pictures.thin_gif(tmp_path / "all.gif", 3, tmp_path / "some.gif")
    assert [frame[0, 0, 0] // 50 for frame in imageio.imread(tmp_path / "some.gif")] == [0, 3, 4]


def test_the_digits_come_from_the_run_s_own_data_dir(whole_run, monkeypatch):
    asked, load = [], common.load_images
    monkeypatch.setattr(common, "load_images", lambda *arguments: asked.append(arguments) or load(*arguments))
    SavedRun(whole_run.folder)
    told = json.loads((whole_run.folder / "run.json").read_text())
    assert asked == [("cluttered", told["data_dir"], "embedded", 384)]
