"""Readers, writers, transforms, faults of annotation files, fuzz."""

import copy
import io
import json
import random
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from gptr import COCODataset, DataError
from gptr.data import formats, transforms
from gptr.data.doctor import diagnose
from gptr.data.images import load_image
from gptr.data.sampler import copy_paste, epoch_indices, repeat_factors
from gptr.detections import Detections
from gptr.synth.generate import save_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


def picture(folder, name="a.png", size=(60, 40), **options):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (250, 240, 200)).save(folder / name, **options)
    return folder / name


def coco(tmp_path, **changes):
    """Return the path of a small valid file, with changes."""
    picture(tmp_path / "images")
    data = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 10], "area": 200},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [30, 6, 20, 10], "area": 200},
        ],
        "categories": [{"id": 1, "name": "task"}, {"id": 2, "name": "event"}],
    }
    data.update(changes)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(data))
    return path


def test_gaps_and_text_ids_are_renumbered(tmp_path):
    path = coco(
        tmp_path,
        categories=[{"id": "90", "name": "z"}, {"id": 7, "name": "a"}],
        annotations=[{"id": "x", "image_id": "1", "category_id": 90, "bbox": [1, 2, 3, 4]}],
    )
    data = COCODataset(path)
    assert data.class_names == ("a", "z")
    assert data.category_ids == (7, 90)
    assert data.records[0].labels.tolist() == [1]
    codes = {f.code for f in diagnose(path)}
    assert {"category-id-gaps", "category-id-text"} <= codes


@pytest.mark.parametrize(
    "box",
    [
        [float("nan"), 0, 5, 5],
        [1, 1, -5, 5],
        [1, 1, 0, 5],
        [900, 1, 5, 5],
        "box",
        [1, 2, 3],
        [1, 2, None, 4],
        [1e12, 0, 5, 5],
    ],
)
def test_bad_boxes_are_dropped_counted_and_with_strict_named(tmp_path, box):
    path = coco(tmp_path, annotations=[{"id": 5, "image_id": 1, "category_id": 1, "bbox": box}])
    data = COCODataset(path)
    assert len(data.records[0].labels) == 0
    assert sum(data.notes.values()) == 1
    with pytest.raises(DataError, match="annotation 5"):
        COCODataset(path, strict=True)


def test_overhanging_boxes_are_clipped(tmp_path):
    path = coco(
        tmp_path, annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [-5, 30, 20, 20]}]
    )
    data = COCODataset(path)
    assert data.records[0].xyxy.tolist() == [[0, 30, 15, 40]]
    assert data.notes == {"boxes clipped": 1}


def test_unknown_category_of_a_split_is_named(tmp_path):
    train = COCODataset(coco(tmp_path))
    val = coco(
        tmp_path,
        categories=[{"id": 1, "name": "cloud"}],
        annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    )
    with pytest.raises(DataError, match="'cloud' is not among the 2"):
        COCODataset(val, like=train)


def test_missing_image_is_named(tmp_path):
    data = COCODataset(
        coco(tmp_path, images=[{"id": 1, "file_name": "gone.png", "height": 9, "width": 9}])
    )
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        data[0]


def exif_file(folder):
    image = Image.new("RGB", (60, 40), "white")
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif, quality=95)
    return folder / "turned.jpg"


def test_exif_turns_unless_the_boxes_mean_the_raw_frame(tmp_path):
    path = exif_file(tmp_path)
    assert load_image(path).shape == (60, 40, 3)
    assert load_image(path)[2, -3, 0] > 200
    assert load_image(path)[2, -3, 1] < 90
    assert load_image(path, (40, 60)).shape == (40, 60, 3)
    assert load_image(path, (60, 40)).shape == (60, 40, 3)


def test_modes_become_rgb(tmp_path):
    grey16 = np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20)
    Image.fromarray(grey16).save(tmp_path / "deep.png")
    assert load_image(tmp_path / "deep.png")[..., 0].tolist()[-1][-1] == 255
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert load_image(tmp_path / "cmyk.jpg")[4, 4, 0] > 200
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").min() == 255
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n123")
    with pytest.raises(DataError, match=r"cut\.png"):
        load_image(tmp_path / "cut.png")


