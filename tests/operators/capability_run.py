"""A short parity run in a process of its own, for the CPU capability that the environment names.

Prints the capability that the kernels ran with. Run by ``test_capabilities.py``; the folder ``tests`` is on the path.
"""

import torch

from effnet_kernels import _plan
from operators.axes import ACTIVATIONS, DTYPES, LAYOUTS
from operators.cases import EVERY_CASE, mbconv_case, mbconv_core_case, pointwise_conv_case
from operators.inference_cases import check_every_path
from operators.network_cases import check as check_network
from operators.parity import check_parity

SHAPES = ((2, 19, 9, 13), (1, 144, 7, 7), (3, 3, 4, 40))


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for make in EVERY_CASE.values():
        for layout in LAYOUTS:
            for dtype in DTYPES:
                for shape in SHAPES:
                    check_parity(make(shape, layout=layout, dtype=dtype))
    for layout in LAYOUTS:
        for activation in ACTIVATIONS:
            # An identity between two BatchNorms in training leaves of the first one's gradients only rounding.
            bn2 = "frozen" if activation == "identity" else "training"
            check_parity(mbconv_core_case(activation=activation, gate="hardsigmoid", layout=layout, bn2=bn2))
        for kernel, stride in ((3, 2), (5, 1), (5, 2), (7, 1), (7, 2)):
            case = mbconv_core_case((2, 17, 10, 13), kernel=kernel, stride=stride, padding=(0, 1, 2, 1), layout=layout)
            check_parity(case)
            check_parity(case, gradient=False)
    for channels in (3, 16, 24, 40, 112, 320):
        check_parity(pointwise_conv_case((2, channels, 5, 7), out_channels=channels))
        check_parity(mbconv_case((2, channels, 5, 7), expanded=2 * channels, out_channels=channels))
    check_every_path()
    for dtype in (torch.float32, torch.bfloat16):
        check_network(dtype)
    print(_plan.cpu_capability())


if __name__ == "__main__":
    main()
