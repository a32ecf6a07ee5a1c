"""The clocks against a naive reference, closed forms and each other."""

from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfeds2 import ExperimentConfig, InfeasibleError, InputError, System, build_system, make_clock
from perfeds2._events import upload_seconds
from perfeds2.clock import IndependentClock


def config_of(ues, participants, staleness=-1, seed=0, schedule=None, **system):
    return ExperimentConfig.from_dict(
        {
            "ues": ues,
            "seed": seed,
            "schedule": {
                "participants": participants, "staleness": staleness, **(schedule or {}),
            },
            "system": {"payload_bits": 2e4, **system},
        }
    )  # fmt: skip


def clock_of(config):
    return make_clock(build_system(config), config)


def naive(duration, ues, participants, staleness, rounds):
    """Simulate the normative semantics, written for reading: one list, one heap."""
    version, job = [0] * ues, [0] * ues
    heap = [(duration(u, 0, 0.0), u) for u in range(ues)]
    heapq.heapify(heap)
    log, k, buffer = [], 0, []
    while k < rounds:
        due = {
            u
            for u in range(ues)
            if staleness >= 0 and k - version[u] >= staleness and u not in {b[1] for b in buffer}
        }
        if len(buffer) >= participants and not due:
            now = buffer[-1][0]
            log.append((now, [(t, u, version[u], job[u]) for t, u in buffer]))
            for _, u in buffer:
                version[u], job[u] = k + 1, job[u] + 1
                heapq.heappush(heap, (now + duration(u, job[u], now), u))
            buffer, k = [], k + 1
            continue
        buffer.append(heapq.heappop(heap))
    return log


def durations(config):
    from perfeds2._events import job_seconds

    clock = clock_of(config)

    def duration(u, job, start):
        return job_seconds(
            clock.seed, u, job, start, clock.mean_s[u], *clock.laws, clock.bits[u], clock.snr[u],
            clock.band[u], *clock.radio,
        )[0]  # fmt: skip

    return duration


@pytest.mark.native
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 25), st.data(), st.integers(0, 1000))
def test_equals_the_naive_reference(ues, data, seed):
    participants = data.draw(st.integers(1, ues))
    least = max(1, -(-ues // participants) - 1)
    staleness = data.draw(st.sampled_from([-1, 0, least, least + 2]))
    config = config_of(ues, participants, staleness, seed)
    log = IndependentClock(build_system(config), config).advance(30)
    expected = naive(durations(config), ues, participants, staleness, 30)
    assert log.close_s.tolist() == [t for t, _ in expected]
    rows = [row for _, rows in expected for row in rows]
    assert log.ues.tolist() == [u for _, u, _, _ in rows]
    assert log.versions.tolist() == [v for _, _, v, _ in rows]
    assert log.arrival_s.tolist() == [t for t, _, _, _ in rows]
    assert log.jobs.tolist() == [j for _, _, _, j in rows]


def test_equals_the_naive_reference_for_1000_ues():
    config = config_of(1000, 37, -1, 5)
    log = IndependentClock(build_system(config), config).advance(60)
    expected = naive(durations(config), 1000, 37, -1, 60)
    assert log.close_s.tolist() == [t for t, _ in expected]
    assert log.ues.tolist() == [u for _, rows in expected for _, u, _, _ in rows]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 30), st.data())
