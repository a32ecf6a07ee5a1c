"""Closed forms and symmetries of the laws; products against dense matrices."""

import numpy as np
import pytest
import torch
from gptr.gestalt import GestaltGraph, group_tokens, mean_cosine_distance
from gptr.gestalt import laws as law
from gptr.model.encoder import LawAttention, LawMessages
from gptr.scenes import law_auc
from gptr.timing import encoder_problem


def lines(path: list[tuple[int, int]], size: int = 64) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).line(path, fill=(0, 0, 0), width=2)
    return np.asarray(image).copy()


def test_two_colours_are_block_stochastic():
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 32:] = (255, 0, 0)
    A = GestaltGraph(("similarity",), temperature=0.05)(image)["similarity"][0]
    red = torch.tensor([False, False, True, True] * 2)
    wanted = (red[:, None] == red[None]).float() / 4
    assert torch.allclose(A, wanted, atol=1e-6)


def test_proximity_limits(drawing):
    near = GestaltGraph(("proximity",), sigma=0.01)(drawing)["proximity"][0]
    assert torch.allclose(near, torch.eye(len(near)), atol=1e-6)
    far = GestaltGraph(("proximity",), sigma=1e6)(drawing)["proximity"][0]
    assert torch.allclose(far, torch.full_like(far, 1 / len(far)), atol=1e-6)


def test_continuation_of_line_corner_and_gap():
    graph = GestaltGraph(("smoothness",))
    right, _ = law.continuation(graph.describe(lines([(0, 24), (63, 24)])), 0.3)
    assert right[0, 1, :3].min() > 0.99
    corner = graph.describe(lines([(0, 24), (25, 24), (25, 63)]))
    right, down = law.continuation(corner, 0.3)
    # from the horizontal arm the step down leaves the corner cell at a right angle
    assert right[0, 1, 0] * down[0, 1, 1] < 0.1
    image = lines([(0, 24), (63, 24)])
    image[:, 28:36] = 255
    right, _ = law.continuation(graph.describe(image), 0.3)
    assert right[0, 1, 1] == 0


@pytest.mark.parametrize("turn", ["flip", "rotate", "shift"])
def test_graph_commutes_with_symmetries(turn, drawing):
    image = drawing[:128, :128]
    graph = GestaltGraph(("similarity", "proximity"))
    index = np.arange(64).reshape(8, 8)
    if turn == "flip":
        moved, index = image[:, ::-1].copy(), index[:, ::-1]
    elif turn == "rotate":
        moved, index = np.rot90(image).copy(), np.rot90(index)
    else:
        moved, index = np.roll(image, 32, 0), np.roll(index, 2, 0)
    laws = ("similarity",) if turn == "shift" else graph.laws
    A, B = graph(image), graph(moved)
    order = torch.from_numpy(index.reshape(-1).copy())
    for name in laws:
        assert torch.allclose(A[name][0][order][:, order], B[name][0], atol=1e-5)


def test_products_equal_dense_matrices(drawing):
    graph = GestaltGraph()
    found = graph.describe([drawing, drawing[:100, :120]])
    V = torch.randn(*found.valid.shape, 6)
    near = law.proximity_logits(found.places, 1.7).expand(2, -1, -1)
    dense = law.masked_softmax(near, found.valid) @ V
    fast = law.proximity_product(V, found.valid, found.grid, torch.tensor(1.7))
    assert torch.allclose(dense, fast, atol=1e-5)
    right, down = law.continuation(found, 0.4)
    total = torch.log(law.FLOOR + law.smoothness_weights(right, down, 0.5, 4))
    dense = law.masked_softmax(total, found.valid) @ V
    fast = law.smoothness_product(V, found.valid, right, down, 0.5, 4)
    assert torch.allclose(dense, fast, atol=1e-4)


