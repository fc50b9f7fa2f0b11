import gzip
import hashlib
import shutil
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

import common


@pytest.fixture(scope="module")
def digits():
    return common.load_digits("nowhere", "embedded")


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

    def no_network(*_, **__):
        raise URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return tmp_path


def test_the_embedded_digits_hold_every_class_equally_often_in_both_parts(digits):
    (train_images, train_labels), (test_images, test_labels), which = digits
    assert which == "embedded"
    assert train_images.shape == (4000, 28, 28) and test_images.shape == (1000, 28, 28)
    assert train_images.dtype == test_images.dtype == np.uint8 and train_images.max() == 255
    assert train_labels.dtype == test_labels.dtype == np.int64
    assert np.bincount(train_labels).tolist() == [400] * 10
    assert np.bincount(test_labels).tolist() == [100] * 10
    assert train_labels[:30].tolist() == [*range(10)] * 3  # so that a small --limit holds every class
    assert len(np.unique(np.concatenate([train_images, test_images]), axis=0)) == 5000


def test_a_canvas_is_its_digit_over_clutter(digits):
    (images, _), _, _ = digits
    canvases = common.clutter(images[:200], images, seed=3)
    assert canvases.shape == (200, 60, 60) and canvases.dtype == np.uint8
    assert np.unique(canvases).tolist() == [0, 1]
    bare = common.clutter(images[:200], np.zeros_like(images), seed=3)  # the same places, patches of nothing
    corners = []
    for digit, canvas, alone in zip(images[:200] > 0, canvases, bare, strict=True):
        found = (sliding_window_view(alone, (28, 28)) == digit).all((2, 3)) & (digit.sum() == alone.sum())
        top, left = np.argwhere(found)[0]
        assert found.sum() == 1 and (canvas[top : top + 28, left : left + 28] >= digit).all()
        corners.append((top, left))
    assert np.min(corners) == 0 and np.max(corners) == 31  # randint(60 - 28) excludes its bound


def test_patches_are_six_by_six_and_at_most_eight():
    canvases = common.clutter(np.zeros((500, 28, 28), np.uint8), np.full((9, 28, 28), 200, np.uint8), seed=1)
    full = sliding_window_view(canvases, (6, 6), axis=(1, 2)).all((3, 4))
    union = np.zeros_like(canvases)
    for row in range(6):
        for column in range(6):
            union[:, row : row + 55, column : column + 55] |= full
    assert (union == canvases).all()  # nothing that is not part of a whole patch
    area = canvases.sum((1, 2))
    assert area.max() == 8 * 36 and area.min() >= 36
    assert not canvases[:, 59].any() and not canvases[:, :, 59].any() and canvases[:, 58].any()  # randint(60 - 6)


def test_a_canvas_is_the_recipe_written_out(digits):
    (images, _), _, _ = digits
    rng = np.random.default_rng(5)
    for digit, canvas in zip(images[:50], common.clutter(images[:50], images, seed=5), strict=True):

        def randint(n):
            return int(rng.random() * n)

        top, left, expected = randint(60 - 28), randint(60 - 28), np.zeros((60, 60), np.uint8)
        for _ in range(8):
            source, row, column, y, x = (randint(n) for n in (len(images), 22, 22, 54, 54))
            expected[y : y + 6, x : x + 6] = images[source, row : row + 6, column : column + 6]
        window = expected[top : top + 28, left : left + 28]
        window[:] = np.maximum(window, digit)
        assert np.array_equal(canvas, expected > 0)


def test_canvases_depend_on_their_seed_and_not_on_how_many_are_made(digits):
    (images, _), _, _ = digits
    first = common.clutter(images[:300], images, seed=0)
    assert np.array_equal(first, common.clutter(images[:300], images, seed=0))
    assert np.array_equal(first[:100], common.clutter(images[:100], images, seed=0))
    different = (first != common.clutter(images[:300], images, seed=1)).any((1, 2))
    assert different.all()


def test_the_set_has_the_size_of_the_full_one_and_repeats_the_embedded_digits():
    (images, labels), (test_images, test_labels), which = common.load_canvases("cluttered", "nowhere", "embedded", 9000)
    assert which == "embedded" and images.shape == (9000, 1, 60, 60) and test_images.shape == (1500, 1, 60, 60)
    assert torch.equal(labels[:1000], labels[8000:]) and not torch.equal(images[:1000], images[8000:])
    assert torch.equal(test_labels[:500], test_labels[1000:])
    (plain, _), _, _ = common.load_canvases("mnist", "nowhere", "embedded", 9000)
    assert plain.shape == (9000, 1, 28, 28) and torch.equal(plain[:1000], plain[8000:]) and plain.max() == 255


def test_normalization_maps_to_what_the_network_sees():
    seen = common.normalize(torch.tensor([[0, 51, 255]], dtype=torch.uint8), peak=255, mean=0.1307, std=0.3081)
    expected = torch.tensor([[-0.1307 / 0.3081, (0.2 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081]])
    assert torch.allclose(seen, expected, atol=1e-6)


def test_whole_files_are_read_without_a_network_and_without_writing(mnist):
    before = sorted(mnist.rglob("*"))
    (images, labels), (test_images, _), which = common.load_digits(mnist)
    assert which == "full" and images.shape == (60, 28, 28) and len(test_images) == 20
    assert images[0, 5].tolist() == [*range(28)] and labels[:12].tolist() == [*range(10), 0, 1]
    assert sorted(mnist.rglob("*")) == before


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_what_was_unpacked_and_is_not_whole_is_unpacked_again(mnist, damage):
    path = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:5000] if damage == "cut" else data[:-1] + b"\xff")
    assert common.load_digits(mnist)[2] == "full"
    assert path.read_bytes() == data


@pytest.mark.parametrize("digits", ["auto", "full"])
def test_damaged_files_are_named_and_kept_where_no_whole_ones_can_be_had(mnist, digits):
    path = mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"not these")
    archive = path.with_name(path.name + ".gz")
    archive.unlink()
    with pytest.raises(common.RunError, match=f"{path} is damaged .* put a whole one there"):
        common.load_digits(mnist, digits)
    assert path.read_bytes() == b"not these"
    path.unlink()
    archive.write_bytes(b"nor this")
    with pytest.raises(common.RunError, match=f"{archive} is damaged"):
        common.load_digits(mnist, digits)


def test_no_files_and_no_network_is_the_one_case_for_the_embedded_digits(mnist, capsys):
    shutil.rmtree(mnist / "MNIST")
    assert common.load_digits(mnist)[2] == "embedded"
    assert "5,000 EMBEDDED digits" in capsys.readouterr().err
    with pytest.raises(common.RunError, match="cannot be downloaded: copy its files to .* or use --digits embedded"):
        common.load_digits(mnist, "full")


def test_a_server_that_does_not_answer_is_no_network(mnist, monkeypatch):
    shutil.rmtree(mnist / "MNIST")

    def silence(*_, **__):
        assert common.socket.getdefaulttimeout() == 10
        raise TimeoutError("timed out")  # torchvision lets it through

    monkeypatch.setattr(urllib.request, "urlopen", silence)
    assert common.load_digits(mnist)[2] == "embedded"


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_errors(mnist, monkeypatch):
    shutil.rmtree(mnist / "MNIST")
    (mnist / "MNIST").write_text("a file where a folder should be")
    with pytest.raises(OSError, match="MNIST"):
        common.load_digits(mnist)
    (mnist / "MNIST").unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(urllib.request, "urlopen", full)
    with pytest.raises(OSError, match="No space left"):
        common.load_digits(mnist)