def test_staleness_bound_holds_on_every_clock(ues, data):
    participants = data.draw(st.integers(1, ues - 1))
    staleness = max(1, -(-ues // participants) - 1) + data.draw(st.integers(0, 3))
    kind = data.draw(
        st.sampled_from(
            [
                {},
                {"bandwidth": "processor_sharing"},
                {"scheduling": "greedy"},
                {"scheduling": "exact_round", "bandwidth": "optimal"},
            ]
        )
    )
    clock = clock_of(config_of(ues, participants, staleness, 3, kind))
    for _ in range(25):
        closed = clock.next_round()
        assert closed.staleness.max() <= staleness
        assert closed.staleness.min() >= 0
        assert len(closed.ues) >= participants
        assert len(set(closed.ues.tolist())) == len(closed.ues)
        assert (np.diff(closed.arrival_s) >= 0).all()
        assert closed.close_s >= closed.arrival_s[-1]


def exponential(ues, participants, seed=0, schedule=None):
    config = config_of(
        ues, participants, seed=seed, schedule=schedule, compute_law="exponential",
        frequency_min_hz=1e9, frequency_max_hz=1e9, cycles_per_sample=1e9, samples_per_update=1,
        payload_bits=1e-9, fading=False,
    )  # fmt: skip
    return build_system(config), config


@pytest.mark.parametrize(("ues", "participants"), [(20, 5), (20, 20), (8, 1)])
def test_exponential_work_order_statistics_and_littles_law(ues, participants):
    """E[round] = (1/mu) sum_{j<A} 1/(n-j) in every round; mean staleness = (n - A)/A."""
    system, config = exponential(ues, participants)
    log = IndependentClock(system, config).advance(20_000)
    expected = sum(1 / (ues - j) for j in range(participants))
    assert log.close_s[-1] / 20_000 == pytest.approx(expected, rel=0.02)
    assert log.staleness.mean() == pytest.approx((ues - participants) / participants, abs=0.02)


def test_deterministic_speeds_give_proportional_participation():
    """A = 1: eta_i is proportional to the speed of UE i."""
    speed = np.array([1.0, 2.0, 4.0])
    config = config_of(3, 1, fading=False, payload_bits=1e-9)
    base = build_system(config)
    system = System(1 / speed, base.snr_hz, base.bits, base.compute_j, base.power_w, config.system)
    eta = IndependentClock(system, config).advance(7000).participation(3)
    np.testing.assert_allclose(eta, speed / speed.sum(), rtol=2e-3)


def equal_system(config):
    base = build_system(config)
    ones = np.ones(config.ues)
    return System(ones, ones * 1e7, base.bits, base.compute_j, base.power_w, config.system)


def test_ties_go_to_the_lower_id_and_the_rest_counts_first():
    config = config_of(6, 2, fading=False)
    log = IndependentClock(equal_system(config), config).advance(6)
    assert log.ues.reshape(6, 2).tolist() == [[0, 1], [2, 3], [4, 5]] * 2
    assert log.close_s[0] == log.close_s[1] == log.close_s[2] < log.close_s[3]
    assert log.versions.reshape(6, 2).tolist()[:4] == [[0, 0], [0, 0], [0, 0], [1, 1]]


def test_a_equals_n_and_s_zero_are_the_same_synchronous_clock():
    logs = [clock_of(config_of(9, a, s, 4)).advance(20) for a, s in ((9, -1), (3, 0), (1, 0))]
    for log in logs[1:]:
        np.testing.assert_array_equal(log.close_s, logs[0].close_s)
        np.testing.assert_array_equal(log.ues, logs[0].ues)
    assert logs[0].staleness.max() == 0


def test_one_ue():
    log = clock_of(config_of(1, 1)).advance(5)
    assert log.ues.tolist() == [0] * 5
    assert log.versions.tolist() == [0, 1, 2, 3, 4]


def test_slow_ues_are_not_interrupted():
    """A UE ten times slower still delivers, with the staleness its slowness implies."""
    config = config_of(4, 3, fading=False, payload_bits=1e-9)
    base = build_system(config)
    times = np.array([1.0, 1.0, 1.0, 10.5])
    system = System(times, base.snr_hz, base.bits, base.compute_j, base.power_w, config.system)
    log = IndependentClock(system, config).advance(12)
    late = log.ues == 3
    assert log.arrival_s[late].tolist() == pytest.approx([10.5])
    assert log.staleness[late].tolist() == [10]


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"bandwidth": "proportional"},
        {"bandwidth": "processor_sharing"},
        {"scheduling": "greedy", "bandwidth": "optimal"},
        {"scheduling": "exact_round", "bandwidth": "optimal"},
        {"restart": "arrival"},
    ],
)
def test_continues_from_its_state_after_any_event(schedule):
    config = config_of(7, 3, seed=11, schedule=schedule, failure_rate=0.1)
    whole = [clock_of(config)]
    expected = [whole[0].next_round() for _ in range(15)]
    clock, found = clock_of(config), []
    while len(found) < 15:
        closed = clock.next_round(1)
        saved = clock.state()
        clock = clock_of(config)
        clock.restore(saved)
        if closed is not None:
            found.append(closed)
    for a, b in zip(expected, found):
        assert a.close_s == b.close_s
        np.testing.assert_array_equal(a.ues, b.ues)
        np.testing.assert_array_equal(a.versions, b.versions)
        np.testing.assert_array_equal(a.jobs, b.jobs)


