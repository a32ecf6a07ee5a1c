"""Profile grammar and names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf.boards import board_names, load_board
from migperf.errors import InputError
from migperf.profiles import ProfileName, memory_label_gb


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1g.5gb", ProfileName(1, 1, 5)),
        ("2c.3g.20gb", ProfileName(2, 3, 20)),
        ("3c.3g.20gb", ProfileName(3, 3, 20)),
        ("1g.10gb+me", ProfileName(1, 1, 10, ("me",))),
        ("1g.24gb+me.all", ProfileName(1, 1, 24, ("me.all",))),
        ("1g.24gb+gfx,me", ProfileName(1, 1, 24, ("gfx", "me"))),
        ("1g.24gb-me", ProfileName(1, 1, 24, (), True)),
    ],
)
def test_names_are_read(text: str, expected: ProfileName) -> None:
    assert ProfileName.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "1g", "0g.5gb", "1g.5gb+", "1g.5gb+xx", "4c.3g.20gb", "1g.5gb-gfx", "1g.5GB", "-1g.5gb",
     "1g.5gb+me,me", "1 g.5gb"],
)  # fmt: skip
def test_bad_names_are_refused_with_the_rule(text: str) -> None:
    with pytest.raises(InputError, match=r"profile: .* is not allowed; allowed: "):
        ProfileName.parse(text)


@given(st.text(max_size=20))
def test_arbitrary_text_never_gives_another_exception(text: str) -> None:
    try:
        name = ProfileName.parse(text)
    except InputError:
        return
    assert ProfileName.parse(str(name)) == name


def test_memory_labels_follow_the_driver_rule_on_every_board() -> None:
    # go-nvlib's rule, applied to the tables, must give the names that the drivers print.
    for board_name in board_names():
        board = load_board(board_name)
        for profile in board.gpu_profiles:
            label = memory_label_gb(profile.memory_mib, board.memory_mib)
            assert label == profile.parsed.gigabytes, (board_name, profile.name)
