import numpy as np
from noiser.activation import erf, gelu, gelu_and_derivative
from scipy import special


def test_erf_equals_scipy_in_double_precision():
    x = np.concatenate([np.linspace(-8, 8, 200_001), [0.0, 1e-300, -1e-20, 100.0]])
    assert np.abs(erf(x) - special.erf(x)).max() < 4e-16


def test_gelu_equals_the_normal_distribution_function():
    z = np.linspace(-9, 9, 10_001)
    assert np.abs(gelu(z) - z * special.ndtr(z)).max() < 2e-15


def test_single_precision_gelu_and_its_derivative():
    z = np.linspace(-9, 9, 10_001).astype(np.float32)
    value, slope = gelu_and_derivative(z)
    exact = z.astype(np.float64)
    density = np.exp(-(exact**2) / 2) / np.sqrt(2 * np.pi)
    assert value.dtype == slope.dtype == np.float32
    assert np.abs(value - exact * special.ndtr(exact)).max() < 2e-6
    assert np.abs(slope - (special.ndtr(exact) + exact * density)).max() < 1e-6
