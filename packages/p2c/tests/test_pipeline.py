"""Scenes, files, pipeline, resume."""

import json
import socket

import numpy as np
import pytest
import torch
from p2c import InputError, Pipeline, PipelineConfig
from p2c.formats import (
    read_features,
    read_image,
    read_predictions,
    read_references,
    read_tags,
    read_vinvl,
)
from p2c.report import flags_of
from p2c.scenes import check_held_out, make_corpus, make_scenes, unseen_font
from p2c.summary import summarize, unseen_f1
from p2c.world import HELD_OUT, RICH_VERBS

TINY = {
    "paired": 60, "unpaired": 60, "judged": 80, "corpus": 80, "test": 20, "dim": 16, "layers": 1,
    "lm_steps": 3, "judge_steps": 3, "vivo_steps": 3, "xe_steps": 4, "stage1_steps": 3,
    "stage2_steps": 4, "batch": 16, "stage1_batch": 8, "rl_batch": 8, "samples": 3,
}  # fmt: skip


def test_scenes_are_what_their_seed_says():
    a, b, c = make_scenes(5, 1), make_scenes(5, 1), make_scenes(5, 2)
    assert torch.equal(a.images, b.images)
    assert a.references == b.references
    assert not torch.equal(a.images, c.images)
    assert 0 <= float(a.images.min()) <= float(a.images.max()) <= 1


def test_captions_hold_no_held_out_object_and_no_rich_verb():
    scenes = make_scenes(300, 0, references=2)
    texts = [r for refs in scenes.references for r in refs]
    check_held_out(texts)
    assert not {w for t in texts for w in t.split()} & RICH_VERBS
    with pytest.raises(InputError, match="held-out object couch"):
        check_held_out(["a cat on a sofa"])


def test_corpus_has_all_verbs_and_held_out_words():
    words = {w for line in make_corpus(3000, 0) for w in line.split()}
    assert words >= RICH_VERBS | set(HELD_OUT)


def test_domains_count_novel_objects():
    scenes = make_scenes(60, 3, (0.3, 0.4, 0.3))
    for event, domain in zip(scenes.events, scenes.domains):
        novel = sum(t.word in HELD_OUT for t in (event.first, event.second))
        assert domain == ("in", "near", "out")[novel]


def test_resume_is_bit_identical(tmp_path):
    """A run that is cut within stage 2 and resumed ends with the same weights."""
    config = PipelineConfig.from_dict({**TINY, "checkpoint_every": 2})
    whole = Pipeline(config).run()

    class StopError(Exception):
        pass

    for where in ("XE: step 0", "VIVO + XE", "stage 2"):
        cut = Pipeline(config)
        saved = cut._save

        def stop(saved=saved, cut=cut, where=where):
            saved()
            if cut.state.get("stage", "") == where.split(":")[0]:
                raise StopError

        cut._save = stop
        with pytest.raises(StopError):
            cut.run(tmp_path / where[:2])
        again = Pipeline(config).run(tmp_path / where[:2], resume=True)
        for key, value in whole.captioner.state_dict().items():
            assert torch.equal(value, again.captioner.state_dict()[key]), (where, key)
        assert again.captions == whole.captions
        assert again.curves["rewards"] == whole.curves["rewards"]


