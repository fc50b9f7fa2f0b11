import ast
import errno
import gzip
import hashlib
import io
import os
import shutil
import ssl
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import ROOT, experiment
from numpy.lib.stride_tricks import sliding_window_view
from torchvision.datasets import utils

import common

URLOPEN = urllib.request.urlopen
REFUSED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"


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

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    yield tmp_path
    common.socket.setdefaulttimeout(None)


def no_network(*_, **__):
    raise URLError("no network in this test")


def bad_certificate(*_, **__):
    raise URLError(ssl.SSLCertVerificationError(1, REFUSED))


def contents(folder):
    """All that is in a folder: names, and the bytes of files."""
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.fixture
def serve(mnist, monkeypatch):
    """Puts a server on this machine where MNIST's are; it answers with `answer(request, file)`, MNIST's file in bytes.

    Returns the names of the files that it was asked for, in that order.
    """
    archives = {path.name: path.read_bytes() for path in mnist.rglob("*.gz")}
    servers = []

    def start(answer):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path[1:])
                answer(self, archives[self.path[1:]])

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(common.MNIST, "mirrors", [f"http://127.0.0.1:{servers[-1].server_port}/"] * 2)
        monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
        monkeypatch.setenv("no_proxy", "*")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(request, data, length=None):
    request.send_response(200)
    request.send_header("Content-Length", str(length or len(data)))
    request.end_headers()
    request.wfile.write(data)


def forbid(request, file):
    request.send_error(403)


def send_page(request, file):
    send(request, b"<html>Please log in.</html>")


