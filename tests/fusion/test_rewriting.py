"""Fusing and what may happen to a fused model after that: undone, copied, saved, switched, changed, compiled."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import timm.layers
import torch
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual, SqueezeExcite
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torchvision.models import mobilenetv2

import effnet
import effnet_kernels as ek
from effnet.fusion.timm_models import FusedInvertedResidual
from fusion.networks import check_same, drawn, images, run, unfused_copy
from operators.recording import Recorder
from processes import run_python
from tolerances import TOLERANCES, assert_close

BOUND = TOLERANCES[torch.float64].forward


def blocks() -> nn.Sequential:
    """A stem and MBConv blocks without and with expansion, of timm."""
    torch.manual_seed(0)
    settings = {"act_layer": nn.SiLU, "se_layer": SqueezeExcite}
    return nn.Sequential(
        timm.layers.ConvNormAct(3, 8, 3, stride=2, act_layer=nn.SiLU),
        DepthwiseSeparableConv(8, 8, **settings),
        InvertedResidual(8, 12, 5, stride=2, exp_ratio=2.0, pad_type="same", **settings),
        InvertedResidual(12, 12, exp_ratio=2.0, drop_path_rate=0.3, **settings),
    )


@pytest.fixture
def model() -> nn.Module:
    return drawn(blocks())


@pytest.fixture
def x() -> Tensor:
    return images(4, 3, 15, 18)


def types(model: nn.Module) -> list[type[nn.Module]]:
    return [type(module) for module in model.modules()]


def check_against(model: nn.Module, peer: nn.Module, x: Tensor) -> None:
    check_same(run(model, x), run(peer, x))


def operators(model: nn.Module, x: Tensor) -> set[str]:
    """The compiled operators that a training step of ``model`` goes through."""
    if ek.backends()["cpu"] is not None:
        pytest.skip(f"no cpu backend: {ek.backends()['cpu']}")
    with Recorder() as recorder:
        run(model, x)
    return {name for name, _ in recorder.calls}


class TestUndoing:
    def test_unfuse_restores_every_class_and_every_bit(self, model: nn.Module, x: Tensor) -> None:
        before = types(model)
        expected = run(copy.deepcopy(model), x)
        effnet.fuse(model)
        assert types(model) != before
        effnet.unfuse(model)
        assert types(model) == before
        for name, t in run(model, x).items():
            assert torch.equal(t, expected[name]), name

    def test_a_fused_module_is_still_one_of_its_class(self, model: nn.Module) -> None:
        before = types(model)
        effnet.fuse(model)
        assert all(issubclass(now, then) for now, then in zip(types(model), before, strict=True))

    def test_fusing_again_changes_nothing(self, model: nn.Module) -> None:
        report = effnet.fuse(model)
        now = types(model)
        assert effnet.fuse(model) == report
        assert types(model) == now

    def test_unfuse_leaves_what_is_not_fused(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2))
        effnet.unfuse(model)
        assert types(model) == [nn.Sequential, nn.Linear]

    @pytest.mark.parametrize("function", [effnet.fuse, effnet.unfuse])
    @pytest.mark.parametrize("value", [None, "efficientnet_b0", nn.Linear])
    def test_only_modules(self, function: object, value: object) -> None:
        with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got "):
            function(value)  # type: ignore[operator]

    def test_the_root_may_be_a_block_itself(self) -> None:
        block = drawn(InvertedResidual(8, 8, act_layer=nn.SiLU))
        peer = unfused_copy(block)
        report = effnet.fuse(block)
        assert type(block) is FusedInvertedResidual
        assert [pattern.operator for pattern in report.fused] == ["mbconv", "batch_norm_act"]
        assert report.fused[0].modules == ("conv_pw", "bn1", "bn1.act", "conv_dw", "bn2", "bn2.act", "conv_pwl")
        check_against(block, peer, images(2, 8, 7, 6))


class TestCopies:
    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_copies_are_fused_and_their_own(self, model: nn.Module, x: Tensor, how: str) -> None:
        effnet.fuse(model)
        copied = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        assert types(copied) == types(model)
        assert not {id(p) for p in copied.parameters()} & {id(p) for p in model.parameters()}
        check_against(copied, model, x)

    def test_state_dicts_go_both_ways(self, model: nn.Module, x: Tensor) -> None:
        other = blocks().double()
        other.load_state_dict(model.state_dict())
        effnet.fuse(model)
        model.load_state_dict(other.state_dict())
        other.load_state_dict(model.state_dict())
        check_against(model, other, x)

    def test_a_saved_model_loads_where_no_library_is_imported(
        self, model: nn.Module, x: Tensor, tmp_path: Path
    ) -> None:
        """Importing effnet and fusing loads no library; what a saved model needs is loaded with it."""
        effnet.fuse(model)
        torch.save(model.eval(), tmp_path / "model.pt")
        torch.save(x, tmp_path / "x.pt")
        program = (
            "import sys, torch, effnet\n"
            "effnet.fuse(torch.nn.Sequential(torch.nn.Linear(2, 2)))\n"
            "assert not {'timm', 'torchvision', 'efficientnet_pytorch'} & set(sys.modules)\n"
            f"model = torch.load({str(tmp_path / 'model.pt')!r}, weights_only=False)\n"
            f"torch.save(model(torch.load({str(tmp_path / 'x.pt')!r})), {str(tmp_path / 'out.pt')!r})\n"
        )
        result = run_python(program, tmp_path)
        assert result.returncode == 0, result.stderr
        assert_close(torch.load(tmp_path / "out.pt"), model(x), BOUND, "out")


class TestSwitch:
    def test_use_fused_false_runs_the_original_forward(self, model: nn.Module, x: Tensor) -> None:
        expected = run(copy.deepcopy(model), x)
        assert operators(copy.deepcopy(model), x) == set()
        effnet.fuse(model)
        with effnet.use_fused(False):
            found = run(model, x)
            assert operators(model, x) == set()
        assert all(torch.equal(found[name], t) for name, t in expected.items())

    @pytest.fixture
    def never_set(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(effnet, "fused", False)
        monkeypatch.setattr(effnet, "_fused_is_set", False)
        return

    @pytest.mark.usefixtures("never_set")
    def test_fused_until_told_otherwise(self, model: nn.Module, x: Tensor) -> None:
        """``effnet.fused`` is False by itself, for this package's networks; what was fused explicitly runs fused."""
        effnet.fuse(model)
        assert effnet.fused is False and operators(model, x) != set()
        with effnet.use_fused(False):
            assert operators(model, x) == set()
        assert operators(model, x) != set()
        effnet.fused = False
        assert operators(model, x) == set()
        effnet.fused = True
        assert operators(model, x) != set()


