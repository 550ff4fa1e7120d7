"""What PyTorch may be doing with a call, other than computing it, that the kernels have no rule for.

Their definitions are ordinary PyTorch and have every rule; so :func:`effnet_kernels.backend.backend_for` gives such a
call to the reference.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def unsupported_transform() -> str | None:
    """Which transform is at work, for which only the definitions serve; None where there is none."""
    if _within_torch_func():
        return "torch.func transforms (grad, vmap, jvp and others)"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    return "an ONNX export" if _writes_onnx() else None


def _within_torch_func() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _writes_onnx() -> bool:
    # What asks PyTorch takes longer than what rules it out.
    traced = torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None
    return traced and torch.onnx.is_in_onnx_export()


# While torch.compile traces, it calls these instead of tracing them, which would give it answers that are not so.
# This is what torch.compiler.assume_constant_result does, which would import the compiler for everyone.
_within_torch_func._dynamo_marked_constant = True  # type: ignore[attr-defined]
_writes_onnx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_backward(name: str, grad: Tensor) -> None:
    """Refuse a backward of ``name`` under a transform, whose rules the forward that is behind it did not have."""
    transform = "vmap" if torch._C._functorch.is_legacy_batchedtensor(grad) else unsupported_transform()
    if transform is not None:
        raise RuntimeError(
            f"effnet_kernels::{name}: its backward does not run under {transform} (is_grads_batched is vmap): call the "
            "forward inside the transform too, or use the reference backend (effnet_kernels.set_backend('reference'))"
        )


def is_recomputing() -> bool:
    """Whether a backward pass is under way, in which a forward call is activation checkpointing's second one.

    torch.compile is not asked: it traces a checkpointed function once, and its backward repeats no mutation.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
