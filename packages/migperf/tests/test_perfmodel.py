"""The two-resource latency model."""

from __future__ import annotations

import numpy as np
import pytest
from migperf import Infeasible, Measurement, MeasurementTable, load_board, paper_measurements
from migperf.perfmodel import LatencyModel, fit_latency, leave_one_profile_out, memory_line

BOARD = load_board("a100-80gb")
PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb")


def test_formula_by_hand() -> None:
    model = LatencyModel(3.0, 1.0, 0.0, 0.5, 0.0, 2.0, BOARD)
    # 3g: 3 of 7 compute slices, 4 of 8 memory slices; batch 6: 14 ms, 6 ms, floor 3 ms.
    assert model.latency_ms("3g.40gb", 6) == pytest.approx(np.sqrt(3**2 + 14**2 + 6**2))


def test_fit_recovers_a_known_model() -> None:
    truth = LatencyModel(5.0, 0.3, 0.4, 0.2, 0.1, 2.5, BOARD)
    rows = [m for p in PROFILES for m in truth.predict("m", "infer", p, [1, 2, 4, 8, 16, 32, 64])]
    found = fit_latency(rows, BOARD)
    for profile in (*PROFILES, "4g.40gb"):
        for batch in (1, 5, 100):
            assert found.latency_ms(profile, batch) == pytest.approx(
                truth.latency_ms(profile, batch), rel=0.02
            )
    errors = leave_one_profile_out(MeasurementTable(rows), "m", "infer", BOARD)
    assert max(errors.values()) < 2.0


def test_published_points_are_fitted() -> None:
    rows = paper_measurements().select("resnet50", "infer")
    model = fit_latency(rows, BOARD)
    errors = [abs(model.latency_ms(r.profile, r.batch) / r.latency_ms - 1) for r in rows]
    assert np.mean(errors) < 0.08


def test_fit_with_activities_recovers_a_known_model() -> None:
    """Time and busy time of a memory-bound workload give back the model that made them."""
    board = load_board("a100-80gb")
    true = LatencyModel(4.0, 0.05, 0.1, 0.08, 0.2, 3.0, board, 0.02)
    rows = []
    for name in ("1g.10gb", "2g.20gb", "3g.40gb", "7g.80gb"):
        profile = board.profile(name)
        g, m = profile.compute_slices / 7, profile.size / 8
        for b in (1, 2, 4, 8, 16, 32, 64, 128):
            busy = (((0.05 * b + 0.1) / g) ** 3 + ((0.08 * b + 0.2) / m) ** 3) ** (1 / 3)
            time = (4.0**4 + busy**4) ** 0.25 + 0.02 * b
            assert true.latency_ms(name, b) == pytest.approx(time, rel=1e-9)
            rows.append(Measurement("w", "infer", name, b, time, activity=busy / time))
    fitted = fit_latency([r for r in rows if r.profile != "3g.40gb"], board)
    for r in rows:
        assert fitted.latency_ms(r.profile, r.batch) == pytest.approx(r.latency_ms, rel=0.02)


def test_too_few_points() -> None:
    rows = [Measurement("m", "infer", "1g.10gb", b, float(b)) for b in range(1, 6)]
    with pytest.raises(Infeasible, match="5 points"):
        fit_latency(rows)
    with pytest.raises(Infeasible, match="footprint"):
        memory_line(rows)