def test_yolo_and_voc_agree(tmp_path):
    picture(tmp_path / "y" / "images")
    (tmp_path / "y" / "labels").mkdir()
    (tmp_path / "y" / "labels" / "a.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    (tmp_path / "y" / "data.yaml").write_text("names: [arrow, task]\n")
    picture(tmp_path / "v")
    (tmp_path / "v" / "a.xml").write_text(
        "<annotation><filename>a.png</filename><object><name>task</name><bndbox><xmin>16</xmin>"
        "<ymin>16</ymin><xmax>45</xmax><ymax>25</ymax></bndbox></object></annotation>"
    )
    a, b = formats.read_yolo(tmp_path / "y"), formats.read_voc(tmp_path / "v")
    assert a.records[0].xyxy.tolist() == b.records[0].xyxy.tolist() == [[15, 15, 45, 25]]
    (tmp_path / "y" / "labels" / "a.txt").write_text("9 0.5 0.5 0.5 0.25\n")
    with pytest.raises(DataError, match="line 1: class 9"):
        formats.read_yolo(tmp_path / "y")


BPMN = """<?xml version="1.0"?>
<!-- {"backgroundSize":120} -->
<definitions xmlns="m" xmlns:di="d" xmlns:dc="c"><process>
<task id="t"/><startEvent id="s"><messageEventDefinition/></startEvent><subProcess id="p"/>
<sequenceFlow id="f" sourceRef="s" targetRef="t"/></process>
<di:BPMNShape bpmnElement="t"><dc:Bounds x="20" y="10" width="40" height="20"/></di:BPMNShape>
<di:BPMNShape bpmnElement="s"><dc:Bounds x="80" y="40" width="10" height="10"/></di:BPMNShape>
<di:BPMNShape bpmnElement="p"><dc:Bounds x="0" y="0" width="100" height="70"/></di:BPMNShape>
<di:BPMNEdge bpmnElement="f"><dc:waypoint x="80" y="44"/><dc:waypoint x="60" y="20"/></di:BPMNEdge>
</definitions>"""


def test_bpmn(tmp_path):
    picture(tmp_path / "train" / "images")
    (tmp_path / "train" / "annotations").mkdir()
    (tmp_path / "train" / "annotations" / "a.bpmn").write_text(BPMN)
    data = formats.read_bpmn(tmp_path, "train", containers=False)
    assert data.class_names == ("startEvent/message", "task")
    assert data.records[0].xyxy.tolist() == [[10, 5, 30, 15], [40, 20, 45, 25]]
    assert data.records[0].connectors[0][:2] == (1, 0)
    assert len(formats.read_bpmn(tmp_path, "train").class_names) == 3


def test_ai2d_and_labelme(tmp_path):
    picture(tmp_path / "images", "7.png")
    (tmp_path / "annotations").mkdir()
    content = {
        "blobs": {"B0": {"polygon": [[1, 2], [11, 2], [6, 22]]}},
        "text": {"T0": {"rectangle": [[3, 4], [9, 8]]}},
    }
    (tmp_path / "annotations" / "7.png.json").write_text(json.dumps(content))
    data = formats.read_ai2d(tmp_path)
    assert data.records[0].xyxy.tolist() == [[1, 2, 11, 22], [3, 4, 9, 8]]
    picture(tmp_path / "lm")
    shape = {"label": "cell", "points": [[5, 5], [15, 25]], "shape_type": "rectangle"}
    (tmp_path / "lm" / "a.json").write_text(json.dumps({"imagePath": "a.png", "shapes": [shape]}))
    assert formats.read_labelme(tmp_path / "lm").records[0].xyxy.tolist() == [[5, 5, 15, 25]]


def test_entities_are_refused():
    with pytest.raises(DataError, match="document type"):
        formats.parse_xml('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "x.xml")


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_transforms_keep_boxes_on_the_pixels(seed):
    rng = np.random.default_rng(seed)
    H, W = (int(v) for v in rng.integers(20, 60, 2))
    image = np.zeros((H, W, 3), np.uint8)
    y, x = int(rng.integers(0, H - 6)), int(rng.integers(0, W - 6))
    image[y : y + 5, x : x + 4] = 255
    box = np.array([[x, y, x + 4, y + 5]], float)
    for move in (transforms.flip_horizontal, transforms.rotate90):
        moved, boxes = move(image, box)
        ys, xs = np.nonzero(moved[..., 0])
        assert boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    cut, boxes, keep = transforms.crop(image, box, (x, y, W, H))
    assert keep[0]
    assert cut.shape[:2] == (H - y, W - x)
    assert boxes[0].tolist() == [0, 0, 4, 5]
    small, boxes = transforms.resize(image, box, (2 * H, 3 * W))
    assert np.allclose(boxes[0], box[0] * [3, 2, 3, 2])
    assert small.shape == (2 * H, 3 * W, 3)


def test_repeat_factors_and_copy_paste(flowcharts):
    factors = repeat_factors(flowcharts, 0.9)
    assert factors.min() >= 1
    seen = np.bincount(epoch_indices(factors, 0, 0), minlength=len(flowcharts))
    assert (seen >= np.floor(factors)).all()
    paste = copy_paste(flowcharts, rare=100, count=4)
    record = flowcharts.records[0]
    rng = np.random.default_rng(1)
    image, boxes, labels = record.load(), record.xyxy, record.labels
    for _ in range(4):
        image, boxes, labels = paste(image, boxes, labels, rng)
    assert len(boxes) == len(labels) > len(record.labels)
    assert (boxes[:, 2:] <= 96 + 1e-6).all()


def test_doctor_is_silent_on_clean_sets(tmp_path, flowcharts):
    path = save_coco(flowcharts, tmp_path, "train")
    assert [f for f in diagnose(path) if f.level != "note"] == []
    again = COCODataset(path)
    assert np.array_equal(again[3][0], flowcharts[3][0])
    assert np.array_equal(again.records[3].xyxy, flowcharts.records[3].xyxy)
    assert again.records[3].connectors[0][:2] == flowcharts.records[3].connectors[0][:2]


A1 = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 6, 20, 10], "area": 200}
PLANTED = {
    "category-id-missing": {
        "categories": [{"name": "task"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}]
    },
    "category-id-repeated": {
        "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}]
    },
    "category-id-text": {"categories": [{"id": "1", "name": "a"}, {"id": 2, "name": "c"}]},
    "category-id-gaps": {
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "c"}, {"id": 9, "name": "d"}]
    },
    "category-name-repeated": {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
    "category-name-missing": {"categories": [{"id": 1}, {"id": 2, "name": "a"}]},
    "categories-missing": {"categories": None},
    "images-missing": {"images": "none"},
    "annotations-missing": {"annotations": None},
    "image-id-missing": {"images": [{"file_name": "a.png"}]},
    "image-id-repeated": {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}] * 2
    },
    "image-name-missing": {"images": [{"id": 1, "height": 40, "width": 60}]},
    "image-missing": {"images": [{"id": 1, "file_name": "b.png", "height": 40, "width": 60}]},
    "image-size-missing": {"images": [{"id": 1, "file_name": "a.png"}]},
    "image-size-wrong": {"images": [{"id": 1, "file_name": "a.png", "height": 41, "width": 60}]},
    "annotation-malformed": {"annotations": ["box"]},
    "annotation-id-repeated": {"annotations": [A1, {**A1, "bbox": [1, 1, 5, 5], "area": 25}]},
    "annotation-image-unknown": {"annotations": [{**A1, "image_id": 9}]},
    "annotation-category-unknown": {"annotations": [{**A1, "category_id": 9}]},
    "box-malformed": {"annotations": [{**A1, "bbox": [1, 2]}]},
    "box-not-numeric": {"annotations": [{**A1, "bbox": [1, 2, "3", 4]}]},
    "box-not-finite": {"annotations": [{**A1, "bbox": [1, float("nan"), 3, 4]}]},
    "box-negative": {"annotations": [{**A1, "bbox": [10, 10, -3, 4]}]},
    "box-empty": {"annotations": [{**A1, "bbox": [10, 10, 0, 4]}]},
    "box-outside": {"annotations": [{**A1, "bbox": [100, 10, 5, 4]}]},
    "box-overhangs": {"annotations": [{**A1, "bbox": [50, 10, 20, 4]}]},
    "box-whole-image": {"annotations": [{**A1, "bbox": [0, 0, 60, 40], "area": 2400}]},
    "box-tiny": {"annotations": [{**A1, "bbox": [5, 5, 1, 9], "area": 9}]},
    "box-repeated": {"annotations": [A1, {**A1, "id": 2}]},
    "area-wrong": {"annotations": [{**A1, "area": 999}]},
    "crowd": {"annotations": [{**A1, "iscrowd": 1}]},
    "too-many-objects": {
        "annotations": [{**A1, "id": i, "bbox": [i / 9, 6, 20, 10]} for i in range(120)]
    },
}