def test_processor_sharing_equals_the_hand_computed_case():
    """Two equal UEs ready at 1 s and 2 s: the first sends alone for a second, then they share."""
    config = config_of(2, 2, schedule={"bandwidth": "processor_sharing"}, fading=False,
                       bandwidth_hz=1e6)  # fmt: skip
    bits = np.full(2, 5e6)
    system = System(
        np.array([1.0, 2.0]), np.full(2, 3e6), bits, np.zeros(2), np.full(2, 0.01), config.system
    )
    closed = make_clock(system, config).next_round()
    alone, shared = 1e6 * np.log2(4), 5e5 * np.log2(7)
    left = 5e6 - alone
    first = 2 + left / shared
    second_left = 5e6 - left
    second = first + second_left / alone
    np.testing.assert_allclose(closed.arrival_s, [first, second], rtol=1e-12)


def test_scheduled_set_is_optimal_and_all_arrive_together():
    clock = clock_of(
        config_of(12, 4, schedule={"scheduling": "exact_round", "bandwidth": "optimal"})
    )
    closed = clock.next_round()
    assert len(closed.ues) == 4
    assert np.ptp(closed.arrival_s) == 0
    assert closed.bandwidth_hz.sum() == pytest.approx(1e6, rel=1e-9)


def test_fedbuff_restarts_at_once():
    """With restart on arrival a fast UE may be in one buffer twice."""
    config = config_of(2, 3 - 1, schedule={"restart": "arrival"}, fading=False, payload_bits=1e-9)
    base = build_system(config)
    times = np.array([1.0, 5.5])
    system = System(times, base.snr_hz, base.bits, base.compute_j, base.power_w, config.system)
    log = IndependentClock(system, config).advance(3)
    assert log.ues.tolist() == [0, 0, 0, 0, 0, 1]
    assert log.close_s.tolist() == pytest.approx([2.0, 4.0, 5.5])


KINDS = st.sampled_from(["join", "leave", "fail"])