class TestChanges:
    """A fused forward reads its modules at every call."""

    @pytest.mark.parametrize("frozen", ["bn1", "bn2", "bn3", "all"])
    def test_norms_frozen_while_training(self, model: nn.Module, x: Tensor, frozen: str) -> None:
        effnet.fuse(model)
        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm2d) and (frozen == "all" or name.endswith(frozen)):
                module.eval()
                module.weight.requires_grad_(False)
                module.momentum = None
        peer = copy.deepcopy(model)
        effnet.unfuse(peer)
        check_against(model, peer, x)

    def test_replaced_modules(self, model: nn.Module, x: Tensor) -> None:
        effnet.fuse(model)
        block = model[3]
        block.bn2.act = nn.GELU()
        block.se.gate = nn.Tanh()
        block.conv_dw.dilation, block.conv_dw.padding = (2, 2), (2, 2)
        model[1].has_skip = False
        model[2].conv_pw.forward = lambda u: torch.cat([u, u.flip(2)], 1)
        peer = copy.deepcopy(model)
        effnet.unfuse(peer)
        torch.manual_seed(0)
        expected = peer(x)
        torch.manual_seed(0)
        assert_close(model(x), expected, BOUND, "out")
        assert {left.reason for left in effnet.fuse(model).left} == {"dilation (2, 2)", "activation GELU", "gate Tanh"}

    def test_emptied_containers(self) -> None:
        """A block whose layers were taken out adds its input to itself, as before."""
        made = mobilenetv2.InvertedResidual(8, 8, 1, 2)
        effnet.fuse(made)
        made.conv = nn.Identity()
        x = images(2, 8, 4, 4)
        assert torch.equal(made(x), 2 * x)

    def test_a_subclass_made_of_a_fused_class(self, model: nn.Module, x: Tensor) -> None:
        """Sharding and parametrisation put a class of their own over a module's."""
        peer = unfused_copy(model)
        effnet.fuse(model)
        for module in model.modules():
            module.__class__ = type(f"Sharded{type(module).__name__}", (type(module),), {})
        check_against(model, peer, x)

    def test_shared_modules_and_parameters(self, x: Tensor) -> None:
        model = blocks()
        first, second = InvertedResidual(12, 12, exp_ratio=2.0), InvertedResidual(12, 12, exp_ratio=2.0)
        first.bn2 = first.bn1
        second.bn3, second.conv_dw.weight = first.bn3, first.conv_dw.weight
        model = drawn(nn.Sequential(model, first, second, first))
        peer = unfused_copy(model)
        effnet.fuse(model)
        check_against(model, peer, x)

    def test_one_activation_in_several_places(self) -> None:
        relu = nn.ReLU(inplace=True)
        convs = [nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False) for groups in (1, 8, 8)]
        model = drawn(nn.Sequential(*[m for conv in convs for m in (conv, nn.BatchNorm2d(8), relu)]))
        peer = unfused_copy(model)
        assert effnet.fuse(model).counts() == {"mbconv_core": 1, "depthwise_conv_bn_act": 1}
        check_against(model, peer, images(2, 8, 6, 5))

    def test_norms_without_statistics_or_parameters(self) -> None:
        norms = [nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8, track_running_stats=False, momentum=None)]
        layers = [m for norm in norms for m in (nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), norm, nn.ReLU6())]
        model = nn.Sequential(*layers).double()
        peer = unfused_copy(model)
        assert effnet.fuse(model).counts() == {"depthwise_conv_bn_act": 2}
        for training in (True, False):
            model.train(training), peer.train(training)
            check_against(model, peer, images(2, 8, 9, 9))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class TestTools:
    """What PyTorch offers beside a plain training step."""

    @pytest.mark.parametrize("name", ["2.conv_dw", "2.bn1", "3.se.conv_reduce", "3"])
    def test_parametrised_after_fusing(self, model: nn.Module, x: Tensor, name: str) -> None:
        peer = unfused_copy(model)
        effnet.fuse(model)
        for network in (model, peer):
            module = network.get_submodule(name)
            weight = "weight" if hasattr(module, "weight") else "scale"
            if weight == "scale":
                module.register_parameter(weight, nn.Parameter(torch.ones(2, dtype=x.dtype)))
            parametrize.register_parametrization(module, weight, Doubled())
        check_against(model, peer, x)
        effnet.fuse(model)
        check_against(model, peer, x)

    def test_functional_call(self, model: nn.Module, x: Tensor) -> None:
        peer = unfused_copy(model)
        effnet.fuse(model)
        other = {name: p.detach() * 0.9 for name, p in model.named_parameters()}
        model.eval(), peer.eval()
        expected = torch.func.functional_call(peer, other, (x,))
        assert_close(torch.func.functional_call(model, other, (x,)), expected, BOUND, "out")

    def test_transforms_run_the_original_forward(self, model: nn.Module, x: Tensor) -> None:
        peer = unfused_copy(model)
        effnet.fuse(model)
        model.eval(), peer.eval()
        out, tangent = torch.func.jvp(model, (x,), (x,))
        expected, expected_tangent = torch.func.jvp(peer, (x,), (x,))
        assert torch.equal(out, expected) and torch.equal(tangent, expected_tangent)
        each = torch.func.vmap(lambda image: model(image[None]))(x)
        assert_close(each[:, 0], expected, BOUND, "each image")

    def test_no_second_derivative(self, model: nn.Module, x: Tensor) -> None:
        effnet.fuse(model)
        x.requires_grad_()
        if operators(model, x):
            (gradient,) = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
            with pytest.raises(RuntimeError, match="has no second derivative"):
                gradient.sum().backward()

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_torchscript_after_unfusing(self, model: nn.Module, x: Tensor) -> None:
        model.eval()
        expected = model(x)
        effnet.fuse(model)
        effnet.unfuse(model)
        assert_close(torch.jit.script(model)(x), expected, BOUND, "out")

    def test_export_records_the_operators(self, model: nn.Module, x: Tensor) -> None:
        model.eval()
        expected = model(x)
        effnet.fuse(model)
        exported = torch.export.export(model, (x,))
        assert_close(exported.module()(x), expected, BOUND, "out")
        if ek.backends()["cpu"] is None:
            assert any("effnet_kernels" in str(node.target) for node in exported.graph.nodes)


