"""Compiled kernels (csrc/bindings.cpp); noiser.native is their Python face."""

import numpy as np

def instructions(name: str) -> str: ...
def network_rows(
    band: np.ndarray,
    first: int,
    height: int,
    begin: int,
    end: int,
    out: np.ndarray,
    conv1_weight: np.ndarray,
    conv1_bias: np.ndarray,
    conv2_weight: np.ndarray,
    conv2_bias: np.ndarray,
    centre: np.ndarray,
    scale: float,
    zeros: bool,
    border: np.ndarray,
    threads: int,
    instructions: str,
) -> None: ...
def patch_sums(
    band: np.ndarray,
    first: int,
    height: int,
    begin: int,
    end: int,
    products: np.ndarray,
    total: np.ndarray,
    zeros: bool,
    threads: int,
    instructions: str,
) -> None: ...
def histograms(image: np.ndarray, counts: np.ndarray, luma: np.ndarray) -> None: ...
def block_means(
    image: np.ndarray,
    table: np.ndarray,
    factor: int,
    means: np.ndarray,
    sums: np.ndarray,
    threads: int,
) -> None: ...
def tone_rows(
    image: np.ndarray,
    table: np.ndarray,
    channel_mean: np.ndarray,
    channel_scale: np.ndarray,
    numbers: np.ndarray,
    slope_map: np.ndarray,
    offset_map: np.ndarray,
    factor: int,
    out: np.ndarray,
    threads: int,
    instructions: str,
) -> None: ...
def training_steps(
    noise: np.ndarray,
    done: int,
    conv1: np.ndarray,
    conv2: np.ndarray,
    bias2: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    gradients: np.ndarray,
    losses: np.ndarray,
    tv_weight: float,
    learning_rate: float,
    beta1: float,
    beta2: float,
    instructions: str,
) -> None: ...
def lookup(image: np.ndarray, table: np.ndarray, out: np.ndarray, threads: int) -> None: ...
def unfilter(lines: np.ndarray, pixel: int, out: np.ndarray) -> bool: ...
