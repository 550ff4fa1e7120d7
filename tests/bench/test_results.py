"""Rows: what they hold, to CSV and back, and how those of one case are held against each other."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.sides import STAMP, Named, row, small_case
from effnet.bench.cases import Case, Conditions, block_cases
from effnet.bench.compare import compare_bytes, compare_times, groups, latest, quickest
from effnet.bench.measure import Result
from effnet.bench.memory import Memory
from effnet.bench.results import make_row, read_rows, write_rows
from effnet.bench.roofline import Roof, work_of
from effnet.doctor.workload import BlockShape

CASE = small_case()


def test_rows_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    timed = Result(Named("fused"), error=1.5e-7, bound=1e-5, calls=3, seconds=[0.001, 0.002, 0.004, 0.1 / 3])
    absent = Result(Named("openvino"), "missing", 'inference only; "so", they\nsay')
    rows = [
        make_row(CASE, timed, STAMP, Memory(2**33, 5, None), Roof(12.5, 116.25)),
        make_row(CASE, absent, STAMP),
    ]
    write_rows(path, rows[:1])
    write_rows(path, rows[1:])
    assert read_rows(path) == rows
    assert path.read_text().count("median_ms") == 1


def test_a_row_says_what_was_measured() -> None:
    found = make_row(CASE, Result(Named("fused", "channels_last"), seconds=[0.004, 0.001, 0.002]), STAMP)
    assert (found.median_ms, found.best_ms, found.rounds_ms) == (2.0, 1.0, (4.0, 1.0, 2.0))
    assert (found.q1_ms, found.q3_ms) == (1.5, 3.0)
    assert (found.name, found.size, found.mode, found.threads) == ("mbconv_core", "2×24@5 k3 s2", "training", 1)
    assert (found.family, found.layout, found.machine) == ("fused", "channels_last", STAMP.machine)
    once = make_row(CASE, Result(Named("fused"), seconds=[0.5]), STAMP)
    assert (once.q1_ms, once.median_ms, once.q3_ms) == (500.0, 500.0, 500.0)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("median_ms", "mean_ms"), "expected the columns"),
        (lambda text: "", "expected the columns"),
        (lambda text: text.replace("1000.0", "a second"), r"line 2: median_ms: .*a second"),
    ],
)
def test_a_file_that_is_no_file_of_rows_is_refused(tmp_path: Path, spoil: object, message: str) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, [row(CASE, "fused", [1.0])])
    path.write_text(spoil(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_the_best_side_of_each_is_compared_round_by_round() -> None:
    group = [
        row(CASE, "eager", [9.0, 9.0, 9.0]),
        row(CASE, "timm", [2.0, 4.0, 8.0]),
        row(CASE, "fused", [3.0, 3.0, 3.0]),
        row(CASE, "fused", [1.0, 4.0, 2.0]),
        row(CASE, "openvino", [], status="missing"),
    ]
    found = compare_times(group)
    assert found is not None
    assert (found.rival, found.fused) == (group[1], group[3])
    # 2/1, 4/4 and 8/2
    assert (found.low, found.ratio, found.high) == (1.5, 2.0, 3.0)
    only_eager = compare_times(group, ("eager",))
    assert only_eager is not None and only_eager.rival is group[0]
    assert quickest(group, ("openvino",)) is None


def test_no_speedup_beside_a_wrong_result() -> None:
    group = [
        row(CASE, "eager", [2.0, 2.0]),
        row(CASE, "fused", [1.0, 1.0]),
        row(CASE, "fused", [], status="wrong", reason="out: …"),
    ]
    assert compare_times(group[:2]) is not None
    assert compare_times(group) is None
    assert compare_times(group[:1]) is None


def test_bytes_are_compared_where_they_are_known() -> None:
    group = [
        row(CASE, "eager", [1.0], saved_bytes=400),
        row(CASE, "timm", [1.0], saved_bytes=300),
        row(CASE, "openvino", [1.0]),
        row(CASE, "fused", [1.0], saved_bytes=100, step_bytes=0),
    ]
    found = compare_bytes(group, "saved_bytes")
    assert found is not None and found.ratio == 3.0 and found.rival is group[1]
    assert compare_bytes(group, "step_bytes") is None


def test_the_later_of_two_runs_on_one_machine_counts() -> None:
    old, new = row(CASE, "fused", [2.0]), row(CASE, "fused", [1.0], when="2026-01-03 00:00")
    elsewhere = row(CASE, "fused", [3.0], machine="another")
    other = row(small_case("squeeze_excite"), "fused", [4.0])
    assert latest([old, new, elsewhere, other]) == [new, elsewhere, other]
    assert [len(group) for group in groups([old, replace(old, side="fused b"), other])] == [2, 1]


def test_work_is_that_of_the_passes() -> None:
    """Hand-computed for mbconv_core on 1×96@112 at stride 2 with 3×3: Ein = 1 204 224, Eout = 301 056."""
    shape = BlockShape(96, 112, 3, 2)
    case = Case("operator", "mbconv_core", 1, 112, shape=shape)
    training, inference = work_of(case), work_of(replace(case, mode="inference"))
    assert training is not None and inference is not None
    assert training.bytes == 4 * (7 * 1_204_224 + 8 * 301_056)
    assert inference.bytes == 4 * (1_204_224 + 3 * 301_056)
    # BatchNorm and activation 6, SE's mean and scale 2, a convolution 18; in training four and three times as much.
    assert inference.flops == 6 * 1_204_224 + (18 + 6 + 2) * 301_056
    assert training.flops == 24 * 1_204_224 + (54 + 24 + 8) * 301_056
    half = work_of(replace(case, dtype="bfloat16"))
    assert half is not None and half.bytes == training.bytes // 2
    assert work_of(block_cases(Conditions())[0]) is None
