"""Layout strings and compute cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf import Infeasible, InputError, Layout, enumerate_layouts, load_board
from migperf.layout import LayoutEntry, place_compute


def test_public_form() -> None:
    layout = Layout.parse("3g.40gb@4, 2g.20gb, 1g.10gb*2")
    placed = layout.solve(load_board("a100-80gb"))
    assert str(placed) == "2g.20gb@0, 1g.10gb@2, 1g.10gb@3, 3g.40gb@4"
    assert [i["gpu_instance_id"] for i in placed.to_json()["instances"]] == [3, 9, 10, 2]


def test_partial_compute_instances_share_gpu_instances() -> None:
    layout = Layout.parse("1c.3g.20gb*3, 2c.3g.20gb")
    assert [e.compute for e in layout.entries] == [(1, 1, 1), (2,)]
    assert len(layout.solve("a100-40gb").entries) == 2


@pytest.mark.parametrize(
    "text", ["3g.40gb@", "3g.40gb*0", "3g.40gb@4*2", "@4", "1g.10gb*x", "1g.10gb**2", "1g.10gb*65"]
)
def test_bad_layouts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not allowed; allowed: "):
        Layout.parse(text)


@given(st.text(alphabet="0123456789gcb.@*+-, me", max_size=30))
def test_fuzzed_layouts_give_a_layout_or_one_line(text: str) -> None:
    message = ""
    try:
        Layout.parse(text).solve("a100-40gb")
    except (InputError, Infeasible) as error:
        message = str(error)
    assert "\n" not in message


@given(st.integers(0, 296))
def test_text_of_a_placed_layout_reads_back(index: int) -> None:
    layout = enumerate_layouts("a100-40gb")[index]
    assert Layout.parse(str(layout)).solve("a100-40gb") == layout


def test_compute_cuts_are_placed_beside_what_stays() -> None:
    board = load_board("a100-40gb")
    entry = LayoutEntry("4g.20gb", 0, (2, 1, 1))
    assert place_compute(board, entry) == ((0, 2), (2, 1), (3, 1))
    assert place_compute(board, LayoutEntry("4g.20gb", 0, (2,)), [(1, 1)]) == ((2, 2),)
    with pytest.raises(Infeasible, match="cannot stand together"):
        place_compute(board, LayoutEntry("4g.20gb", 0, (2, 2)), [(1, 1)])