@pytest.mark.parametrize("code", PLANTED)
def test_doctor_finds_planted_faults(tmp_path, code):
    assert code in {f.code for f in diagnose(coco(tmp_path, **PLANTED[code]))}


def test_doctor_finds_leaks_and_bad_files(tmp_path):
    first = coco(
        tmp_path, images=[{"id": 1, "file_name": "a.png", "height": 40, "width": 60, "layout": "L"}]
    )
    second = tmp_path / "val.json"
    second.write_text(first.read_text())
    codes = {f.code for f in diagnose(first, others=[second])}
    assert {"image-leak", "layout-leak"} <= codes
    exif_file(tmp_path / "images")
    (tmp_path / "images" / "cut.png").write_bytes(b"\x89PNG")
    Image.new("RGBA", (9, 9)).save(tmp_path / "images" / "clear.png")
    images = [
        {"id": i, "file_name": n, "height": 9, "width": 9}
        for i, n in enumerate(("turned.jpg", "cut.png", "clear.png", "clear.png"))
    ]
    codes = {f.code for f in diagnose(coco(tmp_path, images=images))}
    assert {
        "image-turned",
        "image-unreadable",
        "image-mode",
        "image-repeated",
        "image-name-repeated",
    } <= codes


def fuzz_file(rng: random.Random) -> bytes:
    """Return a damaged COCO file."""
    junk = [
        None,
        "x",
        -1,
        1e308,
        float("nan"),
        [],
        {},
        True,
        "1",
        2,
        [1, 2, 3, 4],
        [0, 0, -1, 5],
        "é",
        10**30,
    ]
    data = {
        "images": [{"id": i, "file_name": "a.png", "height": 40, "width": 60} for i in range(3)],
        "annotations": [
            {"id": i, "image_id": i % 3, "category_id": i % 2, "bbox": [i, i, 5, 5]}
            for i in range(6)
        ],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    for _ in range(rng.randint(1, 5)):
        part = rng.choice(list(data))
        rows = data[part]
        kind = rng.random()
        if kind < 0.1 or not isinstance(rows, list) or not rows:
            data[part] = copy.deepcopy(rng.choice(junk))
        elif kind < 0.2:
            rows[rng.randrange(len(rows))] = copy.deepcopy(rng.choice(junk))
        else:
            row = rng.choice(rows)
            if isinstance(row, dict) and row:
                key = rng.choice(list(row))
                if rng.random() < 0.2:
                    del row[key]
                else:
                    row[key] = copy.deepcopy(rng.choice(junk))
    text = json.dumps(data).encode()
    if rng.random() < 0.1:
        cut = rng.randrange(len(text))
        text = text[:cut] + bytes(rng.randrange(256) for _ in range(3)) + text[cut + 2 :]
    return text


def survive_fuzz(tmp_path, count, seed):
    picture(tmp_path)
    rng = random.Random(seed)
    path = tmp_path / "f.json"
    refused = lines = 0
    for _ in range(count):
        path.write_bytes(fuzz_file(rng))
        diagnose(path, pixels=False)
        try:
            data = COCODataset(path)
            for r in data.records:
                assert np.isfinite(r.xyxy).all()
                assert (r.xyxy[:, 2:] > r.xyxy[:, :2]).all()
        except DataError as error:
            refused += "\n" not in str(error)
            lines += str(error).count("\n")
    assert lines == 0
    assert 0 < refused < count


def test_fuzzed_files(tmp_path):
    survive_fuzz(tmp_path, 300, 1)


@pytest.mark.stress
def test_ten_thousand_fuzzed_files(tmp_path):
    survive_fuzz(tmp_path, 10_000, 2)


def test_writers(tmp_path, drawing):
    found = Detections(
        np.array([[5.0, 5, 40, 30], [60, 60, 90, 90]]),
        np.array([0.9, 0.5]),
        np.array([0, 1]),
        (150, 200),
        ("a<b", "decision"),
        (7, 9),
        drawing,
    )
    assert found.to_coco(3)[1] == {
        "image_id": 3,
        "category_id": 9,
        "bbox": [60, 60, 30, 30],
        "score": 0.5,
    }
    from gptr.data.writers import drawio, html, write_all

    assert (
        len(
            ET.fromstring(found.to_svg(tmp_path / "a.svg")).findall("{http://www.w3.org/2000/svg}g")
        )
        == 2
    )
    cells = list(ET.fromstring(drawio(found, [(0, 1)])).iter("mxCell"))
    assert [c.get("source") for c in cells if c.get("edge")] == ["n0"]
    assert "<svg" in html([("x", found)])
    with pytest.raises(ValueError, match="format='pdf'"):
        write_all(found, tmp_path / "x", ["pdf"])
    buffer = io.BytesIO()
    found.plot("t").savefig(buffer)
    assert len(found.above(0.6)) == 1
