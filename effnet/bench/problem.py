"""What a case computes: a module, its input, the gradient of its output, and what float64 makes of them."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

import effnet
from effnet.bench.cases import Case
from effnet.blocks import ResidualBlock
from effnet.doctor.checks import draw
from effnet.doctor.workload import OPERATORS, BlockShape
from effnet.model import EfficientNet

Outcome = dict[str, Tensor]
"""What one step leaves, by name: ``out``, and in training gradients and running statistics."""

BRANCH_STRENGTH = 0.2

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


class OperatorModule(nn.Module):
    """One operator with parameters and running statistics of its own, fused or as its definition."""

    def __init__(self, name: str, shape: BlockShape, generator: torch.Generator) -> None:
        super().__init__()
        self.name, self.shape, self.fused = name, shape, False
        self.names = []
        for tensor, size in OPERATORS[name].tensors(shape, 1).items():
            if tensor in ("x", "residual"):
                continue
            value = draw(tensor, size, generator)
            if tensor.startswith(("mean", "var")):
                self.register_buffer(tensor, value)
            else:
                self.register_parameter(tensor, nn.Parameter(value))
            self.names.append(tensor)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        tensors = {name: getattr(self, name) for name in self.names} | {"x": x}
        if residual is not None:
            tensors["residual"] = residual
        operator = OPERATORS[self.name]
        return (operator.call if self.fused else operator.define)(tensors, self.shape, self.training)


class Problem:
    """A case with its numbers, drawn from a fixed seed. Nothing here is changed by those who run it.

    Dropout and drop-connect are off: their random numbers differ from one implementation to the next.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.device = torch.device(case.device)
        self._generator = torch.Generator().manual_seed(0)
        # Built on the CPU and moved, so that every device has the same numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, network = self._build()
        self.inputs = tuple(t.to(self.device) for t in self._draw_inputs())
        self.module = module.to(self.device)
        self.network = network
        calibrate(self.module, self.inputs)
        self.module.train(case.training)

    def _build(self) -> tuple[nn.Module, EfficientNet | None]:
        """The module, and the network that it is or belongs to."""
        case = self.case
        if case.kind == "operator":
            assert case.shape is not None
            return OperatorModule(case.name, case.shape, self._generator), None
        network = effnet.create_model(case.name, dropout=0.0, drop_connect=0.0, fused=False)
        assert isinstance(network, EfficientNet)
        weaken_branches(network)
        if case.kind == "model":
            return network, network
        assert case.place is not None
        stage, index = case.place
        return network.get_submodule(f"stages.{stage}.{index}"), network

    def _draw_inputs(self) -> list[Tensor]:
        case = self.case
        if case.kind == "model":
            return [torch.randn(case.batch, 3, case.image, case.image, generator=self._generator)]
        assert case.shape is not None
        if case.kind == "block":
            channels = case.shape.channels // case.shape.expansion
            shapes: list[tuple[int, ...]] = [(case.batch, channels, case.image, case.image)]
        else:
            tensors = OPERATORS[case.name].tensors(case.shape, case.batch)
            shapes = [tensors[name] for name in ("x", "residual") if name in tensors]
        # What comes out of a layer before, in mixed precision, is of the lower precision.
        return [torch.randn(shape, generator=self._generator).to(case.torch_dtype) for shape in shapes]

    @property
    def input_gradients(self) -> bool:
        """Whether the inputs need gradients: not pictures."""
        return self.case.training and self.case.kind != "model"

    def autocast(self) -> AbstractContextManager[object]:
        """What a step runs under."""
        if self.case.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.case.torch_dtype)

    @cached_property
    def grad(self) -> Tensor:
        """The gradient of the output, different for every element."""
        with torch.no_grad(), self.autocast():
            # In evaluation, which leaves the running statistics alone.
            out = copy.deepcopy(self.module).eval()(*self.inputs)
        generator = torch.Generator().manual_seed(1)
        return torch.randn(out.shape, generator=generator).to(self.device, out.dtype)

    def copy(self, layout: str = "nchw") -> nn.Module:
        """The module for one side to keep, its weights in ``layout``."""
        return copy.deepcopy(self.module).to(memory_format=LAYOUTS[layout])

    def own_inputs(self, layout: str = "nchw") -> tuple[Tensor, ...]:
        """The inputs for one side to keep, in ``layout``."""
        return tuple(t.clone(memory_format=LAYOUTS[layout]).requires_grad_(self.input_gradients) for t in self.inputs)

    @cached_property
    def expected(self) -> Outcome:
        """One step of the definition in float64, on the values that the sides see."""
        module = copy.deepcopy(self.module).double()
        inputs = tuple(t.double().requires_grad_(self.input_gradients) for t in self.inputs)
        return take_step(module, inputs, self.grad.double() if self.case.training else None)


def take_step(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    grad: Tensor | None,
    names: Callable[[str], str] = lambda name: name,
    forward: Callable[..., Tensor] | None = None,
) -> Outcome:
    """One step and what it leaves; ``forward`` is called in the module's place, ``names`` translates its names."""
    call = module if forward is None else forward
    if grad is None:
        with torch.no_grad():
            return {"out": call(*inputs)}
    wanted: dict[str, Tensor] = {f"gradient of {names(name)}": p for name, p in module.named_parameters()}
    wanted |= {f"gradient of input {index}": t for index, t in enumerate(inputs) if t.requires_grad}
    out = call(*inputs)
    gradients = torch.autograd.grad(out, list(wanted.values()), grad, allow_unused=True)
    found = {name: t for name, t in zip(wanted, gradients, strict=True) if t is not None}
    statistics = {names(name): t.clone() for name, t in module.named_buffers() if t.is_floating_point()}
    return {"out": out.detach(), **found, **statistics}


def weaken_branches(network: EfficientNet) -> None:
    """Let skips carry most of what passes, as in a trained network.

    Random branches at full strength make an error larger from block to block, until in bfloat16 there is nothing left
    to compare.
    """
    for block in network.modules():
        if isinstance(block, ResidualBlock) and block.has_skip:
            norm = block.get_submodule("project.bn")
            assert isinstance(norm, nn.BatchNorm2d)
            nn.init.constant_(norm.weight, BRANCH_STRENGTH)


def calibrate(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Set running statistics to those of ``inputs``: fresh ones let activations die out from layer to layer."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            # With the inputs' negatives, since a single value per channel has no variance.
            module.train()(*(torch.cat((t, -t)).float() for t in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
