"""Objects added by a line of YAML, without training."""

import pytest
import torch
from p2c import InputError, TagTransformerCaptioner, Vocabulary, add_objects, constrained_beam
from p2c.new_objects import read_objects, rename

WORDS = ["a", "near", "horse", "hat", "couch", "cat"]


def make():
    torch.manual_seed(0)
    vocabulary = Vocabulary(WORDS)
    return TagTransformerCaptioner(torch.randn(len(vocabulary), 16), 5, 2, 4, 6), vocabulary


def test_one_line_adds_an_object_that_constrained_search_always_names(tmp_path):
    """CBS recall 1.0 on 40 images, for a description and for another name of a word."""
    path = tmp_path / "objects.yaml"
    for line, name in (("unicorn: a horse with a hat", "unicorn"), ("settee: couch", "settee")):
        path.write_text(line)
        net, vocabulary = add_objects(*make(), read_objects(path))
        number = vocabulary.index[name]
        tags = torch.tensor([[number, vocabulary.index["cat"]]]).expand(40, 2)
        memory = net.encode(tags, torch.randn(40, 2, 5))
        named = 0
        for row in range(40):
            part = memory.rows(slice(row, row + 1))
            best = constrained_beam(
                lambda p, m=part, n=net: n.next_log_probs(m, p), 3, 6, [[number]]
            )
            named += name in vocabulary.decode(best[0].ids).split()
        assert named == 40


def test_old_words_keep_their_numbers_vectors_and_scores():
    net, vocabulary = make()
    bigger, words = add_objects(net, vocabulary, {"unicorn": "horse hat"})
    assert words.words[:-1] == vocabulary.words
    assert torch.equal(bigger.words.weight[:-1], net.words.weight)
    assert len(net.words.weight) == len(vocabulary)
    tags, regions = torch.tensor([[7, 8]]), torch.randn(1, 2, 5)
    ids = torch.tensor([[[5, 7, 3]]])
    before = net.masked_logits(net.encode(tags, regions), ids)
    after = bigger.masked_logits(bigger.encode(tags, regions), ids)
    torch.testing.assert_close(after[..., :-1], before)


def test_a_description_is_the_stretched_mean_and_a_name_is_the_word_itself():
    net, vocabulary = make()
    bigger, words = add_objects(net, vocabulary, {"unicorn": "horse hat", "settee": "a? couch"})
    table = net.words.weight
    pair = table[[words.index["horse"], words.index["hat"]]]
    mean = pair.mean(0)
    want = mean / mean.norm() * pair.norm(dim=1).mean()
    torch.testing.assert_close(bigger.words.weight[words.index["unicorn"]], want)
    same, words = add_objects(net, vocabulary, {"settee": "couch"})
    torch.testing.assert_close(same.words.weight[-1], table[words.index["couch"]])


def test_renaming_follows_the_tags():
    assert rename("a couch near a cat", ["settee", "cat"], {"settee": "couch"}) == (
        "a settee near a cat"
    )
    assert rename("a couch near a cat", ["couch"], {"settee": "couch"}) == "a couch near a cat"
    assert rename("a settee near a couch", ["settee"], {"settee": "couch"}) == (
        "a settee near a couch"
    )
    assert rename("a horse", ["unicorn"], {"unicorn": "a horse with a hat"}) == "a horse"


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"horse": "cat"}, "not yet known"),
        ({"Two words": "cat"}, "one lower-case word"),
        ({"unicorn": "東京"}, "a description with known words"),
    ],
)
def test_bad_objects(objects, message):
    with pytest.raises(InputError, match=message):
        add_objects(*make(), objects)


@pytest.mark.parametrize("text", ["- a", "a: 3", "a: [", ""])
def test_bad_files(tmp_path, text):
    path = tmp_path / "o.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="objects = "):
        read_objects(path)
    with pytest.raises(InputError, match="objects = "):
        read_objects(tmp_path / "none.yaml")
