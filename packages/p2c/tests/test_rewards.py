"""CLIPScore, and word vectors from a file."""

import numpy as np
import pytest
import torch
from p2c import InputError, Pipeline, PipelineConfig, WordCosines, clip_score
from p2c.formats import read_glove
from p2c.world import world_vocabulary

from .test_pipeline import TINY

GLOVE = "cat 1 0 0\nzebra 0.6 0.8 0\n. . 9 9 9\nbus 0 0 2\nunknown 0 1 0\n"


class Table:
    """A judge whose captions are rows of a table, by their first word."""

    scale = torch.tensor(1.0)
    rows = torch.tensor([[0.6, 0.8], [-1.0, 0.0], [1.0, 0.0]])

    def encode_image(self, images):
        return images

    def encode_text(self, ids):
        return self.rows[ids[:, 0]]


def test_clip_score_is_two_and_a_half_times_the_positive_cosine():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ids = torch.tensor([[[0], [1], [2]], [[0], [1], [2]]])
    got = clip_score(Table(), image, ids)
    torch.testing.assert_close(got, torch.tensor([[1.5, 0.0, 2.5], [2.0, 0.0, 0.0]]))
    torch.testing.assert_close(clip_score(Table(), image, ids, weight=1.0), got / 2.5)


def test_glove_vectors(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text(GLOVE)
    words = ["zebra", "cat", "racket"]
    assert read_glove(path, words).tolist() == [[0.6, 0.8, 0], [1, 0, 0], [0, 1, 0]]
    cosines = WordCosines(torch.from_numpy(read_glove(path, words)))
    assert cosines.coverage([0], [1], clamp=1) == pytest.approx(0.6)
    assert cosines.coverage([0], [2], clamp=1) == pytest.approx(0.8)
    path.write_text("5 3\n" + GLOVE.replace("unknown", "other"))  # word2vec's head
    np.testing.assert_allclose(read_glove(path, words)[2], [0.8, 0.4, 0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "vectors of the captions' words"),
        ("dog 1 2\n", "vectors of the captions' words"),
        ("cat 1 2\nbus 1\n", "line 2 = 2: allowed is a word and 2 numbers"),
        ("cat 1 x\n", "a text of vectors"),
        ("cat 1 nan\n", "finite numbers"),
        ("cat\n", "line 1 = 1: allowed is a word and its numbers"),
    ],
)
def test_broken_vectors_are_one_line(tmp_path, text, message):
    path = tmp_path / "glove.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_glove(path, ["cat"])
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match="a text of vectors"):
        read_glove(tmp_path, ["cat"])


def test_vectors_and_clip_score_reach_stage_2(tmp_path):
    """With one vector for every word, whatever is said covers a tag and repeats itself."""
    words = world_vocabulary().words[5:]
    (tmp_path / "glove.txt").write_text("".join(f"{w} 1 2\n" for w in words))
    config = PipelineConfig.from_dict(
        {**TINY, "ablations": False, "xe_steps": 12, "clipscore": 1.0}
    )
    plain = Pipeline(config).run().curves["rewards"]
    same = Pipeline(config.with_(vectors=str(tmp_path / "glove.txt"))).run().curves["rewards"]
    assert plain[0]["clipscore"] == same[0]["clipscore"] > 0
    assert plain[0]["repetition"] > same[0]["repetition"]
    assert plain[0]["coverage"] < same[0]["coverage"]
    with pytest.raises(InputError, match=r"vectors = .*none\.txt"):
        Pipeline(config.with_(vectors=str(tmp_path / "none.txt"))).run()
