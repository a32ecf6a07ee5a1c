"""mig-parted files: read, write, apply, assert, export."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf import InputError, Node, enumerate_layouts, load_board
from migperf.boards import board_names
from migperf.interop.k8s import pod_resources, resource_name
from migperf.interop.migparted import (
    ConfigEntry,
    MigConfig,
    differences,
    export_config,
    stock_config,
    wanted_for,
)

# From mig-parted's own examples/config.yaml.
CONFIG = """
version: v1
mig-configs:
  all-disabled:
  - devices: all
    mig-enabled: false
  all-balanced:
  - device-filter: ["0x20B010DE", "0x20B110DE"]
    devices: all
    mig-enabled: true
    mig-devices: {"1g.5gb": 2, "2g.10gb": 1, "3g.20gb": 1}
  - device-filter: 0x20B210DE
    devices: all
    mig-enabled: true
    mig-devices: {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}
  custom:
  - devices: [0]
    mig-enabled: true
    mig-devices: {"1c.3g.40gb": 3, "4g.40gb": 1}
  - devices: [1]
    mig-enabled: false
"""


def test_files_round_trip() -> None:
    config = MigConfig.parse(CONFIG)
    assert MigConfig.parse(config.dump()) == config
    for name in board_names():
        stock = stock_config(load_board(name))
        assert MigConfig.parse(stock.dump()) == stock


@pytest.mark.native
def test_apply_assert_export(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-80gb:2")
    config = MigConfig.parse(CONFIG)
    entries = config.get("all-balanced")
    # The device filter picks the item for this board.
    assert len(differences(node, entries)) == 2
    for gpu in node.gpus:
        entry = wanted_for(gpu, entries)
        assert entry is not None
        gpu.apply(entry.layout())
    assert differences(node, entries) == []
    exported = export_config(node)
    assert exported.configs["current"] == (
        ConfigEntry("all", True, {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}),
    )
    custom = config.get("custom")
    first = wanted_for(node.gpus[0], custom)
    assert first is not None
    node.gpus[0].apply(first.layout())
    assert [d.name.split("MIG ")[1] for d in node.gpus[0].devices()] == [
        "4g.40gb", "1c.3g.40gb", "1c.3g.40gb", "1c.3g.40gb",
    ]  # fmt: skip


@pytest.mark.native
def test_every_multiset_exports_to_what_was_applied(open_sim: Callable[..., Node]) -> None:
    node = open_sim("a100-40gb")
    for layout in enumerate_layouts("a100-40gb", placed=False):
        node.gpus[0].apply(layout)
        entry = export_config(node).configs["current"][0]
        assert sorted(e.profile for e in entry.layout().entries) == sorted(layout.multiset)
        assert differences(node, [entry]) == []


@pytest.mark.native
def test_stock_configurations_apply_on_every_board(open_sim: Callable[..., Node]) -> None:
    for name in board_names():
        node = open_sim(name)
        for key, entries in stock_config(load_board(name)).configs.items():
            if entries[0].mig_enabled:
                node.gpus[0].apply(entries[0].layout())
                assert differences(node, entries) == [], (name, key)


@pytest.mark.parametrize(
    "text",
    ["", "version: v2", "version: v1", "version: v1\nmig-configs: {a: []}",
     "version: v1\nmig-configs: {a: [{devices: x, mig-enabled: true}]}",
     "version: v1\nmig-configs: {a: [{devices: all}]}",
     "version: v1\nmig-configs: {a: [{mig-enabled: true, mig-devices: {1g: 1}}]}",
     "version: v1\nmig-configs: {a: [{mig-enabled: true, mig-devices: {1g.5gb: -1}}]}",
     "version: v1\nmig-configs: {a: [{mig-enabled: false, mig-devices: {1g.5gb: 1}}]}",
     "version: v1\nmig-configs: {a: [{mig-enabled: true, device-filter: zz}]}", "a: [", "[]"],
)  # fmt: skip
def test_bad_files_are_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        MigConfig.parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=80))
def test_fuzzed_files(text: str) -> None:
    with pytest.raises(InputError):
        MigConfig.parse(text)
    with pytest.raises(InputError):
        MigConfig.parse("version: v1\nmig-configs: {a: [" + text.replace("\n", " ") + "]}\nx: {")


def test_resource_names() -> None:
    # k8s-device-plugin README, strategy mixed.
    assert resource_name("1g.5gb") == "nvidia.com/mig-1g.5gb"
    assert resource_name("1g.10gb+me") == "nvidia.com/mig-1g.10gb.me"
    assert pod_resources(["1g.5gb", "1g.5gb"]) == {"limits": {"nvidia.com/mig-1g.5gb": 2}}
