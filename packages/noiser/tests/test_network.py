import json

import numpy as np
import pytest
from noiser import InputError, SelfRegressionModel


def test_parameter_count_is_the_closed_form():
    for channels, parameters in ((18, 993), (32, 1763)):
        assert SelfRegressionModel.initialise(channels).parameters == parameters


def test_file_gives_back_the_same_bits_in_less_than_8_kb(tmp_path):
    model = SelfRegressionModel.initialise(18, seed=5)
    path = model.save(tmp_path / "srm.json")
    again = SelfRegressionModel.load(path)
    assert all(np.array_equal(a, b) for a, b in zip(model.arrays(), again.arrays()))
    assert path.stat().st_size < 8192
    assert [p.name for p in tmp_path.iterdir()] == ["srm.json"]


def test_initial_weights_stay_within_the_bound_of_the_fan_in():
    model = SelfRegressionModel.initialise(64, seed=0)
    assert 0.95 < np.abs(model.conv1_weight).max() * np.sqrt(27) <= 1
    assert 0.95 < np.abs(model.conv2_weight).max() * np.sqrt(9 * 64) <= 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("arrays"),
        lambda d: d.update(format="other"),
        lambda d: d.update(version=99),
        lambda d: d["arrays"]["conv1_bias"].update(float32="no base64!"),
        lambda d: d["arrays"]["conv1_bias"].update(shape=[7]),
        lambda d: d["arrays"]["conv2_bias"].update(shape=[3, 1]),
        lambda d: d.update(training=3),
        lambda d: d.update(arrays=[1, 2]),
    ],
)
def test_a_damaged_model_is_one_line(damage):
    document = json.loads(SelfRegressionModel.initialise(2).to_json())
    damage(document)
    with pytest.raises(InputError) as caught:
        SelfRegressionModel.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


def test_missing_and_binary_model_files(tmp_path):
    (tmp_path / "binary.json").write_bytes(bytes(range(256)))
    for name in ("missing.json", "binary.json"):
        with pytest.raises(InputError, match=name):
            SelfRegressionModel.load(tmp_path / name)


def test_weights_that_are_not_finite_are_refused():
    arrays = [a.copy() for a in SelfRegressionModel.initialise(2).arrays()]
    arrays[2][0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="conv2_weight"):
        SelfRegressionModel(*arrays)
