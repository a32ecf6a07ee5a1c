import gzip
import struct
import zipfile

import numpy as np
import pytest
import torch
from nasa import data
from nasa.data import load, load_digits
from PIL import Image


def test_digits_are_split_without_overlap():
    train, test = load_digits()
    assert (len(train), len(test)) == (1347, 450)
    assert abs(train.images.mean()) < 1e-4
    rows = {tuple(x.flatten().tolist()) for x in train.images}
    assert sum(tuple(x.flatten().tolist()) in rows for x in test.images) == 0


def test_batches_depend_on_the_seed_only():
    train, _ = load_digits()
    one, two, three = (torch.cat([y for _, y in train.batches(64, seed)]) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8) % 3
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", labels)
    train, test = load(str(tmp_path))
    assert train.images.shape == (6, 1, 4, 4)
    assert train.classes == 3
    assert torch.equal(train.labels, test.labels)
    half, _ = load(str(tmp_path), size=2)
    means = torch.from_numpy(images.reshape(6, 1, 2, 2, 2, 2).mean((3, 5)))
    expected = (means - means.mean()) / means.std(correction=0)
    assert torch.allclose(half.images.double(), expected, atol=1e-4)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"nonsense"))
    with pytest.raises(ValueError, match="no IDX file"):
        load(str(tmp_path))


def test_fashion_mnist_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "FASHION_MNIST", tmp_path / "absent")
    with pytest.raises(ValueError, match="install Debian's package dataset-fashion-mnist"):
        load("fashion-mnist")
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    for stem in ("train", "t10k"):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte.gz", np.arange(6, dtype=np.uint8))
    monkeypatch.setattr(data, "FASHION_MNIST", tmp_path)
    assert load("fashion-mnist")[0].classes == 6


def test_image_folders_and_zip(tmp_path):
    root = tmp_path / "set"
    for part in ("train", "test"):
        for i, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for k in range(2):
                image = Image.new("RGB", (6, 6), (40 * k, 100 * i, 7))
                image.save(root / part / name / f"{k}.png")
    train, _ = load(str(root), size=4)
    assert train.images.shape == (4, 3, 4, 4)
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*.png")):
            file.write(path, path.relative_to(root))
    zipped, _ = load(str(archive), size=4)
    assert torch.equal(zipped.images, train.images)
    Image.new("RGB", (5, 6)).save(root / "train" / "cat" / "odd.png")
    with pytest.raises(ValueError, match="differ in size"):
        load(str(root))
