"""What ``effnet doctor`` does: every operator on the hardware that is here, checked against its definition and timed.

The definition is ``effnet_kernels.reference`` in float64, on the values that the operator sees. Bandwidth counts the
traffic that docs/design.md finds necessary, so that it can be held against what the memory delivers.
"""

from effnet.doctor.checks import Check, Row, plan, run
from effnet.doctor.machine import Gpu, Machine, choose_devices, this_machine
from effnet.doctor.report import check_report_path, write_report

__all__ = [
    "Check",
    "Gpu",
    "Machine",
    "Row",
    "check_report_path",
    "choose_devices",
    "plan",
    "run",
    "this_machine",
    "write_report",
]
