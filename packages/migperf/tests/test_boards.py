"""Board tables against facts that NVIDIA prints."""

from __future__ import annotations

import pytest
from migperf.boards import board_names, load_board
from migperf.errors import InputError


def test_at_least_eight_boards() -> None:
    assert len(board_names()) >= 8


@pytest.mark.parametrize("name", board_names())
def test_tables_are_consistent(name: str) -> None:
    board = load_board(name)
    assert len({p.id for p in board.gpu_profiles}) == len(board.gpu_profiles)
    assert len({p.enum for p in board.gpu_profiles}) == len(board.gpu_profiles)
    for profile in board.gpu_profiles:
        assert all(s >= 0 and s + profile.size <= board.memory_slices for s in profile.starts)
        assert profile.count <= len(profile.starts)
        assert profile.memory_mib <= board.memory_mib
        whole = profile.compute_profile(profile.compute_slices)
        assert whole.multiprocessors == profile.multiprocessors
        assert profile.parsed.graphics == profile.compute_slices


def test_slices_and_multiprocessors_are_not_proportional() -> None:
    # MIG User Guide: 3g takes four of eight memory slices, 7g all eight; H100's 1g.20gb has 26
    # multiprocessors and 3g has 60, not 16 per slice.
    a100, h100 = load_board("a100-40gb"), load_board("h100-80gb")
    assert [a100.profile(n).size for n in ("3g.20gb", "4g.20gb", "7g.40gb")] == [4, 4, 8]
    counts = {p.name: p.multiprocessors for p in h100.gpu_profiles}
    assert (counts["1g.20gb"], counts["3g.40gb"], counts["7g.80gb"]) == (26, 60, 132)
    assert load_board("b200-180gb").profile("1g.45gb").multiprocessors == 30


def test_enum_and_id_are_different_things() -> None:
    # nvidia-smi mig -lgip on A100: ids 19, 20, 15, 14, 9, 5, 0.
    board = load_board("a100-40gb")
    assert {p.name: p.id for p in board.gpu_profiles} == {
        "1g.5gb": 19, "1g.5gb+me": 20, "1g.10gb": 15, "2g.10gb": 14, "3g.20gb": 9, "4g.20gb": 5,
        "7g.40gb": 0,
    }  # fmt: skip
    assert board.profile("1g.10gb").enum == 9
    assert board.profile_by_id(9).name == "3g.20gb"


def test_uncertain_rows_are_marked() -> None:
    board = load_board("b200-180gb")
    assert board.profile("1g.45gb").verified
    assert not board.profile("3g.90gb").verified


def test_unknown_names_say_what_exists() -> None:
    with pytest.raises(InputError, match=r"board: 'x100' .* a100-40gb"):
        load_board("x100")
    with pytest.raises(InputError, match=r"profile of a100-40gb: '9g.1gb' .* 1g.5gb"):
        load_board("a100-40gb").profile("9g.1gb")
