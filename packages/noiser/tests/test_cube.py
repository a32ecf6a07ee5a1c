import numpy as np
import pytest
from noiser import Cube, Enhancer, InputError, Settings, enhance, metrics
from noiser.camera import retake
from scipy.interpolate import RegularGridInterpolator


def test_interpolation_equals_scipy():
    rng = np.random.default_rng(0)
    cube = Cube(rng.random((7, 7, 7, 3)))
    axis = np.linspace(0, 1, 7)
    colours = rng.random((500, 3))
    expected = RegularGridInterpolator((axis, axis, axis), cube.table)(colours)
    assert np.abs(cube.apply(colours) - expected).max() < 1e-12


def test_file_round_trip_and_order_of_the_rows():
    cube = Cube.sample(lambda rgb: rgb * [1.0, 0.5, 0.25], size=3, title="a title")
    text = cube.to_text()
    # The format: red changes fastest.
    rows = [line for line in text.splitlines() if line[0].isdigit()]
    assert rows[1] == "0.500000 0.000000 0.000000"
    again = Cube.from_text(text)
    assert again.title == "a title"
    assert np.abs(again.table - cube.table).max() < 1e-6


@pytest.mark.parametrize("method", ["closed_form", "plus"])
def test_the_table_of_a_shot_does_what_the_method_does(photograph, method):
    dark = retake(photograph, -3, seed=0)
    enhancer = Enhancer(settings=Settings(method))
    cube = Cube.sample(lambda rgb: enhancer.map_colours(dark, rgb), 65)
    by_table = cube.apply(dark / 255)
    if method == "closed_form":
        assert np.abs(by_table * 255 - enhance(dark, method)).max() < 6
    # "plus" also returns detail, which a table cannot.
    assert metrics.psnr(by_table, metrics.as_float(enhance(dark, method))) > 25


def test_the_network_has_no_table(photograph):
    with pytest.raises(InputError, match="neighbours"):
        Enhancer(settings=Settings("paper")).map_colours(photograph, np.zeros((1, 3)))


@pytest.mark.parametrize(
    "text",
    ["", "LUT_3D_SIZE 2\n0 0 0\n", "LUT_3D_SIZE x\n", "LUT_1D_SIZE 4\n0 0 0\n",
     "LUT_3D_SIZE 2\n" + "0 0 nothing\n" * 8, "LUT_3D_SIZE 2\nDOMAIN_MAX 2 2 2\n" + "0 0 0\n" * 8,
     "LUT_3D_SIZE 2\n" + "0 0\n" * 8],
)  # fmt: skip
def test_files_that_are_no_table(text):
    with pytest.raises(InputError):
        Cube.from_text(text, "bad.cube")
