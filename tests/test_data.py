"""Digits and canvases: which they are, where they come from, and what becomes of a download that fails."""

import gzip
import hashlib
import io
import json
import urllib.request
from http.client import RemoteDisconnected
from urllib.error import URLError

import imageio.v3 as imageio
import numpy as np
import pytest
from conftest import ROOT, refused_run, run

import common

# ------------------------------------------------------------------------------------------------------------- canvases


@pytest.fixture(scope="module")
def embedded():
    with np.load(ROOT / "assets" / "mnist_5k.npz") as file:
        return file["images"], file["labels"]


def test_the_embedded_digits_hold_every_class_equally_often_in_both_parts(embedded):
    images, labels = embedded
    assert np.bincount(labels[:4000]).tolist() == [400] * 10 and np.bincount(labels[4000:]).tolist() == [100] * 10
    assert labels[:30].tolist() == [*range(10)] * 3  # so that a small --limit holds every class
    assert len(np.unique(images, axis=0)) == 5000


def test_a_canvas_is_the_recipe_written_out(embedded):
    images, rng = embedded[0], np.random.default_rng(5)

    def randint(n):
        return int(rng.random() * n)

    for digit, canvas in zip(images[:50], common.clutter(images[:50], images, seed=5), strict=True):
        top, left, expected = randint(60 - 28), randint(60 - 28), np.zeros((60, 60), np.uint8)
        for _ in range(8):
            source, row, column, y, x = (randint(n) for n in (len(images), 22, 22, 54, 54))
            expected[y : y + 6, x : x + 6] = images[source, row : row + 6, column : column + 6]
        window = expected[top : top + 28, left : left + 28]
        window[:] = np.maximum(window, digit)
        assert np.array_equal(canvas, 255 * (expected > 0)) and canvas.dtype == np.uint8


@pytest.mark.parametrize("dataset", ["mnist", "cluttered", "enlarged"])
def test_canvases_and_labels_are_those_of_the_digits_which_are_used_again(dataset, embedded):
    """Training and test canvases are each of a seed of their own, the same in every run."""
    images, labels = embedded
    *sets, _, _ = common.load_images(dataset, "nowhere", "embedded", 6600)
    parts = slice(4000), slice(4000, None)
    for (canvases, found), count, part, seed in zip(sets, (6600, 1100), parts, (0, 1), strict=True):
        index = np.arange(count) % len(labels[part])
        wanted = images[part][index]
        if dataset != "mnist":
            wanted = common.clutter(wanted, images, seed)
        if dataset == "enlarged":
            wanted = np.kron(wanted, np.ones((2, 2), np.uint8))
        assert np.array_equal(canvases[:, 0], wanted) and found.tolist() == labels[part][index].tolist()


# ------------------------------------------------------------------------------------------------------------ downloads


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """A folder with a small MNIST, whole: archives and unpacked files, whose checksums torchvision and we expect."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    unpacked, archives = {}, []
    for part, count in (("train", 60), ("t10k", 20)):
        images = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 28, 0, 0, 0, 28]) + bytes(range(28)) * 28 * count
        labels = bytes([0, 0, 8, 1, 0, 0, 0, count]) + bytes(i % 10 for i in range(count))
        for name, data in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            packed = gzip.compress(data)
            (raw / name).write_bytes(data)
            (raw / f"{name}.gz").write_bytes(packed)
            unpacked[name] = hashlib.md5(data).hexdigest()
            archives.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(common, "UNPACKED", unpacked)
    monkeypatch.setattr(common.MNIST, "resources", archives)
    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    yield tmp_path
    common.socket.setdefaulttimeout(None)


def contents(folder):
    """The bytes of all files in a folder, by their names."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Answer(io.BytesIO):
    """What `urlopen` returns."""

    url = length = None


@pytest.fixture
def serve(mnist, monkeypatch):
    """Lets MNIST's servers answer with `send(file)`, what it makes of a file's bytes; returns the names asked for."""
    archives = {path.name: path.read_bytes() for path in mnist.rglob("*.gz")}

    def start(send):
        asked = []

        def urlopen(request):
            name = request.full_url.rpartition("/")[2]
            if request.get_method() == "HEAD":
                return Answer()
            asked.append(name)
            return Answer(send(archives[name]))

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return start


def no_network(*_):
    raise URLError("no network in this test")


def silence(*_):
    assert common.socket.getdefaulttimeout() == 10
    raise TimeoutError("timed out")  # torchvision lets it through


def hang_up(*_):
    raise RemoteDisconnected("Remote end closed connection without response")