def test_fused_bias_equals_attention_with_a_dense_bias():
    x, position, tokens = encoder_problem(64, 32)
    attention = LawAttention(32, 4, ("similarity", "proximity"), True).eval()
    out = attention(x + position, x, tokens)
    qkv = torch.nn.functional.linear
    w, b = attention.qkv.weight, attention.qkv.bias
    q, k = qkv(x + position, w[:64], b[:64]).chunk(2, -1)
    v = qkv(x, w[64:], b[64:])
    q, k, v = (t.view(1, 64, 4, 8).transpose(1, 2) for t in (q, k, v))
    dense = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=attention.bias_matrix(tokens)
    )
    wanted = attention.out(dense.transpose(1, 2).reshape(1, 64, 32))
    assert torch.allclose(out, wanted, atol=1e-5)
    gradient = torch.autograd.grad(out.sum(), attention.proximity, retain_graph=True)[0]
    assert torch.allclose(
        gradient, torch.autograd.grad(wanted.sum(), attention.proximity)[0], atol=1e-3
    )


def test_walks_in_two_buffers_are_the_differentiable_ones():
    torch.manual_seed(0)
    values, right, down = torch.randn(2, 3, 20), torch.rand(2, 4, 5), torch.rand(2, 4, 5)
    for hops in (0, 1, 3, 4):
        wanted = law.walks(values, right, down, 0.5, hops)
        with torch.no_grad():
            assert torch.allclose(law.walks(values, right, down, 0.5, hops), wanted, atol=1e-6)


def test_message_gradients():
    _, _, tokens = encoder_problem(16, 32)
    level = tokens.levels[0]
    for name in ("colour", "tensor", "links", "density"):
        setattr(level, name, getattr(level, name).double())
    messages = LawMessages(8, law.LAWS, width=8).double()
    x = torch.randn(1, 16, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: messages(t, tokens, t), (x,), atol=1e-6)


def test_rows_are_stochastic_and_padding_is_nothing(drawing):
    graph = GestaltGraph()
    found = graph.describe([drawing, drawing[:70, :90]])
    for logits in graph.weights(found).values():
        A = law.masked_softmax(logits, found.valid)
        assert torch.allclose(A.sum(-1), found.valid.float(), atol=1e-5)
        assert float(A[1][:, ~found.valid[1]].abs().max()) == 0


def test_groups_are_apart(drawing):
    for _, tokens in GestaltGraph().groups([drawing], 8).values():
        assert float(mean_cosine_distance(tokens)[0]) >= 0.2


def test_mean_cosine_distance_of_equal_tokens_is_zero():
    assert float(mean_cosine_distance(torch.ones(5, 3))) == pytest.approx(0, abs=1e-6)
    assert float(mean_cosine_distance(torch.eye(4))) == pytest.approx(1)


def test_memberships_sum_to_one():
    valid = torch.tensor([[True] * 9 + [False] * 3])
    tokens, soft = group_tokens(torch.randn(1, 12, 4), torch.randn(1, 12, 12), valid, 5)
    assert tokens.shape == (1, 5, 4)
    assert torch.allclose(soft.sum(-1)[0], valid[0].float())


@pytest.mark.parametrize(
    ("name", "bar"), [("similarity", 0.95), ("proximity", 0.95), ("smoothness", 0.85)]
)
def test_groups_are_found_without_training(name, bar):
    assert law_auc(name, scenes=4, seed=2) >= bar


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"laws": ("symmetry",)}, "symmetry"), ({"sigma": 0}, "sigma=0"), ({"decay": 2}, "decay=2")],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        GestaltGraph(**arguments)


def test_nan_images_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        GestaltGraph()(torch.full((1, 3, 32, 32), float("nan")))


def test_groups_of_smoothness_are_contours_and_leave_blank_paper_out():
    image = np.full((128, 128, 3), 255, np.uint8)
    image[30:33, 8:120] = 0
    image[90:93, 8:120] = 0
    groups, _ = GestaltGraph(("smoothness",)).groups(image, 6)["smoothness"]
    grid = groups.view(8, 8)
    upper, lower = grid[1:3, 1:7], grid[5:6, 1:7]
    first, second = upper[upper >= 0].unique(), lower[lower >= 0].unique()
    assert len(first) == len(second) == 1
    assert first != second
    assert (grid[[0, 3, 4, 7]] == -1).all()
