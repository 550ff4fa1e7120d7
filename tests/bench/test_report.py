"""From a file of rows to tables, plots and verdicts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.sides import row, small_case
from effnet.bench.cases import Conditions, block_cases, model_cases, operator_cases
from effnet.bench.report import NOTHING, SECTIONS, find_rows, write_report
from effnet.bench.results import Row, write_rows
from effnet.bench.targets import TARGETS, Target, memory_wanted, target_cases, verdicts
from effnet.errors import OptionError

PAGE = "\n\n".join(
    ["before", *(f"<!-- bench {name} -->\nold\n<!-- /bench {name} -->" for name in (*SECTIONS, "plots")), "after\n"]
)
TRAINING = Conditions((8,), ("float32",), ("training",))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def some_rows() -> list[Row]:
    (model,) = model_cases(TRAINING, ["efficientnet_b0"])
    (block,) = block_cases(TRAINING)
    memory = {"saved_bytes": 60_000_000, "step_bytes": 80_000_000, "peak_bytes": 500_000_000}
    rows = [
        row(model, "eager", [0.6, 0.8], saved_bytes=90_000_000, step_bytes=160_000_000, peak_bytes=600_000_000),
        row(model, "onnxruntime", [], status="missing", reason="inference only"),
        row(model, "fused", [0.3, 0.4], **memory),
        row(block, "timm", [0.03, 0.03]),
        row(block, "fused", [0.04, 0.04]),
    ]
    for number, case in enumerate(operator_cases(TRAINING, ["squeeze_excite"]), start=1):
        roof = {"roof_gbs": 20.0, "roof_gflops": 100.0}
        rows += [row(case, "compile", [number * 1e-3], **roof), row(case, "fused", [1e-3], **roof)]
    return rows


def section(text: str, name: str) -> str:
    return text.split(f"<!-- bench {name} -->\n")[1].split(f"\n<!-- /bench {name} -->")[0]


def test_tables_hold_what_the_rows_say(page: Path) -> None:
    written = write_report(some_rows(), page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    networks = section(text, "networks").splitlines()
    assert networks[2] == (
        "| efficientnet_b0 8×224², float32, training | 1 | 700 | – | – | – | – | 350 | 2.00 | 2.00–2.00 |"
    )
    assert networks[3].startswith("| MBConv block 8×240@28 k5 s1, float32, training | 1 | – | – | 30 |")
    assert networks[3].endswith("| 40 | 0.75 | 0.75–0.75 |")
    # Ratios 1 to 7 at seven shapes: 5040^(1/7)
    assert section(text, "operators").splitlines()[2:] == [
        "| squeeze_excite | batch 8, float32, training | 1 | 7 | 3.38 | 1.00 (8×32@112, compile nchw) | 7.00 |"
    ]
    memory = section(text, "memory").splitlines()
    assert memory[2] == "| efficientnet_b0 8×224², float32, training | eager nchw | 90 | 160 | 600 |"
    assert memory[-1] == "|  | ratio over the least rival | 1.50 | 2.00 | 1.20 |"
    assert section(text, "absent").splitlines()[2:] == ["| onnxruntime nchw | missing | inference only | 1 |"]
    assert section(text, "machines").startswith("- 2026-01-02 03:04 UTC: a machine, 2 processors, AVX2; torch 2.10")
    assert section(text, "plots").count("![") == 3
    assert [path.name for path in written] == [
        "page.md",
        "bench_speedup.svg",
        "bench_memory.svg",
        "bench_roofline.svg",
    ]
    assert all(path.read_text().rstrip().endswith("</svg>") for path in written[1:])


def test_the_same_rows_give_the_same_files(page: Path) -> None:
    first = [path.read_bytes() for path in write_report(some_rows(), page)]
    assert [path.read_bytes() for path in write_report(some_rows(), page)] == first


def test_without_rows_every_section_says_so(page: Path) -> None:
    assert write_report([], page) == [page]
    text = page.read_text()
    assert {section(text, name) for name in (*SECTIONS, "plots")} == {NOTHING}
    assert list((page.parent / "figures").iterdir()) == []


def test_a_page_without_the_marks_is_refused_and_left_alone(page: Path) -> None:
    broken = PAGE.replace("<!-- /bench memory -->", "")
    page.write_text(broken)
    with pytest.raises(OptionError, match="page: expected a page with <!-- bench memory -->"):
        write_report(some_rows(), page)
    assert page.read_text() == broken
    with pytest.raises(OptionError, match="no such file"):
        write_report([], page.with_name("other.md"))


def test_the_page_of_this_project_has_the_marks() -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    for name in (*SECTIONS, "plots"):
        assert text.count(f"<!-- bench {name} -->\n") == text.count(f"<!-- /bench {name} -->") == 1


def test_rows_come_from_files_and_folders(tmp_path: Path) -> None:
    one, two = row(small_case(), "fused", [1.0]), row(small_case("squeeze_excite"), "fused", [2.0])
    write_rows(tmp_path / "a.csv", [one])
    write_rows(tmp_path / "b.csv", [two])
    (tmp_path / "README.md").write_text("no rows")
    assert find_rows([tmp_path]) == [one, two]
    assert find_rows([tmp_path / "b.csv"]) == [two]
    with pytest.raises(OptionError, match=r"csv: .*nowhere: no such file or folder"):
        find_rows([tmp_path / "nowhere"])
    (tmp_path / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(OptionError, match="csv: expected a file that `effnet bench --csv` wrote"):
        find_rows([tmp_path])


def rows_of(target: Target, ratios: Sequence[float], **changes: object) -> list[Row]:
    """Rows with which the cases of ``target`` have these ratios, at one thread."""
    rows = []
    for case, ratio in zip(target.cases((1,)), ratios, strict=True):
        rows += [row(case, "eager", [ratio] * 2, **changes), row(case, "fused", [1.0] * 2, **changes)]
    return rows


TIMED = Target("a step", ("efficientnet_b0",), 8, 224, wanted=1.5)
EVERYWHERE = Target("squeeze_excite", ("squeeze_excite",), 8, 0, wanted=1.5, worst=1.1)


@pytest.mark.parametrize(
    ("target", "ratios", "reached"),
    [
        (TIMED, [1.6], True),
        (TIMED, [1.4], False),
        (EVERYWHERE, [1.2, *[2.0] * 6], True),
        (EVERYWHERE, [1.0, *[2.0] * 6], False),
        (EVERYWHERE, [1.2] * 7, False),
    ],
)
def test_a_target_is_reached_or_not(
    target: Target, ratios: list[float], reached: bool, monkeypatch: pytest.MonkeyPatch, page: Path
) -> None:
    monkeypatch.setattr("effnet.bench.targets.TARGETS", (target,))
    rows = rows_of(target, ratios)
    (verdict,) = verdicts(rows)
    assert verdict.reached == reached and verdict.shapes == len(ratios)
    assert verdict.least.ratio == pytest.approx(min(ratios))
    write_report(rows, page)
    line = section(page.read_text(), "targets").splitlines()[2]
    assert line.startswith(f"| {target.title} | 1 | eager nchw") and line.endswith("| yes |" if reached else "| no |")


def test_a_target_is_not_judged_by_some_of_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("effnet.bench.targets.TARGETS", (EVERYWHERE,))
    rows = rows_of(EVERYWHERE, [2.0] * 7)
    assert len(verdicts(rows)) == 1
    assert verdicts(rows[:-2]) == []
    wrong = row(EVERYWHERE.cases((1,))[0], "fused", [], status="wrong")
    assert verdicts([*rows[:2], wrong, *rows[2:]]) == []


def test_memory_is_judged_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("saved", ("efficientnet_b0",), 8, 224, quantity="saved_bytes", wanted=2.0)
    monkeypatch.setattr("effnet.bench.targets.TARGETS", (target,))
    (case,) = target.cases((1, 2))
    assert case.threads == 1
    rows = [row(case, "eager", [1.0], saved_bytes=210), row(case, "fused", [9.0], saved_bytes=100)]
    (verdict,) = verdicts(rows)
    assert verdict.ratio == 2.1 and verdict.reached
    assert memory_wanted(case)


def test_every_case_of_the_targets_is_measured_once() -> None:
    cases = target_cases((1, 2))
    assert len(cases) == len(set(cases)) == len({case.title for case in cases})
    assert [case.threads for case in cases] == sorted(case.threads for case in cases)
    for target in TARGETS:
        assert set(target.cases((1, 2))) <= set(cases)
    assert sum(map(memory_wanted, cases)) == 2