def break_off(request, file):
    """The last of the four files is sent by half."""
    last = "t10k-labels" in request.path
    send(request, file[: len(file) // 2] if last else file, len(file))


def hang_up(request, file):
    request.close_connection = True


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
    assert np.unique(canvases).tolist() == [0, 255]
    bare = common.clutter(images[:200], np.zeros_like(images), seed=3)  # the same places, patches of nothing
    corners = []
    for digit, canvas, alone in zip(images[:200] > 0, canvases, bare, strict=True):
        found = (sliding_window_view(alone > 0, (28, 28)) == digit).all((2, 3)) & (digit.sum() == (alone > 0).sum())
        top, left = np.argwhere(found)[0]
        assert found.sum() == 1 and (canvas[top : top + 28, left : left + 28] >= 255 * digit).all()
        corners.append((top, left))
    assert np.min(corners) == 0 and np.max(corners) == 31  # randint(60 - 28) excludes its bound


def test_patches_are_six_by_six_and_at_most_eight():
    canvases = common.clutter(np.zeros((500, 28, 28), np.uint8), np.full((9, 28, 28), 200, np.uint8), seed=1) > 0
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
        assert np.array_equal(canvas, 255 * (expected > 0))


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
    seen = experiment().normalize(torch.tensor([[0, 51, 255]], dtype=torch.uint8))
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


def test_what_is_downloaded_is_put_in_place_whole_and_never_again(mnist, serve):
    whole = contents(mnist / "MNIST")
    shutil.rmtree(mnist / "MNIST")
    asked = serve(send)
    (images, _), _, which = common.load_digits(mnist / "new" / "folder")
    assert which == "full" and images.shape == (60, 28, 28)
    assert contents(mnist / "new" / "folder" / "MNIST") == whole and len(set(asked)) == 4
    assert [path.name for path in (mnist / "new" / "folder").iterdir()] == ["MNIST"]
    asked.clear()
    assert common.load_digits(mnist / "new" / "folder")[2] == "full" and not asked


def test_only_what_is_not_whole_is_downloaded(mnist, serve):
    whole, raw = contents(mnist), mnist / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    asked = serve(send)
    assert common.load_digits(mnist)[2] == "full" and set(asked) == {"t10k-labels-idx1-ubyte.gz"}
    assert contents(mnist) == whole


FAILURES = [
    (no_network, "no network in this test"),
    (bad_certificate, "CERTIFICATE_VERIFY_FAILED"),
    (forbid, "HTTP Error 403: Forbidden"),
    (send_page, "not found or corrupted"),
    (break_off, "not found or corrupted"),
    (hang_up, "Remote end closed connection"),
]


@pytest.fixture(params=FAILURES, ids=lambda failure: failure[0].__name__)
def failure(request, serve, monkeypatch):
    """Makes downloads fail, and says in which words."""
    how, words = request.param
    if how in (no_network, bad_certificate):
        monkeypatch.setattr(urllib.request, "urlopen", how)
    else:
        serve(how)
    return words


def test_a_download_that_fails_leaves_nothing_and_says_why_each_time(mnist, failure, capsys):
    shutil.rmtree(mnist / "MNIST")
    said = []
    for _ in range(2):
        assert common.load_digits(mnist)[2] == "embedded"
        assert contents(mnist) == {}
        said.append([line for line in capsys.readouterr().err.splitlines() if "!!!" in line or failure in line])
    assert said[0] == said[1] and len(said[0]) == 4 and "5,000 EMBEDDED digits" in said[0][1]
    assert failure in said[0][3] and "!!!" not in said[0][3]
    with pytest.raises(common.RunError) as error:
        common.load_digits(mnist, "full")
    assert failure in str(error.value) and "\n" not in str(error.value)
    assert f"copy its files to {mnist}/MNIST/raw, or use --digits embedded" in str(error.value)
    assert contents(mnist) == {}


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte.gz"])
def test_whatever_fails_what_the_user_put_there_stays(mnist, failure, name):
    raw = mnist / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").unlink()
    (raw / "train-images-idx3-ubyte.gz").unlink()
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    (raw / name).write_bytes(b"damaged")
    for path in (mnist / "notes.txt", mnist / "MNIST" / "notes.txt", raw / "train-images.bak"):
        path.write_text("mine")
    before = contents(mnist)
    for digits in ("auto", "full"):
        with pytest.raises(common.RunError, match=f"{raw / name} is damaged") as error:
            common.load_digits(mnist, digits)
        assert failure in str(error.value) and contents(mnist) == before
    (raw / name).unlink()
    del before[(raw / name).relative_to(mnist)]
    assert common.load_digits(mnist)[2] == "embedded" and contents(mnist) == before


def test_three_started_together_without_a_network_all_go_on_with_the_embedded_digits(mnist, monkeypatch):
    shutil.rmtree(mnist / "MNIST")
    together = threading.Barrier(3, timeout=10)

    def wait_for_all(*_, **__):
        together.wait()
        raise URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", wait_for_all)
    with ThreadPoolExecutor(3) as threads:
        loaded = threads.map(lambda _: common.load_digits(mnist)[2], range(3))
    assert [*loaded] == ["embedded"] * 3 and contents(mnist) == {}


def test_three_that_download_together_all_have_the_full_digits(mnist, serve):
    whole = contents(mnist)
    shutil.rmtree(mnist / "MNIST")
    together = threading.Barrier(3, timeout=10)

    def send_to_all(request, file):
        together.wait()
        send(request, file)

    serve(send_to_all)
    with ThreadPoolExecutor(3) as threads:
        loaded = threads.map(lambda _: common.load_digits(mnist)[2], range(3))
    assert [*loaded] == ["full"] * 3 and contents(mnist) == whole


def test_a_server_that_does_not_answer_is_no_network(mnist, monkeypatch):
    shutil.rmtree(mnist / "MNIST")

    def silence(*_, **__):
        assert common.socket.getdefaulttimeout() == 10
        raise TimeoutError("timed out")  # torchvision lets it through

    monkeypatch.setattr(urllib.request, "urlopen", silence)
    assert common.load_digits(mnist)[2] == "embedded"


def test_a_file_where_a_folder_should_be_is_an_error(mnist, serve):
    shutil.rmtree(mnist / "MNIST")
    (mnist / "MNIST").write_text("mine")
    before = contents(mnist)
    serve(send)
    with pytest.raises(OSError, match="MNIST"):
        common.load_digits(mnist)
    assert contents(mnist) == before


def test_a_full_disk_is_an_error_and_no_reason_to_fall_back(mnist, serve, monkeypatch):
    class OnFullDisk(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("train-labels-idx1-ubyte", "train-labels-idx1-ubyte.gz"):
        (mnist / "MNIST" / "raw" / name).unlink()
    before = contents(mnist)
    serve(send)
    monkeypatch.setattr(utils, "open", OnFullDisk, raising=False)
    with pytest.raises(OSError, match="No space left"):
        common.load_digits(mnist)
    assert contents(mnist) == before


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.py"), *ROOT.glob("assets/*.py")]), ids=lambda path: path.name)
def test_the_lowest_python_that_the_requirements_install_on_can_read_it(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    indices = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript)]
    tuples = [index for index in indices if isinstance(index, ast.Tuple)]
    # x[a, *b] is new in 3.11, and a newer Python's parser takes it all the same
    assert not any(isinstance(part, ast.Starred) for index in tuples for part in index.elts)
