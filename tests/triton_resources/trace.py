"""What torch.compile makes of mbconv_core on the Triton backend, without a GPU: the kernels in its graphs, in order.

With TRITON_INTERPRET unset, for interpreted kernels cannot be traced::

    PYTHONPATH=tests python -m triton_resources.trace FILE   # triton_resources/toolkit.py calls it

The graphs are compiled to nothing: running them returns tensors of the right shapes.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch.fx import GraphModule, Node
from triton.backends.compiler import GPUTarget

import effnet_kernels as ek
from triton_resources.launches import LAYOUTS, served_by_triton
from triton_resources.toolkit import TRAINED

Graph = list[dict[str, Any]]


def calls(graph: GraphModule) -> Graph:
    """The graph's calls but for PyTorch's own: a kernel by its name and what it writes, an operator by its name."""
    found: Graph = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or str(node.target).startswith(("aten.", "<built-in function getitem>")):
            continue
        if "kernel_idx" in node.kwargs:
            kernel: Any = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])
            # The number of warps makes it a configuration of an autotuner.
            name = getattr(kernel, "fn", kernel).__name__
            found.append({"kernel": name, "writes": node.kwargs["tensors_to_clone"], "node": str(node.target)})
        else:
            found.append({"operator": str(node.target)})
    return found


def traced(layout: str) -> list[Graph]:
    """The graphs of forward and of backward."""
    graphs: list[Graph] = []

    def compiler(graph: GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(calls(graph))
        (outputs,) = next(node for node in graph.graph.nodes if node.op == "output").args

        def run(*_arguments: Any) -> list[Any]:
            return [real(out.meta["val"]) if isinstance(out, Node) else out for out in outputs]

        return make_boxed_func(run)

    def real(fake: Tensor) -> Tensor:
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype)

    def parameter(*shape: int) -> Tensor:
        return torch.ones(shape, requires_grad=True)

    def norm() -> ek.BatchNorm:
        return ek.BatchNorm(parameter(channels), parameter(channels))

    channels, squeezed = 96, 4
    u = torch.ones(2, channels, 16, 16).to(memory_format=LAYOUTS[layout]).requires_grad_()
    se = ek.SqueezeExcite(
        parameter(squeezed, channels), parameter(squeezed), parameter(channels, squeezed), parameter(channels)
    )
    backend = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)
    core = torch.compile(ek.mbconv_core, fullgraph=True, backend=backend)
    core(u, parameter(channels, 1, 3, 3), norm(), bn1=norm(), se=se).sum().backward()
    return graphs


def main() -> None:
    assert not triton.knobs.runtime.interpret, "TRITON_INTERPRET is set"
    (output,) = sys.argv[1:]
    # To see what a kernel writes, torch compiles it halfway, for the GPU that the driver has.
    target = GPUTarget("cuda", TRAINED.architecture, 32)
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: target))
    with served_by_triton():
        Path(output).write_text(json.dumps({layout: traced(layout) for layout in LAYOUTS}))


if __name__ == "__main__":
    main()
