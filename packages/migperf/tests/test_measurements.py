"""Tables of measurements: files, the paper's result folder, fuzzed input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from migperf import InputError, load_measurements, paper_measurements
from migperf.measurements import read_table

OFFICIAL = """\
,Unnamed: 0,model_name,batch_size,seq_length,latency,latency_std,throughput,start_timestamp,\
end_timestamp,mig_profile,gract_mean,gract_std,fb_used_mean,fb_used_std
0,0,bert-base,32,64,26.34,0.02,113.89,1661747520,1661747641,7g.80gb,0.9,0.091,1963.033,10.639
1,1,bert-base,256,64,0.0,0.0,0.0,0,0,1g.10gb,0.0,0.0,0.0,0.0
"""


def test_official_folder(tmp_path: Path) -> None:
    folder = tmp_path / "infer" / "nlp"
    folder.mkdir(parents=True)
    (folder / "integrated_result_bsz.csv").write_text(OFFICIAL)
    table = load_measurements(tmp_path)
    good = table.get("bert-base-s64", "infer", "7g.80gb", 32)
    assert good is not None
    # The file's own throughput column says 113.89: it counted three dictionary keys per batch.
    assert good.rate == pytest.approx(1000 * 32 / 26.34)
    assert good.activity == 0.9
    dead = table.get("bert-base-s64", "infer", "1g.10gb", 256)
    assert dead is not None
    assert dead.status == "oom"
    assert math.isnan(dead.latency_ms)
    assert dead.rate == 0.0


def test_tables_read_back() -> None:
    table = paper_measurements()
    assert list(read_table(table.to_csv())) != []
    assert read_table(table.to_csv()).to_csv() == table.to_csv()


@pytest.mark.parametrize(
    "row",
    ["m,infer,1g,0,1", "m,infer,1g,x,1", "m,infer,1g,1,0", "m,infer,1g,1,-3", "m,serve,1g,1,1",
     "m,infer,1g,1.5,1", "m,infer", "m,infer,1g,1,inf"],
)  # fmt: skip
def test_bad_rows_name_the_line(row: str) -> None:
    with pytest.raises(InputError, match="line 2"):
        read_table(f"workload,mode,profile,batch,latency_ms\n{row}\n")


@given(st.text(max_size=200))
def test_fuzzed_tables_give_one_line(text: str) -> None:
    message = ""
    try:
        read_table("workload,mode,profile,batch,latency_ms\n" + text)
    except InputError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1 or "\\" in message


def test_missing_folders_and_unknown_workloads(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="profiles: "):
        load_measurements(tmp_path / "none")
    with pytest.raises(InputError, match="profiles: "):
        load_measurements(tmp_path)
    with pytest.raises(InputError, match=r"workload: 'x \(infer\)' .* resnet50"):
        paper_measurements().select("x", "infer")