def break_off(file):
    """The labels' files, which are small here, are sent by half."""
    return file[: len(file) // 2] if len(file) < 120 else file


def test_whole_files_are_read_without_a_network_and_without_writing(mnist):
    before = sorted(mnist.rglob("*"))
    (images, labels), (test_images, _), which = common.load_digits(mnist)
    assert which == "full" and images.shape == (60, 28, 28) and len(test_images) == 20
    assert images[0, 5].tolist() == [*range(28)] and labels[:12].tolist() == [*range(10), 0, 1]
    assert sorted(mnist.rglob("*")) == before


def test_only_what_is_not_whole_is_downloaded_and_never_again(mnist, serve):
    whole, raw, asked = contents(mnist / "MNIST"), mnist / "MNIST" / "raw", serve(bytes)
    new = mnist / "new" / "folder"
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    for folder, wanted in ((mnist, {"t10k-labels-idx1-ubyte.gz"}), (new, {f"{name}.gz" for name in common.UNPACKED})):
        assert common.load_digits(folder)[2] == "full" and set(asked) == wanted
        assert contents(folder / "MNIST") == whole
        asked.clear()
        assert common.load_digits(folder)[2] == "full" and not asked
    assert [path.name for path in new.iterdir()] == ["MNIST"]
    (raw / "train-images-idx3-ubyte").write_bytes(b"damaged")  # and its archive is whole
    assert common.load_digits(mnist)[2] == "full" and not asked and contents(mnist / "MNIST") == whole


FAILURES = {
    no_network: "no network in this test",
    silence: "timed out",
    break_off: "not found or corrupted",
    hang_up: "Remote end closed connection",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_download_that_fails_leaves_what_was_there_and_says_why_each_time(mnist, serve, capsys, failure):
    """Where nothing is there, and where a user's files are, of which one that is needed is damaged."""
    serve(failure)
    raw = mnist / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").unlink()
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"damaged too")
    for path in (mnist / "notes.txt", raw / "train-images.bak"):
        path.write_text("mine")
    for folder in (mnist, mnist, mnist / "empty"):
        before = contents(folder)
        assert common.load_digits(folder)[2] == "embedded" and contents(folder) == before
        lines = capsys.readouterr().err.splitlines()
        said = [line for line in lines if "!!!" in line or FAILURES[failure] in line]
        assert len(said) == 2 and "5,000 EMBEDDED digits" in said[0] and FAILURES[failure] in said[1]
        with pytest.raises(common.RunError) as error:
            common.load_digits(folder, "full")
        assert FAILURES[failure] in str(error.value) and "\n" not in str(error.value)
        assert f"copy its files to {folder}/MNIST/raw, or use --digits embedded" in str(error.value)
        assert contents(folder) == before and not [*folder.glob(".*")]


# ----------------------------------------------------------------------------------------------------- another data set


def make_own(path, seed=0):
    """A file of a user's own: coloured images of 40 x 40, each class a bar at a height of its own."""
    labels = np.arange(500) % 10
    images = np.random.default_rng(seed).integers(0, 60, (500, 3, 40, 40), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label + 4 : 2 * label + 6] = 255
    np.savez(path, images=images, labels=labels)
    return images, labels


def load_own(data_dir, digits, limit):
    with np.load(f"{data_dir}/own.npz") as file:
        images, labels = file["images"], file["labels"]
    return (images[:400], labels[:400]), (images[400:], labels[400:]), "full"


def enter_own():
    common.DATASETS["own"] = common.Dataset(load_own, 40, moves=False, channels=3)


def test_a_data_set_of_a_users_own_is_one_function_and_one_entry(log_dir, tmp_path):
    """It is trained on, gone on with, and its content is part of what the run is."""
    make_own(tmp_path / "own.npz")
    options = "--dataset=own", f"--data-dir={tmp_path}", "--digits=auto", "--limit=390"
    for epochs in (1, 2):
        ended = run(log_dir, *options, f"--epochs={epochs}", before=enter_own, number=21)
        assert ended.code == 0 and ended.err == "", ended.err
    (folder,) = log_dir.iterdir()
    told = json.loads((folder / "run.json").read_text())
    assert folder.name == "classification_experiment_21_own_limit390" and told["dataset"] == "own"
    assert told["epoch"] == 2 and told["data"] is not None
    assert imageio.imread(folder / "progress.gif").shape[0] == 3
    make_own(tmp_path / "own.npz", seed=1)
    refused_run(log_dir, f"the checksum {told['data']}", *options, "--epochs=3", before=enter_own, number=21)
    assert json.loads((folder / "run.json").read_text()) == told


WRONG = {  # what a data set may have in the place of uint8 images (N, 3, 40, 40) and labels from 0 to 9
    "channels last": lambda images, labels: (images.transpose(0, 2, 3, 1), labels),
    "another side": lambda images, labels: (images[:, :, :32, :32], labels),
    "floats": lambda images, labels: (images / 255, labels),
    "labels from 1 on": lambda images, labels: (images, labels + 1),
    "fewer labels": lambda images, labels: (images, labels[:9]),
    "none": lambda images, labels: (images[:0], labels[:0]),
}


@pytest.mark.parametrize("how", WRONG)
def test_a_data_set_with_other_images_or_labels_than_it_says_is_refused(tmp_path, monkeypatch, how):
    images, labels = make_own(tmp_path / "own.npz")
    sets = (images[:400], labels[:400]), WRONG[how](images[400:], labels[400:])
    own = common.Dataset(lambda *_: (*sets, "full"), 40, moves=False, channels=3)
    monkeypatch.setitem(common.DATASETS, "own", own)
    with pytest.raises(common.RunError, match=r"the data set own has .* should have uint8 \(N, 3, 40, 40\), N over 0"):
        common.load_images("own", tmp_path, "auto", 384)


def test_the_checksum_is_of_all_images_and_labels_that_a_run_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "DATASETS", dict(common.DATASETS))
    enter_own()
    images, labels = make_own(tmp_path / "own.npz")
    _, (shown, _), which, checksum = common.load_images("own", tmp_path, "auto", 384)
    assert len(shown) == 64 and which == "full"
    for place, held in ((0, images), (383, images), (450, images), (399, images), (3, labels), (450, labels)):
        before = held[place].copy()
        held[place] += 1
        np.savez(tmp_path / "own.npz", images=images, labels=labels)
        assert (common.load_images("own", tmp_path, "auto", 384)[3] == checksum) == (place == 399)  # which no run sees
        held[place] = before