class TestChurn:
    def one(self, churn, schedule=None, ues=3, participants=2, **system):
        return clock_of(
            config_of(ues, participants, schedule={"churn": churn, **(schedule or {})}, **system)
        )

    @pytest.mark.parametrize(
        "schedule",
        [{}, {"bandwidth": "processor_sharing"}, {"scheduling": "greedy"}],
    )
    def test_leaving_in_mid_upload_drops_the_update(self, schedule):
        first = self.one((), schedule).next_round()
        gone = int(first.ues[0])
        before = float(first.arrival_s[0]) * 0.999
        rounds = self.one(((before, gone, "leave"),), schedule)
        for _ in range(5):
            assert gone not in rounds.next_round().ues.tolist()

    @pytest.mark.parametrize(
        "schedule",
        [{}, {"bandwidth": "processor_sharing"}, {"scheduling": "greedy"}],
    )
    def test_joining_ue_gets_the_current_version(self, schedule):
        probe = self.one((), schedule)
        times = [probe.next_round().close_s for _ in range(4)]
        at = (times[2] + times[3]) / 2
        clock = self.one(((at, 2, "join"),), schedule, participants=1)
        seen = [clock.next_round() for _ in range(40)]
        mine = [r for r in seen if 2 in r.ues.tolist()]
        assert mine
        assert mine[0].close_s > at
        k = mine[0].ues.tolist().index(2)
        opened = [r.index + 1 for r in seen if r.close_s <= at]
        assert mine[0].versions[k] == (opened[-1] if opened else 0)

    def test_failing_ue_starts_again_with_the_current_version(self):
        probe = self.one((), participants=3).next_round()
        slow = int(probe.ues[-1])
        at = float(probe.arrival_s[-1]) * 0.99
        closed = self.one(((at, slow, "fail"),), participants=3).next_round()
        assert closed.close_s > probe.close_s
        assert closed.jobs[closed.ues.tolist().index(slow)] == 1

    def test_everybody_gone_is_an_error_that_says_so(self):
        churn = tuple((1e-3, u, "leave") for u in range(3))
        with pytest.raises(InfeasibleError, match="every UE has left"):
            self.one(churn).next_round()
        with pytest.raises(InfeasibleError, match="left"):
            self.one(churn, {"bandwidth": "processor_sharing"}).next_round()
        with pytest.raises(InfeasibleError, match="left"):
            self.one(churn, {"scheduling": "greedy"}).next_round()

    def test_fewer_ues_than_participants_still_close(self):
        log = self.one(((1e-3, 0, "leave"), (1e-3, 1, "leave"))).advance(3)
        assert log.ues.tolist() == [2, 2, 2]

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 3), st.integers(1, 7), KINDS), max_size=20))
    def test_counts_stay_consistent_under_any_churn(self, churn):
        clock = self.one(tuple(churn), ues=8, participants=3, staleness=4)
        for _ in range(20):
            clock.next_round()
            flying = clock.flying.copy()
            recount = np.zeros_like(flying)
            in_flight = clock.alive & (clock.due >= 0)
            np.add.at(recount, clock.version[in_flight], 1)
            np.testing.assert_array_equal(flying, recount)


class TestChannelOfAnUpload:
    def test_deep_fade_costs_time_and_is_never_redrawn_for_free(self):
        """With outage 0.5 half of the draws cost a retry each."""
        lost = [
            upload_seconds(0, 0, j, 0.0, 1e4, 1e7, 1e6, True, np.log(2.0), 0.1, 0.0)
            for j in range(4000)
        ]
        seconds = np.array([t for t, _ in lost])
        outages = np.array([n for _, n in lost])
        assert outages.mean() == pytest.approx(1.0, abs=0.08)
        assert (seconds >= 0.1 * outages).all()

    def test_coherence_blocks_carry_the_right_number_of_bits(self):
        """Without fading, blocks change nothing."""
        whole = 1e6 / (1e6 * np.log2(11))
        found, _ = upload_seconds(0, 0, 0, 0.37, 1e6, 1e7, 1e6, False, 0.0, 0.1, 0.05)
        assert found == pytest.approx(whole, rel=1e-12)

    def test_infinite_upload_stops_the_run_and_names_the_ue(self):
        config = config_of(3, 3, fading=False)
        base = build_system(config)
        snr = np.array([1e7, 0.0, 1e7])
        system = System(base.compute_s, snr, base.bits, base.compute_j, base.power_w, config.system)
        with pytest.raises(InfeasibleError, match="waits for UE 1"):
            make_clock(system, config).next_round()
        scheduled = config.with_(schedule={"scheduling": "greedy"})
        with pytest.raises(InfeasibleError, match="UE 1"):
            make_clock(system, scheduled).next_round()
        sharing = config.with_(schedule={"bandwidth": "processor_sharing"})
        with pytest.raises(InfeasibleError, match="UE 1"):
            make_clock(system, sharing).next_round()


def test_infeasible_staleness_is_refused_at_load():
    with pytest.raises(InputError, match=r"schedule\.staleness = 2"):
        config_of(20, 5, 2)
    assert config_of(20, 5, 3).schedule.staleness == 3


def test_flying_counts_equal_the_ues_on_each_version():
    clock = clock_of(config_of(12, 3, 4, 2))
    for _ in range(10):
        clock.next_round()
    counts = np.bincount(clock.version, minlength=len(clock.flying))
    np.testing.assert_array_equal(clock.flying, counts)