def test_resume_refuses_another_configuration(tmp_path):
    config = PipelineConfig.from_dict({**TINY, "ablations": False})
    Pipeline(config).run(tmp_path)
    with pytest.raises(InputError, match="one of the same configuration"):
        Pipeline(config.with_(seed=1)).run(tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(InputError, match="allowed is a checkpoint"):
        Pipeline(config).run(tmp_path, resume=True)


def test_settings_of_stages_to_come_may_change_on_resume(tmp_path):
    config = PipelineConfig.from_dict({**TINY, "ablations": False})
    Pipeline(config).train("xe", tmp_path)
    other = config.with_(margin=0.2, cider=0.0)
    run = Pipeline(other).run(tmp_path, resume=True)
    assert run.captions == Pipeline(other).run().captions
    with pytest.raises(InputError, match="as far as it was trained"):
        Pipeline(config).run(tmp_path, resume=True)


def test_detectors_and_the_unseen_style():
    """The truth names both objects; a trained detector's tags reach the captioner."""
    truth = PipelineConfig.from_dict({**TINY, "detector": "truth", "ablations": False})
    p = Pipeline(truth)
    p._prepare()
    for tags, event in zip(p.test.tags, p.test.events):
        assert set(tags) == {event.first.word, event.second.word}
    trained = truth.with_(detector="trained", detector_steps=4, unseen_style=True)
    run = Pipeline(trained).run()
    assert "detector" in run.curves
    if unseen_font() is None:
        pytest.skip("Noto Color Emoji is not installed (Debian: fonts-noto-color-emoji)")
    assert run.unseen.events == run.test.events
    assert not torch.equal(run.unseen.images, run.test.images)
    assert set(unseen_f1(run)) == set(run.captions)


def test_variants_run():
    for changes in (
        {"baseline": "loo", "kl": 0.1, "choose": "argmax", "distil": 0.5},
        {"anchor": 0.0, "negatives": False, "proposals": 1, "policy": "all"},
        {"baseline": "group", "normalize": "mean", "explore": 0, "coverage": 0.0},
    ):
        run = Pipeline(PipelineConfig.from_dict({**TINY, **changes, "ablations": False})).run()
        assert len(run.captions["stage 2"]) == 20


def test_report_flags_a_captioner_that_lists_tags():
    run = Pipeline(PipelineConfig.from_dict({**TINY, "ablations": False})).run()
    run.captions["stage 2"] = [f"{e.first.word} {e.second.word}" for e in run.test.events]
    flags = flags_of(summarize(run))
    assert any("stage 2: 100 % of the words" in f for f in flags)


def test_config_is_strict(tmp_path):
    path = tmp_path / "c.yaml"
    for text, message in (
        ("seed: x", "config: seed = 'x'"),
        ("seeds: 1", "did you mean seed"),
        ("- 1", "a mapping"),
        ("a: [", "allowed is YAML"),
        ("preset: large", "preset = 'large'"),
        ("lr: -1.0", "lr = -1.0"),
        ("rl_batch: 1", "one image has A = 1"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            PipelineConfig.from_yaml(path)
    path.write_text("preset: official-script\nseed: 3\n")
    config = PipelineConfig.from_yaml(path)
    assert (config.coverage, config.normalize, config.seed) == (0.0, "mean", 3)


def test_coco_and_nocaps_captions(tmp_path):
    path = tmp_path / "refs.json"
    path.write_text(json.dumps({
        "images": [{"id": 1, "domain": "near-domain"}],
        "annotations": [{"image_id": 1, "caption": "ein Café"}, {"image_id": 1, "caption": "b"}],
    }))  # fmt: skip
    assert read_references(path) == ({1: ["ein Café", "b"]}, {1: "near-domain"})


def test_duplicate_ids_and_broken_files(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"image_id": 1, "caption": ""}] * 2))
    with pytest.raises(InputError, match="image_id 1 stands twice"):
        read_predictions(path)
    for text in ("[{}]", "{", "[]", "3"):
        path.write_text(text)
        with pytest.raises(InputError, match="preds"):
            read_predictions(path)
    with pytest.raises(InputError, match="readable JSON file"):
        read_references(tmp_path / "none.json")


def test_tags_and_features(tmp_path):
    path = tmp_path / "tags.jsonl"
    path.write_text(
        '{"image_id": 1, "objects": []}\n'
        '{"image_id": 2, "objects": [{"label": "bus", "score": 0.2}, '
        '{"label": "zebra", "score": 0.9}]}\n'
    )
    assert read_tags(path) == {1: [], 2: ["zebra", "bus"]}
    path.write_text('{"image_id": 1, "objects": []}\n' * 2)
    with pytest.raises(InputError, match="line 2: image_id 1 stands twice"):
        read_tags(path)
    import base64

    good = np.arange(6, dtype=np.float32)
    bad = np.full(6, np.nan, np.float32)
    for values, ok in ((good, True), (bad, False)):
        code = base64.b64encode(values.tobytes()).decode()
        path.write_text("7\t" + json.dumps({"num_boxes": 2, "features": code}) + "\n")
        if ok:
            assert read_vinvl(path)["7"].tolist() == [[0, 1, 2], [3, 4, 5]]
        else:
            with pytest.raises(InputError, match="finite features"):
                read_vinvl(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_features_from_archives(tmp_path, kind):
    path = tmp_path / f"f.{kind}"

    def save(**arrays):
        if kind == "npz":
            np.savez(path, **arrays)
        else:
            pytest.importorskip("safetensors.numpy").save_file(arrays, str(path))

    save(a=np.arange(6, dtype=np.float32).reshape(2, 3))
    assert read_features(path)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    save(a=np.full((2, 3), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN or infinite"):
        read_features(path)
    save(a=np.zeros(3, np.float32))
    with pytest.raises(InputError, match="boxes, features"):
        read_features(path)
    path.write_bytes(b"broken")
    with pytest.raises(InputError, match="readable archive"):
        read_features(path)
    with pytest.raises(InputError, match=r"\.npz or \.safetensors"):
        read_features(tmp_path / "f.txt")


def test_nothing_asks_the_network(monkeypatch, tmp_path):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    short = {**TINY, "ablations": False, "unseen_style": True, "detector": "trained"}
    run = Pipeline(PipelineConfig.from_dict(short)).run(tmp_path)
    assert len(run.captions["stage 2"]) == 20


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0"]
)
def test_pictures_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="allowed is a readable picture"):
        read_image(path, 8)
    with pytest.raises(InputError, match="readable picture"):
        read_image(tmp_path, 8)
