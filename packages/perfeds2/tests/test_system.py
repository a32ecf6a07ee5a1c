"""Units, laws and files of the system model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfeds2 import (
    ExperimentConfig,
    InputError,
    build_system,
    path_gain,
    rate_bit_per_s,
    read_trace,
    snr_density_hz,
    watt_from_dbm,
)
from perfeds2.energy import compute_energy_j, compute_time_s, upload_energy_j


def test_units():
    """DB against linear, bits against nats, noise per Hz."""
    assert watt_from_dbm(30.0) == pytest.approx(1.0)
    assert watt_from_dbm(-174.0) == pytest.approx(3.9810717e-21, rel=1e-7)
    assert path_gain(np.array([100.0]))[0] == pytest.approx(10 ** (-(128.1 - 37.6) / 10))
    assert path_gain(np.array([10.0]), "power", 3.0)[0] == pytest.approx(1e-3)
    assert snr_density_hz(0.01, np.array([1e-9]))[0] == pytest.approx(1e-11 / 3.9810717e-21)
    assert rate_bit_per_s(1e6, 3e6) == pytest.approx(2e6)  # log2(1 + 3) = 2 bit, not ln 4
    assert rate_bit_per_s(0.0, 3e6) == 0.0


def test_compute_time_and_energy_by_hand():
    assert compute_time_s(1e7, 50, np.array([1e9]))[0] == pytest.approx(0.5)
    assert compute_energy_j(1e7, 50, np.array([1e9]), 1e-28)[0] == pytest.approx(0.05)
    assert upload_energy_j(0.01, np.array([2.0]))[0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"power_w": 10.0}, "dBm"),
        ({"power_w": 0.0}, "power_w"),
        ({"bandwidth_hz": -1.0}, "bandwidth_hz"),
        ({"noise_dbm_per_hz": 4e-21}, "noise_dbm_per_hz"),
        ({"frequency_min_hz": 0.5, "frequency_max_hz": 1.0}, "5e8"),
        ({"min_distance_m": 300.0}, "radius_m"),
        ({"outage_probability": 1.0}, "outage_probability"),
        ({"trace": "nowhere.csv"}, "nowhere.csv"),
        ({"unknown": 1}, "system.unknown: unknown key"),
        ({"power_w": "0.01"}, "type float"),
        ({"power_w": True}, "type float"),
        ({"power_w": 10**400}, "finite"),
    ],
)
def test_bad_values_name_themselves(table, word):
    with pytest.raises(InputError, match=word):
        build_system(ExperimentConfig.from_dict({"system": table}), 10)


def test_ues_are_uniform_in_the_disc_and_speeds_uniform():
    config = ExperimentConfig.from_dict(
        {"ues": 20_000, "system": {"path_loss": "power", "path_loss_exponent": 2.0}}
    )
    system = build_system(config, 10)
    distance = (0.01 / watt_from_dbm(-174.0) / system.snr_hz) ** 0.5
    share = (distance**2 - 10**2) / (200**2 - 10**2)
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
    frequency = 2e6 * 48 / system.compute_s
    np.testing.assert_allclose(np.quantile(frequency, [0, 0.5, 1]), [1e8, 5.5e8, 1e9], rtol=0.02)


def test_payload_is_32_bits_per_parameter():
    assert build_system(ExperimentConfig(), 650).bits[0] == 20_800
    with pytest.raises(InputError, match="payload_bits"):
        build_system(ExperimentConfig())


def test_trace(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("ue,compute_s,snr_density_hz,bits\n0,0.5,1e7,1e4\n1,2,3e7,2e4\n")
    config = ExperimentConfig.from_dict(
        {"ues": 2, "schedule": {"participants": 1}, "system": {"trace": str(file)}}
    )
    system = build_system(config, 10)
    assert system.compute_s.tolist() == [0.5, 2.0]
    assert system.snr_hz.tolist() == [1e7, 3e7]
    assert system.bits.tolist() == [1e4, 2e4]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "header and at least one row"),
        ("compute_s\n", "at least one row"),
        ("speed\n1\n", "column 'speed'"),
        ("compute_s\n1\nx\n", "line 3, column compute_s = 'x'"),
        ("compute_s\n1\n-1\n", "line 3"),
        ("compute_s,bits\n1\n", "line 2: 1 values"),
        ("ue,compute_s\n1,1\n", "column ue"),
        ("compute_s\n1\nnan\n", "'nan'"),
        ("power_w\n10\n0.01\n", "dBm"),
        ("compute_s,compute_s\n1,1\n", "once each"),
    ],
)
def test_bad_traces(tmp_path, text, word):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=word):
        read_trace(file)


def refusal(read):
    """Message of a refusal; empty when the file was read. Any other exception is a failure."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("fuzz") / "trace.csv"
    file.write_bytes(content)
    assert "\n" not in refusal(lambda: read_trace(file))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=120))
def test_any_toml_is_read_or_refused_in_one_line(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("fuzz") / "e.toml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    assert "\n" not in refusal(lambda: ExperimentConfig.from_toml(file))


def test_config_round_trip():
    config = ExperimentConfig.from_dict(
        {"schedule": {"participants": 4, "staleness": "inf", "churn": [[1.0, 2, "leave"]]}}
    )
    assert config.schedule.staleness == -1
    assert ExperimentConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"schedule": {"participants": 0}}, "participants = 0"),
        ({"schedule": {"participants": 21}}, "1 to ues = 20"),
        ({"schedule": {"bandwidth": "optimal"}}, "greedy or exact_round"),
        ({"schedule": {"scheduling": "exact_round"}}, "'optimal'"),
        ({"schedule": {"bandwidth": "processor_sharing", "scheduling": "greedy"}}, "bandwidth"),
        ({"schedule": {"restart": "arrival", "staleness": 3}}, "staleness"),
        ({"schedule": {"churn": [[1.0, 50, "leave"]]}}, "churn"),
        ({"schedule": {"churn": [["x"]]}}, "rows"),
        ({"schedule": 3}, "table"),
        ({"server": {"rule": "fedasync"}}, "participants"),
        ({"server": {"step": 0.0}}, "server.step"),
        ({"method": {"name": "maml"}}, "method.name"),
        ({"train": {"rounds": 0}}, "train.rounds"),
        ({"seed": -1}, "seed"),
        ({"ues": 0}, "ues"),
    ],
)
def test_bad_configs(tables, word):
    with pytest.raises(InputError, match=word):
        ExperimentConfig.from_dict(tables)
