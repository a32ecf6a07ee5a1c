import gzip
import struct
import zipfile

import numpy as np
import pytest
import torch
from backdoor_ft import InputError, LabeledData
from backdoor_ft.augment import Augment, crop_flip, draw_crops
from backdoor_ft.data import idx, image_folder, load, overlap, toy_text
from PIL import Image


def test_range_and_labels_are_checked():
    x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    LabeledData(x, y, 4)
    with pytest.raises(InputError, match="divide by 255"):
        LabeledData(x * 255, y, 4)
    with pytest.raises(InputError, match="out of range"):
        LabeledData(x, y, 3)
    with pytest.raises(InputError, match="out of range"):
        LabeledData(x, y - 1, 4)
    with pytest.raises(InputError, match="one label per input"):
        LabeledData(x, y[:3], 4)
    with pytest.raises(InputError, match="not finite"):
        LabeledData(x * float("nan"), y, 4)
    with pytest.raises(InputError, match="uint8"):
        LabeledData((x * 255).byte(), y, 4)
    with pytest.raises(InputError, match="empty"):
        LabeledData(x[:0], y[:0], 4)


def test_bytes_are_scaled_and_channels_moved():
    found = LabeledData.from_arrays(np.full((2, 4, 5, 3), 255, np.uint8), np.array([0, 1]))
    assert found.inputs.shape == (2, 3, 4, 5)
    assert float(found.inputs.max()) == 1.0


def test_split_is_balanced_and_disjoint(digits):
    train, _ = digits
    small, rest = train.split(100, seed=3)
    assert torch.bincount(small.labels).min() >= 9
    assert overlap(small, rest) == overlap(train, rest) - len(small) or overlap(small, rest) == 0


def test_overlap_counts_equal_inputs(digits):
    train, test = digits
    mixed = LabeledData(
        torch.cat((test.inputs, train.inputs[:5])), torch.cat((test.labels, train.labels[:5])), 10
    )
    assert overlap(mixed, train) == overlap(test, train) + 5


def write_images(root, size=8):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (root / part / label).mkdir(parents=True)
            for k in range(3):
                pixels = np.full((size, size, 3), 40 * k + (label == "dog"), np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{k}.png")


def test_loaders_agree(tmp_path):
    write_images(tmp_path / "set")
    folder = image_folder(tmp_path / "set" / "train")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in (tmp_path / "set").rglob("*.png"):
            archive.write(file, f"set/{file.relative_to(tmp_path / 'set')}")
    zipped = load(str(tmp_path / "set.zip"), "train")
    assert torch.equal(folder.inputs, zipped.inputs)
    assert load(str(tmp_path / "set.zip"), "test", limit=2).labels.tolist() == [0, 0, 1, 1]
    assert len(load(f"cifar10-jpeg:{tmp_path / 'set'}", "test")) == 6
    np.savez(tmp_path / "a.npz", inputs=(folder.inputs * 255).byte().numpy(), labels=folder.labels)
    assert torch.equal(load(str(tmp_path / "a.npz")).inputs, folder.inputs)


def test_idx(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8)
    (tmp_path / "x").write_bytes(struct.pack(">HBBIII", 0, 8, 3, 2, 3, 3) + pixels.tobytes())
    (tmp_path / "y.gz").write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2) + bytes([3, 4])))
    found = idx(tmp_path / "x", tmp_path / "y.gz")
    assert found.labels.tolist() == [3, 4]
    assert found.inputs.shape == (2, 1, 3, 3)
    (tmp_path / "x").write_bytes(b"\x00\x00\x08\x03")
    with pytest.raises(InputError):
        idx(tmp_path / "x", tmp_path / "y.gz")


@pytest.mark.parametrize("seed", range(12))
def test_fuzzed_files_give_one_line(tmp_path, seed):
    draw = np.random.default_rng(seed)
    write_images(tmp_path / "set")
    np.savez(tmp_path / "a.npz", inputs=np.zeros((2, 1, 8, 8), np.uint8), labels=np.array([0, 1]))
    for path in (tmp_path / "a.npz", tmp_path / "set" / "train" / "cat" / "0.png"):
        raw = bytearray(path.read_bytes())
        raw[: draw.integers(4, 30)] = draw.bytes(8)
        path.write_bytes(bytes(raw[: draw.integers(5, len(raw))]))
    for call in (
        lambda: load(str(tmp_path / "a.npz")),
        lambda: image_folder(tmp_path / "set/train"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_object_arrays_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", inputs=np.array([{}], dtype=object), labels=np.array([0]))
    with pytest.raises(InputError):
        load(str(tmp_path / "a.npz"))


def test_unknown_data():
    with pytest.raises(InputError, match="toy-text"):
        load("nothing")


def test_crop_and_flip_against_slices():
    x = torch.rand(6, 2, 5, 5)
    draws = draw_crops(6, 2, True, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    out = crop_flip(x, draws, 2)
    for n, (r, c, f) in enumerate(draws.tolist()):
        window = padded[n, :, r : r + 5, c : c + 5]
        assert torch.equal(out[n], window.flip(2) if f else window)


def test_augment_is_seeded_and_cuts():
    x = torch.ones(3, 1, 8, 8)
    one = Augment(pad=1, flip=True, cutout=4)(x, torch.Generator().manual_seed(5))
    two = Augment(pad=1, flip=True, cutout=4)(x, torch.Generator().manual_seed(5))
    assert torch.equal(one, two)
    assert float(one.mean()) < 1
    tokens = toy_text(4).inputs
    assert Augment(pad=1)(tokens, torch.Generator()) is tokens
