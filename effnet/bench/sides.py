"""Who computes a case: a side builds what is timed, or says why it cannot.

Each side is as quick as its library makes it: torch.compile in both layouts, with frozen weights in inference; ONNX
Runtime and OpenVINO with all their graph optimisations. ``max-autotune`` is left out: it takes minutes for one network.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

import effnet_kernels as ek
from effnet.bench.problem import LAYOUTS, Outcome, Problem, take_step
from effnet.bench.timm_modules import Rival, timm_missing, timm_rival
from effnet.doctor.machine import NATIVE_BACKENDS

FAMILIES = ("eager", "compile", "timm", "onnxruntime", "openvino", "fused")
"""Sides that differ in the layout alone are a family, and the quickest of it counts."""


class Runner(Protocol):
    """What a side builds."""

    def activate(self) -> None:
        """Make the process ready for this side's steps; not timed."""

    def step(self) -> object:
        """What is timed: a forward call, and in training the backward of it."""

    def outcome(self) -> Outcome:
        """One step, and what it leaves."""


class Side(Protocol):
    """One way to compute a case. ``family`` is one of :data:`FAMILIES`."""

    @property
    def family(self) -> str: ...

    @property
    def layout(self) -> str: ...

    @property
    def name(self) -> str: ...

    def missing(self, problem: Problem) -> str | None:
        """Why this side cannot compute ``problem``, or None where it can."""

    def build(self, problem: Problem) -> Runner:
        """What computes ``problem``."""


class TorchRunner:
    """A module under PyTorch."""

    def __init__(
        self,
        problem: Problem,
        rival: Rival,
        layout: str,
        *,
        backend: str = "auto",
        forward: Callable[..., Tensor] | None = None,
    ) -> None:
        memory_format = LAYOUTS[layout]
        self._problem, self._backend, self._rival = problem, backend, rival
        self.module = rival.module.to(memory_format=memory_format)
        self._call = self.module if forward is None else forward
        self._inputs = problem.own_inputs(layout)
        self._wanted = [t for t in (*self.module.parameters(), *self._inputs) if t.requires_grad]
        self._grad = None
        if problem.case.training:
            grad = problem.grad
            self._grad = grad.contiguous(memory_format=memory_format) if grad.dim() == 4 else grad
        else:
            self.module.requires_grad_(False)

    def activate(self) -> None:
        if ek.backend.requested_backend() != self._backend:
            ek.set_backend(self._backend)

    def _forward(self, *inputs: Tensor) -> Tensor:
        with self._problem.autocast():
            return self._call(*inputs)

    def step(self) -> object:
        if self._grad is None:
            with torch.inference_mode():
                return self._forward(*self._inputs)
        # Not backward(), which copies a gradient that is handed through, as a residual's.
        return torch.autograd.grad(self._forward(*self._inputs), self._wanted, self._grad)

    def outcome(self) -> Outcome:
        self.activate()
        if self._grad is None:
            with torch.inference_mode():
                return {"out": self._forward(*self._inputs)}
        return take_step(self.module, self._inputs, self._grad, self._rival.own_name, self._forward)


class _LayoutSide:
    """A side of PyTorch in one layout."""

    family = ""

    def __init__(self, layout: str) -> None:
        self.layout = layout

    @property
    def name(self) -> str:
        return f"{self.family} {self.layout}"

    def missing(self, problem: Problem) -> str | None:
        return None


class Eager(_LayoutSide):
    """Separate PyTorch calls: the definition of every operator."""

    family = "eager"

    def build(self, problem: Problem) -> Runner:
        return TorchRunner(problem, _own(problem.copy()), self.layout)


class Compiled(_LayoutSide):
    """torch.compile of the same calls, in its default mode."""

    family = "compile"

    def build(self, problem: Problem) -> Runner:
        module = problem.copy(self.layout)
        compiled = torch.compile(module, dynamic=False)
        return _FreezingRunner(problem, _own(module), self.layout, forward=compiled)


class _FreezingRunner(TorchRunner):
    """Compiles in its first step, for the number of threads in use, in inference with weights as constants."""

    def outcome(self) -> Outcome:
        from torch._inductor import config

        # Code is compiled for a number of threads, and kept from one run to the next by what is set here.
        with config.patch({"freezing": not self._problem.case.training, "cpp.threads": torch.get_num_threads()}):
            return super().outcome()


class Timm(_LayoutSide):
    """timm's modules with the same weights."""

    family = "timm"

    def missing(self, problem: Problem) -> str | None:
        return timm_missing(problem)

    def build(self, problem: Problem) -> Runner:
        return TorchRunner(problem, timm_rival(problem), self.layout)


class Fused(_LayoutSide):
    """The fused operators on one backend."""

    family = "fused"

    def __init__(self, backend: str, layout: str) -> None:
        super().__init__(layout)
        self.backend = backend

    @property
    def name(self) -> str:
        return f"fused {self.backend} {self.layout}"

    def missing(self, problem: Problem) -> str | None:
        if self.backend not in NATIVE_BACKENDS[problem.device.type]:
            return f"the {self.backend} backend is not for {problem.device.type} tensors"
        return ek.backends()[self.backend]

    def build(self, problem: Problem) -> Runner:
        module = problem.copy()
        module.fused = True  # type: ignore[assignment]
        return TorchRunner(problem, _own(module), self.layout, backend=self.backend)


def all_sides(device: torch.device) -> list[Side]:
    """Every side for tensors on ``device``, in the order of :data:`FAMILIES`."""
    from effnet.bench.exported import OnnxRuntime, OpenVino

    sides: list[Side] = []
    for layout in LAYOUTS:
        sides += [Eager(layout), Compiled(layout), Timm(layout)]
        sides += [Fused(backend, layout) for backend in NATIVE_BACKENDS[device.type]]
    sides += [OnnxRuntime(), OpenVino()]
    return sorted(sides, key=lambda side: FAMILIES.index(side.family))


def _own(module: nn.Module) -> Rival:
    return Rival(module, lambda name: name)
