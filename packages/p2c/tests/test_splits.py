"""The DCC split, and the trained detector."""

import json

import torch
from p2c import RegionDetector
from p2c.scenes import make_scenes
from p2c.splits import DCC_OBJECTS, held_out_split, write_split
from p2c.world import THINGS

REFS = {
    1: ["a man on a busy street"],
    2: ["two zebras graze", "animals in grass"],
    3: ["a SOFA, and luggage."],
    4: ["a bottled drink"],
    5: ["a tennis racquet", "a racket"],
    6: ["a cat"],
}


def test_captions_that_name_an_object_in_any_of_its_forms_are_held_out():
    split = held_out_split(REFS)
    assert split.train == [1, 4, 6]
    found = {thing: keys for thing, keys in split.held_out.items() if keys}
    assert found == {"zebra": [2], "couch": [3], "suitcase": [3], "racket": [5]}
    assert list(split.held_out) == list(DCC_OBJECTS)
    assert sorted([*split.val, *split.test]) == [2, 3, 5]
    assert not set(split.val) & set(split.test)
    assert held_out_split(REFS, seed=0) == split


def test_files_keep_images_annotations_and_everything_else(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({
        "info": {"year": 2014},
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in REFS],
        "annotations": [{"id": 10 * k + n, "image_id": k, "caption": c}
                        for k, captions in REFS.items() for n, c in enumerate(captions)],
    }))  # fmt: skip
    split = held_out_split(REFS)
    write_split(path, split, tmp_path / "out")
    parts = [json.loads((tmp_path / "out" / f"{n}.json").read_text())
             for n in ("train", "val", "test")]  # fmt: skip
    assert [row["id"] for row in parts[0]["images"]] == [1, 4, 6]
    assert all(part["info"] == {"year": 2014} for part in parts)
    everything = [row["caption"] for part in parts for row in part["annotations"]]
    assert sorted(everything) == sorted(c for captions in REFS.values() for c in captions)
    held = json.loads((tmp_path / "out" / "held_out.json").read_text())
    assert held["racket"] == [5]


def test_detector_learns_and_leaves_out_what_it_is_not_sure_of():
    """Trained on half of the scenes it names most objects of the others; chance is 1 in 62."""
    torch.manual_seed(0)
    scenes = make_scenes(500, 5, (0.3, 0.4, 0.3))
    net = RegionDetector([t.word for t in THINGS], width=16)
    number = {w: k for k, w in enumerate(net.labels)}
    truth = torch.tensor([[number[e.first.word], number[e.second.word]] for e in scenes.events])
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    for step in range(90):
        index = torch.randperm(450, generator=torch.Generator().manual_seed(step))[:64]
        loss = net.loss(scenes.crops[index].flatten(0, 1), truth[index].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = float((net(scenes.crops[450:].flatten(0, 1)).argmax(1) == truth[450:].flatten())
                  .float().mean())  # fmt: skip
    assert right > 0.5
    everything, sure = (net.detect(scenes.crops[450:], t) for t in (0.0, 0.9))
    assert all(1 <= len(row) <= 2 for row in everything)
    assert 0 < sum(map(len, sure)) < sum(map(len, everything))
    assert net.detect(scenes.crops[450:451], 1.1) == [[]]
