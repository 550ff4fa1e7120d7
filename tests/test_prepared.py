"""Prepared inference weights: when they are used, and that they are never those of another moment."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import effnet
import effnet_kernels as ek
from effnet.blocks import FusedMBConv, LayerSettings, MBConv, ResidualBlock, build_block
from effnet.config import BlockConfig
from effnet.prepared import _entries
from tolerances import TOLERANCES, assert_close, relative_error

SETTINGS = LayerSettings("silu", "symmetric", 1e-3, 0.1)
OPERATORS = {f"effnet_kernels::{name}_inference" for name in ("conv", "mbconv", "network")}


@pytest.fixture(autouse=True)
def compiled_backend() -> Iterator[None]:
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")
    yield
    ek.set_backend("auto")


class Recorder(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.name().split(".")[0])
        return function(*args, **(kwargs or {}))


def draw(module: nn.Module) -> nn.Module:
    """Random statistics and affine parameters, so that nothing cancels."""
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(m.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(m.bias, 0, 0.3, generator=generator)
    return module


def block(*, stride: int = 1, squeezed: int = 3, kind: str = "mbconv") -> MBConv | FusedMBConv:
    torch.manual_seed(0)
    built = build_block(BlockConfig(kind, 3, stride, 4, 8, 8, squeezed), SETTINGS, 0.2)  # type: ignore[arg-type]
    draw(built)
    built.fused = True
    built.eval()
    return built


def image() -> Tensor:
    return torch.randn(2, 8, 9, 10, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def prepared_names(module: nn.Module, x: Tensor) -> set[str]:
    with Recorder() as recorder:
        module(x)
    return recorder.names & OPERATORS


@torch.no_grad()
def check_against_unfused(module: MBConv | FusedMBConv, x: Tensor) -> Tensor:
    fused = module(x)
    module.fused = False
    expected = module(x)
    module.fused = True
    assert_close(fused, expected, 2 * TOLERANCES[x.dtype].forward, "fused")
    return fused


class TestUse:
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("squeezed", [0, 3])
    def test_a_block_is_one_operator(self, stride: int, squeezed: int) -> None:
        built = block(stride=stride, squeezed=squeezed)
        assert prepared_names(built, image()) == {"effnet_kernels::mbconv_inference"}
        check_against_unfused(built, image())

    def test_a_fused_block_is_two_convolutions(self) -> None:
        built = block(kind="fused_mbconv", squeezed=0)
        assert prepared_names(built, image()) == {"effnet_kernels::conv_inference"}
        check_against_unfused(built, image())

    @pytest.mark.parametrize(
        "name", ["efficientnet_b0", "efficientnet_lite0", "tf_efficientnet_b1", "efficientnet_v2_s"]
    )
    def test_whole_networks(self, name: str) -> None:
        torch.manual_seed(0)
        model = draw(effnet.create_model(name, features_only=True)).eval()
        for part in model.modules():
            # At full strength forty random branches, each on top of the last, leave nothing but rounding errors.
            if isinstance(part, ResidualBlock) and part.has_skip:
                nn.init.uniform_(part.project.bn.weight, 0.1, 0.3)
        x = torch.randn(1, 3, 65, 90, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            with effnet.use_fused(True):
                fused = model(x)
            peers = [model(x.contiguous(memory_format=f)) for f in (torch.contiguous_format, torch.channels_last)]
            exact = model.double()(x.double())
        for a, *unfused, c in zip(fused, *peers, exact, strict=True):
            # PyTorch's own roundings are of another size in either layout.
            assert_close(a, c, 3 * max(relative_error(b, c) for b in unfused) + 1e-6, name)

    def test_a_classifier_follows_its_weights(self) -> None:
        torch.manual_seed(0)
        model = draw(effnet.create_model("efficientnet_b0", num_classes=37, fused=True)).eval()
        x = torch.randn(2, 3, 40, 40)
        with torch.no_grad():
            assert prepared_names(model, x) == {"effnet_kernels::network_inference"}
            before = model(x)
            assert_close(before, model.classifier(model.head(model.stages(model.stem(x))).mean((2, 3))), 1e-5, "logits")
            model.classifier.weight.mul_(2)
            model.classifier.bias.zero_()
            doubled = model(x)
            model.classifier.weight.data.mul_(0.5)
            halved = model.eval()(x)
        assert_close(doubled, 2 * halved, 1e-6, "doubled")
        assert not torch.allclose(before, doubled)

    def test_not_while_gradients_are_wanted(self) -> None:
        built, x = block(), image()
        with Recorder() as recorder:
            built(x).sum().backward()
        assert not recorder.names & OPERATORS
        assert all(p.grad is not None for p in built.parameters())
        built.requires_grad_(False)
        with Recorder() as recorder:
            built(x)
        assert recorder.names & OPERATORS
        x.requires_grad_()
        built(x).sum().backward()
        assert x.grad is not None

    def test_not_in_training_float64_or_on_the_reference_backend(self) -> None:
        built = block()
        assert not prepared_names(block().train(), image())
        assert not prepared_names(block().double(), image().double())
        ek.set_backend("reference")
        assert not prepared_names(built, image())

    def test_not_with_batch_statistics(self) -> None:
        built = block()
        built.depthwise.bn.train()
        assert "effnet_kernels::mbconv_inference" not in prepared_names(built, image())

    def test_autocast_decides_the_dtype(self) -> None:
        built = block()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert prepared_names(built, image())
            out = built(image())
        assert out.dtype == torch.bfloat16
        with torch.no_grad():
            assert_close(out, built(image()), TOLERANCES[torch.bfloat16].forward, "autocast")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_parameters(self, dtype: torch.dtype) -> None:
        built = block().to(dtype)
        assert prepared_names(built, image().to(dtype))
        with torch.no_grad():
            assert_close(
                built(image().to(dtype)), block().to(dtype).float()(image()), TOLERANCES[dtype].forward, "half"
            )
            # Activations of another dtype than the weights go the ordinary way.
            assert built(image()).dtype == torch.float32
            assert not prepared_names(built, image()) & {"effnet_kernels::mbconv_inference"}

    def test_weights_of_either_dtype_are_kept_side_by_side(self) -> None:
        built = block()
        with torch.no_grad():
            exact = built(image())
            with torch.autocast("cpu", torch.bfloat16):
                rounded = built(image())
            kept = dict(_entries[built].weights)
            assert set(kept) == {torch.float32, torch.bfloat16}
            assert torch.equal(built(image()), exact)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(built(image()), rounded)
            assert all(_entries[built].weights[dtype] is weights for dtype, weights in kept.items())
            edit_in_place(built)
            with torch.autocast("cpu", torch.bfloat16):
                assert not torch.equal(built(image()), rounded)

    def test_not_while_compiling(self) -> None:
        built = block()
        compiled = torch.compile(built, backend="eager", fullgraph=True)
        with torch.no_grad():
            assert_close(compiled(image()), built(image()), TOLERANCES[torch.float32].forward, "compiled")

    def test_hooks_are_called(self) -> None:
        for name in ("expand.conv", "depthwise", "depthwise.bn", "squeeze_excite.reduce", "project.conv"):
            built, calls = block(), []
            built(image())
            with torch.no_grad():
                built(image())
            handle = built.get_submodule(name).register_forward_hook(lambda *_arguments, calls=calls: calls.append(1))
            assert not prepared_names(built, image()) & {"effnet_kernels::mbconv_inference"}
            assert calls
            handle.remove()
            assert prepared_names(built, image()) == {"effnet_kernels::mbconv_inference"}

    def test_another_class_in_a_submodules_place(self) -> None:
        class Doubled(nn.BatchNorm2d):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        built = block()
        built.expand.bn = Doubled(32).eval()
        assert not prepared_names(built, image()) & {"effnet_kernels::mbconv_inference"}


def optimizer_step(built: MBConv) -> None:
    optimizer = torch.optim.SGD(built.parameters(), lr=0.1)
    built(image()).square().sum().backward()
    optimizer.step()


def load_other(built: MBConv) -> None:
    built.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in built.state_dict().items()})


def assign_other(built: MBConv) -> None:
    state = {k: v * 1.1 if v.is_floating_point() else v for k, v in built.state_dict().items()}
    built.load_state_dict(state, assign=True)


def edit_in_place(built: MBConv) -> None:
    with torch.no_grad():
        built.project.conv.weight.mul_(1.5)


def edit_statistics(built: MBConv) -> None:
    built.depthwise.bn.running_mean.add_(0.5)


def replace_data(built: MBConv) -> None:
    built.expand.conv.weight.data = built.expand.conv.weight.data * 1.5


def edit_through_data(built: MBConv) -> None:
    built.expand.conv.weight.data.mul_(1.5)
    built.eval()


def replace_parameter(built: MBConv) -> None:
    built.expand.bn.weight = nn.Parameter(built.expand.bn.weight.detach() * 1.5)


def replace_buffer(built: MBConv) -> None:
    built.expand.bn.running_var = built.expand.bn.running_var * 2


def change_eps(built: MBConv) -> None:
    built.project.bn.eps = 0.5


def swap_submodule(built: MBConv) -> None:
    built.depthwise.conv = copy.deepcopy(built.depthwise.conv)
    with torch.no_grad():
        built.depthwise.conv.weight.mul_(-1)


def change_gate(built: MBConv) -> None:
    built.squeeze_excite.gate = "hardsigmoid"


def remove_excitation(built: MBConv) -> None:
    built.squeeze_excite = None


def train_a_step(built: MBConv) -> None:
    built.train()
    built(image())
    built.eval()


def train_one_norm(built: MBConv) -> None:
    built.expand.bn.train()
    built(image())
    built.expand.bn.eval()


CHANGES: list[Callable[[MBConv], None]] = [
    optimizer_step,
    load_other,
    assign_other,
    edit_in_place,
    edit_statistics,
    replace_data,
    edit_through_data,
    replace_parameter,
    replace_buffer,
    change_eps,
    swap_submodule,
    change_gate,
    remove_excitation,
    train_a_step,
    train_one_norm,
]


class TestChanges:
    @pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
    def test_take_effect(self, change: Callable[[MBConv], None]) -> None:
        built = block()
        assert isinstance(built, MBConv)
        before = check_against_unfused(built, image())
        change(built)
        after = check_against_unfused(built, image())
        assert prepared_names(built, image()) == {"effnet_kernels::mbconv_inference"}
        assert not torch.allclose(before, after)

    def test_of_dtype_take_effect(self) -> None:
        built = block()
        before = check_against_unfused(built, image())
        assert_close(check_against_unfused(built.double(), image().double()), before.double(), 1e-5, "float64")
        assert_close(check_against_unfused(built.float(), image()), before, 1e-5, "float32")

    def test_of_tensors_that_do_not_count_them_take_effect(self) -> None:
        with torch.inference_mode():
            built = block()
            before = built(image())
            built.project.conv.weight.mul_(2)
            assert not torch.allclose(built(image()), before)


class TestLife:
    def test_beside_the_layer_and_not_in_it(self) -> None:
        built = block()
        names, attributes = set(built.state_dict()), set(built.__dict__)
        size = len(pickle.dumps(built))
        check_against_unfused(built, image())
        assert (set(built.state_dict()), set(built.__dict__)) == (names, attributes)
        assert len(pickle.dumps(built)) == size
        clone = copy.deepcopy(built)
        assert clone not in _entries
        edit_in_place(clone)
        assert not torch.allclose(check_against_unfused(clone, image()), check_against_unfused(built, image()))

    @pytest.mark.parametrize("end", [lambda m: m.to(torch.float64), lambda m: m.train(), lambda m: m.to("meta")])
    def test_ends_with_a_move(self, end: Callable[[nn.Module], object]) -> None:
        built = block()
        check_against_unfused(built, image())
        held = weakref.ref(_entries[built].weights[torch.float32].weights)
        buffer = weakref.ref(built.expand.bn.running_mean)
        end(built)
        gc.collect()
        assert held() is None
        assert buffer() is None or buffer() is built.expand.bn.running_mean

    def test_ends_with_the_layer(self) -> None:
        built = block()
        check_against_unfused(built, image())
        held = weakref.ref(_entries[built].weights[torch.float32].weights)
        del built
        gc.collect()
        assert held() is None
