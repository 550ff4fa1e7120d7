"""Prints what every pass moves at every depthwise shape of EfficientNet-B0, counted on the host runtime.

PYTHONPATH=tests python tests/traffic/table.py            # from the repository's root
PYTHONPATH=tests python tests/traffic/table.py --write    # writes the tables of docs/performance.md, too
"""

import argparse

from rich.console import Console
from rich.table import Table

from traffic import budget, eager, page
from traffic.count import DTYPES, LAYOUTS, activations, core, total
from traffic.shapes import COUNTED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables of docs/performance.md")
    arguments = parser.parse_args()

    table = Table(
        title="Counted / docs/design.md's table. Small columns: distinct sectors of activations, of everything; "
        "bytes requested from activations, from everything"
    )
    for head in ("shape", "images", "layout", "dtype", "Ein MB", "Eout MB", "pass", "table MB"):
        table.add_column(head)
    for head in ("act.", "all", "act. req.", "all req.", "eager MB", "eager : ours"):
        table.add_column(head, justify="right")
    for shape in COUNTED:
        for layout in LAYOUTS:
            for dtype in DTYPES:
                count = core(shape, layout, dtype)
                sizes = [n * count.images * count.itemsize / 1e6 for n in (shape.ein, shape.eout)]
                head = [str(shape), str(count.images), layout, str(dtype).removeprefix("torch.")]
                head += [f"{size:.2f}" for size in sizes]
                rows = [(name, budget.PASSES.get(name), of) for name, of in budget.passes_of(count.launches).items()]
                rows.append(("block", budget.block(shape), list(count.launches)))
                for name, allowed, launches in rows:
                    if allowed is None:
                        continue
                    least = allowed.bytes(shape, count.images, count.itemsize)
                    some, every = activations(launches), total(launches)
                    moved = (some.distinct, every.distinct, some.requested, every.requested)
                    cells = [name, f"{least / 1e6:.2f}", *(f"{n / least:.3f}" for n in moved)]
                    if name == "block":
                        unfused = eager.block(shape).bytes(shape, count.images, count.itemsize)
                        cells += [f"{unfused / 1e6:.2f}", f"{unfused / every.distinct:.2f}"]
                    table.add_row(*head, *cells)
                    head = [""] * len(head)
                table.add_section()
    Console(width=170).print(table)
    if arguments.write:
        page.rewrite()


if __name__ == "__main__":
    main()
