"""FedScale's capacity trace: what its own formula gives, and what is refused."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfeds2 import ExperimentConfig, InputError, build_system
from perfeds2.cli import main
from perfeds2.fedscale import import_capacity, read_capacity

# the entry that FedScale's own source gives as an example of the format
CLIENTS = {
    432802: {"computation": 162.0, "communication": 5648.109619499134},
    7: {"computation": 20, "communication": 800.5},
}


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "client_device_capacity"
    file.write_bytes(pickle.dumps(CLIENTS))
    return file


def test_times_are_those_of_fedscale(trace, tmp_path):
    """FedScale: 3 * batch * steps * ms / 1000 seconds of computing, size / kbit/s of sending."""
    out = tmp_path / "ues.csv"
    assert import_capacity(trace, out, samples=32, link_hz=1e6) == 2
    config = ExperimentConfig.from_dict(
        {
            "ues": 2,
            "schedule": {"participants": 1},
            "system": {"trace": str(out), "payload_bits": 1e6},
        }
    )
    system = build_system(config)
    np.testing.assert_allclose(system.compute_s, [3 * 32 * 0.020, 3 * 32 * 0.162], rtol=1e-14)
    rate = 1e6 * np.log2(1 + system.snr_hz / 1e6)
    np.testing.assert_allclose(1e6 / rate, [1e3 / 800.5, 1e3 / 5648.109619499134], rtol=1e-12)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({1: Harmful()}, "mkdir"),
        ({1: {"computation": np.float64(1.0), "communication": 2.0}}, "only plain numbers"),
        ({1: {"computation": -1.0, "communication": 2.0}}, "computation = -1.0"),
        ({1: {"computation": 1.0}}, "communication = None"),
        ({1: {"computation": float("nan"), "communication": 1}}, "nan"),
        ({}, "dictionary"),
        ([1, 2], "dictionary"),
    ],
)
def test_other_pickles_are_refused(tmp_path, monkeypatch, content, word):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "trace"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=word):
        read_capacity(file)
    assert not (tmp_path / "harm").exists()


@given(data=st.binary(max_size=60))
def test_damaged_files_give_one_line(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("fuzz") / "trace"
    file.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_capacity(file)
    assert "\n" not in str(caught.value)


def test_command(trace, tmp_path, capsys):
    out = tmp_path / "ues.csv"
    main(["import-trace", str(trace), "--out", str(out), "--ues", "1"])
    assert "1 UEs" in capsys.readouterr().out
    assert out.read_text().splitlines()[0] == "ue,compute_s,snr_density_hz"
    out.unlink()
    with pytest.raises(SystemExit) as caught:
        main(["import-trace", str(trace), "--out", str(out), "--link-hz", "1"])
    assert caught.value.code == 2
    assert not out.exists()
