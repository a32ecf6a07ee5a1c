import json
import random

import pytest
import torch
from nasa import Architecture, SearchSpace, Supernet
from nasa.network import operator_of


def test_sizes_of_the_published_spaces():
    """The authors' code: 13 choices a cell, 19 with all types, no adder in the outer six."""
    assert SearchSpace.hybrid_shift().size == 13**22
    assert SearchSpace.hybrid_adder().size == 7**6 * 13**16
    assert SearchSpace.hybrid_all().size == 13**6 * 19**16
    assert SearchSpace.from_yaml("conv").size == 7**22


def test_macro_network_of_the_paper():
    cells = SearchSpace.hybrid_all().cells
    sizes = [cell.size[0] // cell.stride for cell in cells]
    assert sizes == [32] * 5 + [16] * 4 + [8] * 8 + [4] * 5
    assert [cells[i].out_channels for i in (0, 1, 5, 9, 13, 17, 21)] == [
        16,
        24,
        32,
        64,
        112,
        184,
        352,
    ]


def test_workload_equals_what_the_network_runs():
    """Multiply-accumulates counted by hooks over the built network."""
    from nasa.conversion import trace_workload

    for seed in range(5):
        architecture = Architecture.random(SearchSpace.from_yaml("digits"), seed)
        traced = trace_workload(architecture.build(), torch.zeros(1, 1, 8, 8))
        assert traced.macs() == architecture.workload().macs()
        assert [la.out for la in traced] == [la.out for la in architecture.workload()]


def test_supernet_path_equals_the_extracted_network():
    torch.manual_seed(0)
    space = SearchSpace.from_yaml("digits")
    supernet = Supernet(space)
    x = torch.randn(4, 1, 8, 8)
    for seed in range(6):
        architecture = Architecture.random(space, seed)
        supernet(x, [[c] for c in architecture.choices])  # moves running statistics
        net = supernet.extract(architecture).eval()
        supernet.eval()
        assert torch.equal(net(x), supernet(x, [[c] for c in architecture.choices]))
        supernet.train()


def test_smaller_expansions_share_the_first_channels():
    torch.manual_seed(0)
    space = SearchSpace.from_yaml("digits")
    supernet = Supernet(space)
    architecture = Architecture(space, (0, 2, 4, 0))
    out = supernet(torch.randn(4, 1, 8, 8), [[c] for c in architecture.choices])
    out.sum().backward()
    block = supernet.cells[0].blocks["conv_k3"]
    gradient = block.expand.weight.grad
    channels = space.cells[0].in_channels
    assert gradient[:channels].abs().sum() > 0
    assert gradient[channels:].abs().sum() == 0


def test_zero_gamma_in_a_block_without_residual_gives_no_nan():
    """Such a block outputs zero at the start; batch norm of a constant must stay finite."""
    space = SearchSpace.from_yaml("digits")
    supernet = Supernet(space, zero_last_gamma=True)
    out = supernet(torch.randn(4, 1, 8, 8), [[0], [0], [0], [0]])
    out.sum().backward()
    assert torch.isfinite(out).all()
    gradients = [p.grad for p in supernet.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


def test_architecture_round_trip_and_hash(tmp_path):
    architecture = Architecture.random(SearchSpace.hybrid_all(), 1)
    architecture.save(tmp_path / "a.json")
    assert Architecture.load(tmp_path / "a.json") == architecture
    assert len({architecture, Architecture.load(tmp_path / "a.json")}) == 1


def test_damaged_architectures_are_refused(tmp_path):
    good = Architecture.random(SearchSpace.from_yaml("digits"), 0).to_json()
    file = tmp_path / "a.json"
    cases = [
        ("{", "no JSON"),
        (json.dumps([1]), "schema_version"),
        (json.dumps({**good, "choices": [0]}), "1 entries"),
        (json.dumps({**good, "choices": [99, 0, 0, 0], "candidates": None}), r"choices\[0\]=99"),
        (json.dumps({**good, "candidates": ["skip"] * 4}), "contradict"),
        (json.dumps({k: v for k, v in good.items() if k != "space"}), "space"),
        (json.dumps({**good, "space": {**good["space"], "operators": ["mul"]}}), "mul"),
    ]
    for text, word in cases:
        file.write_text(text)
        with pytest.raises(ValueError, match=word):
            Architecture.load(file)
    with pytest.raises(ValueError, match="No such file"):
        Architecture.load(tmp_path / "none.json")


def test_extracting_from_another_space_is_refused():
    with pytest.raises(ValueError, match="differ"):
        Supernet(SearchSpace.from_yaml("digits")).extract(
            Architecture.random(SearchSpace.hybrid_all(), 0)
        )


def test_same_topology_other_types():
    space = SearchSpace.from_yaml("digits")
    architecture = Architecture(space, (1, 1, 6, 0))
    other = architecture.with_operators(["adder", "shift", "conv", "adder"])
    assert str(other.candidates[0]) == "adder-e3-k3"
    assert other.candidates[2].is_skip
    with pytest.raises(ValueError, match="does not offer"):
        Architecture(SearchSpace.from_yaml("conv"), (0,) * 22).with_operators(["adder"] * 22)


def test_custom_space_from_yaml(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: mine\noperators: [shift]\nstages: [[1, 8, 1], [1, 16, 2]]\nexpansions: [2]\n"
        "kernels: [3]\nstem_channels: 8\nhead_channels: 16\nimage: [1, 9, 7]\nclasses: 3\n"
    )
    space = SearchSpace.from_yaml(file)
    assert space.size == 4
    net = Architecture(space, (0, 0)).build()
    assert net(torch.zeros(2, 1, 9, 7)).shape == (2, 3)
    kinds = {operator_of(m) for m in net.cells.modules()} - {None}
    assert kinds == {"shift"}
    for text, word in (("name: x", "needs name"), ("a: [", "no YAML")):
        file.write_text(text)
        with pytest.raises(ValueError, match=word):
            SearchSpace.from_yaml(file)


def test_random_draws_are_uniform():
    space, source = SearchSpace.from_yaml("digits"), random.Random(0)
    counts = [0] * 7
    for _ in range(3500):
        counts[Architecture.random(space, source).choices[0]] += 1
    assert max(abs(c - 500) for c in counts) < 110  # five standard deviations