class TestDtypes:
    def test_autocast(self, model: nn.Module) -> None:
        """Outputs have the dtype that they had, and are as near to the exact ones."""
        model, x = model.float(), images(4, 3, 15, 18).float()
        for block in model[1:]:
            block.drop_path = nn.Identity()
        exact = copy.deepcopy(model).double()
        peer = copy.deepcopy(model)
        effnet.fuse(model)
        expected = exact(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            out, unfused = model(x), peer(x)
        assert out.dtype == unfused.dtype == torch.bfloat16
        error = (unfused.double() - expected).norm()
        assert (out.double() - expected).norm() < 1.5 * error

    def test_what_autocast_leaves_in_float32_stays_that(self) -> None:
        """BatchNorm is none of autocast's operators; squeeze-and-excite multiplies its input as it is."""
        x = images(2, 8, 4, 4).float()
        for made in (timm.layers.BatchNormAct2d(8), SqueezeExcite(8)):
            peer = copy.deepcopy(made)
            effnet.fuse(made)
            with torch.autocast("cpu", torch.bfloat16):
                out, expected = made(x), peer(x)
            assert out.dtype == expected.dtype == torch.float32
            assert torch.equal(out, expected)

    def test_models_in_half_precision(self, model: nn.Module) -> None:
        """BatchNorms in half precision are called."""
        model = model.bfloat16().eval()
        peer = copy.deepcopy(model)
        effnet.fuse(model)
        x = images(2, 3, 15, 18).bfloat16()
        with torch.no_grad():
            assert_close(model(x), peer(x), TOLERANCES[torch.bfloat16].forward, "out")

    def test_a_wrong_dtype_is_refused_as_before(self, model: nn.Module, x: Tensor) -> None:
        peer = copy.deepcopy(model)
        effnet.fuse(model)
        for network in (peer, model):
            with pytest.raises(RuntimeError, match=r"expected scalar type|should be the same"):
                network(x.float())


@pytest.mark.parametrize("training", [True, False], ids=("training", "evaluation"))
def test_compile(training: bool) -> None:
    """One graph, with the operators in it."""
    model, x = drawn(blocks()[1:3]), images(2, 8, 7, 8)
    effnet.fuse(model)
    model.train(training)
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True, backend="aot_eager")
    check_same(run(compiled, x), run(model, x))
