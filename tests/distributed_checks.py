"""What tests/test_distributed.py runs in every process of a group: SyncBatchNorm, DDP and FSDP against one process.

A check is a function of a :class:`Member`. All of them run in one start of the processes, which costs more than they
do; every check computes the whole batch by itself, in plain PyTorch, and compares its own part.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import effnet
import effnet_kernels
import effnet_kernels.nn as knn
from effnet.config import Stage, find_variant
from tolerances import TOLERANCES, assert_close

CHANNELS = 6
BATCHES = {2: ((3, 2), (1, 4), (0, 3)), 4: ((2, 1, 3, 2), (1, 0, 2, 4))}
"""Images per process: uneven, one image (one value per channel where the map is one pixel), and none."""


class Member(NamedTuple):
    """One process of the group."""

    rank: int
    size: int

    def part(self, whole: Tensor, images: Sequence[int]) -> Tensor:
        """This process's images of ``whole``."""
        end = list(accumulate(images))[self.rank]
        return whole[end - images[self.rank] : end]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype) + 0.3


def whole_batch(
    images: Sequence[int], channels: int, size: int, dtype: torch.dtype, layout: torch.memory_format
) -> Tensor:
    return draw(sum(images), channels, size, size, seed=1, dtype=dtype).contiguous(memory_format=layout)


class Layers(nn.Module):
    """The modules that the operators are called on, without a forward of their own."""

    def __init__(self, dtype: torch.dtype, seed: int = 5, **norm: Any) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.expand = nn.Conv2d(4, CHANNELS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS, **norm)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, groups=CHANNELS, bias=False)
        self.bn2 = nn.BatchNorm2d(CHANNELS, **norm)
        self.se = knn.SqueezeExcite2d(CHANNELS, 2)
        self.project = nn.Conv2d(CHANNELS, 5, 1, bias=False)
        # Activations far from linear: after a linear one BN2 would undo a shift by BN1, whose gradient would cancel.
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, 2.0 if name.startswith("bn") and name.endswith("weight") else 0.0, 0.5)
        self.to(dtype)


Computes = Callable[[Layers, Tensor, bool], Tensor]
PADDING = (0, 1, 0, 1)


def norm_and_act(m: Layers, x: Tensor, fused: bool) -> Tensor:
    return knn.batch_norm_act(x, m.bn1, "silu", residual=x, fused=fused)


def kept(m: Layers, x: Tensor, fused: bool) -> Tensor:
    """Drop-connect that keeps every image, which every part of the batch draws alike."""
    return knn.batch_norm_act(x, m.bn1, "identity", x.new_full((len(x),), 1.25), fused=fused)


def depthwise(m: Layers, x: Tensor, fused: bool) -> Tensor:
    return knn.mbconv_core(x, m.conv, m.bn2, padding=PADDING, activation="relu6", fused=fused)


def core(m: Layers, x: Tensor, fused: bool) -> Tensor:
    return knn.mbconv_core(x, m.conv, m.bn2, bn1=m.bn1, padding=PADDING, activation="silu", fused=fused)


def excited_core(m: Layers, x: Tensor, fused: bool) -> Tensor:
    return knn.mbconv_core(x, m.conv, m.bn2, bn1=m.bn1, se=m.se, padding=1, activation="hardswish", fused=fused)


def block(m: Layers, x: Tensor, fused: bool) -> Tensor:
    """mbconv, which is fused alone: the modules' definition is what the other side computes."""
    if fused:
        return knn.mbconv(
            x, m.conv, m.bn2, m.project, expand=m.expand, bn1=m.bn1, se=m.se, padding=PADDING, activation="silu"
        )
    u = m.expand(x)
    out = knn.mbconv_core(u, m.conv, m.bn2, bn1=m.bn1, se=m.se, padding=PADDING, activation="silu", fused=False)
    return m.project(out)


def frozen_bn1(m: Layers, x: Tensor, fused: bool) -> Tensor:
    m.bn1.eval()
    return excited_core(m, x, fused)


def frozen_bn2(m: Layers, x: Tensor, fused: bool) -> Tensor:
    m.bn2.eval()
    return excited_core(m, x, fused)


COMPUTED: dict[str, Computes] = {
    f.__name__: f for f in (norm_and_act, kept, depthwise, core, excited_core, block, frozen_bn1, frozen_bn2)
}
NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative": {"momentum": None},
    "no_affine": {"affine": False},
    "not_tracking": {"track_running_stats": False},
}
CONVERSIONS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ours": knn.sync_batchnorm,
    "torch": nn.SyncBatchNorm.convert_sync_batchnorm,
}


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def compare(
    member: Member,
    compute: Computes,
    *,
    images: Sequence[int],
    norm: dict[str, Any],
    convert: Callable[[nn.Module], nn.Module] = knn.sync_batchnorm,
    fused: bool = True,
    dtype: torch.dtype = torch.float64,
    layout: torch.memory_format = torch.channels_last,
    size: int = 7,
) -> None:
    """Two steps of ``compute`` on parts of batches, against the whole batches in one process in plain PyTorch."""
    bounds = TOLERANCES[dtype]
    ours, peer = convert(Layers(dtype, **norm)), Layers(torch.float64, **norm)
    peer.load_state_dict(ours.state_dict())
    channels = 4 if compute is block else CHANNELS
    for step in range(2):
        whole = whole_batch(images, channels, size, dtype, layout) * (step + 1)
        x = member.part(whole, images).clone(memory_format=torch.preserve_format).requires_grad_()
        wide = whole.double().requires_grad_()
        out, expected = compute(ours, x, fused), compute(peer, wide, False)
        weights = draw(*expected.shape, seed=9, dtype=dtype)
        out.backward(member.part(weights, images))
        expected.backward(weights.double())
        assert x.grad is not None and wide.grad is not None
        for t in (out, x.grad):
            assert t.numel() == 0 or t.is_contiguous(memory_format=layout)
        assert_close(out, member.part(expected, images), bounds.forward, "out")
        assert_close(x.grad, member.part(wide.grad, images), bounds.gradient, "gradient of x")
    peer_gradients = gradients(peer)
    for name, gradient in gradients(ours).items():
        summed = gradient.double()
        dist.all_reduce(summed)
        assert_close(summed, peer_gradients[name], bounds.gradient, f"gradient of {name}")
    for name, buffer in peer.named_buffers():
        assert_close(ours.get_buffer(name), buffer, bounds.forward, name)


TINY = replace(
    find_variant("efficientnet_b0"),
    name="tiny",
    stages=(Stage("mbconv", 3, 1, 1, 8, 1), Stage("mbconv", 5, 2, 4, 8, 2), Stage("fused_mbconv", 3, 2, 2, 8, 1)),
    stem_channels=8,
    head_channels=16,
    dropout=0.0,
    drop_connect=0.0,
)
CLASSES = 5


def tiny_network(*, fused: bool) -> nn.Module:
    torch.manual_seed(3)
    return effnet.create_model(TINY, num_classes=CLASSES, fused=fused).double()


def full(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def train_network(member: Member, wrap: Callable[[nn.Module], nn.Module], *, fused: bool) -> None:
    """Steps over even, uneven and partly empty batches: what one process comes to with the whole batches."""
    bounds = TOLERANCES[torch.float64]
    peer = tiny_network(fused=False)
    network = wrap(effnet.sync_batchnorm(tiny_network(fused=fused)))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (network, peer)]
    for step, images in enumerate(((2,) * member.size, *BATCHES[member.size])):
        whole = draw(sum(images), 3, 32, 32, seed=step)
        labels = torch.arange(len(whole)) % CLASSES
        for optimizer in optimizers:
            optimizer.zero_grad()
        logits, expected = network(member.part(whole, images)), peer(whole)
        assert_close(logits, member.part(expected, images), bounds.gradient, f"logits of step {step}")
        loss = nn.functional.cross_entropy(logits, member.part(labels, images), reduction="sum")
        # Gradients are averaged over the processes.
        (loss * (member.size / len(whole))).backward()
        nn.functional.cross_entropy(expected, labels).backward()
        found = {name.removeprefix("module."): full(g) for name, g in gradients(network).items()}
        wanted = gradients(peer)
        assert found.keys() == wanted.keys()
        error = sum(float((found[n] - wanted[n]).square().sum()) for n in wanted) ** 0.5
        size = sum(float(g.square().sum()) for g in wanted.values()) ** 0.5
        assert error <= bounds.gradient * size, f"gradient of step {step}: relative error {error / size:.1e}"
        for optimizer in optimizers:
            optimizer.step()
    norms = [[m for m in of.modules() if isinstance(m, nn.BatchNorm2d)] for of in (network, peer)]
    for bn, expected_bn in zip(*norms, strict=True):
        # Means that are zero but for rounding have to be close beside the deviation.
        assert_close(statistics(bn), statistics(expected_bn), bounds.gradient, "running statistics")
        assert int(bn.num_batches_tracked) == int(expected_bn.num_batches_tracked)


def statistics(bn: nn.BatchNorm2d) -> Tensor:
    assert bn.running_mean is not None and bn.running_var is not None
    return torch.cat((bn.running_mean, bn.running_var.sqrt()))


def sharded(network: nn.Module) -> nn.Module:
    """Blocks and the rest in shards of their own."""
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for stage in network.stages:
        for layer in stage:
            fully_shard(layer, mesh=mesh)
    return fully_shard(network, mesh=mesh)


def evaluation_is_each_processes_own(member: Member) -> None:
    """Constant statistics need no other process: the ranks see different numbers of batches."""
    network = effnet.sync_batchnorm(tiny_network(fused=True)).eval()
    expected = tiny_network(fused=False).eval()
    for step in range(member.rank):
        x = draw(1, 3, 32, 32, seed=step)
        assert_close(network(x), expected(x), TOLERANCES[torch.float64].gradient, "logits")


def a_group_of_its_own(member: Member) -> None:
    """Statistics are those of the group's processes: halves of the processes, on different pictures."""
    half = member.size // 2
    groups = [dist.new_group(list(range(first, first + half))) for first in (0, half)]
    mine = member.rank // half
    layers, peer = Layers(torch.float64), Layers(torch.float64)
    knn.sync_batchnorm(layers, groups[mine])
    whole = draw(2 * half, CHANNELS, 5, 5, seed=mine)
    local = member.rank % half
    out = excited_core(layers, whole[2 * local : 2 * local + 2], True)
    expected = excited_core(peer, whole, False)[2 * local : 2 * local + 2]
    assert_close(out, expected, TOLERANCES[torch.float64].forward, "out")


def modules(member: Member) -> None:
    """The converted modules' own forward, in the state dict's names and the gradient."""
    images = BATCHES[member.size][0]
    whole = whole_batch(images, CHANNELS, 5, torch.float32, torch.contiguous_format)
    for made in (nn.BatchNorm2d(CHANNELS), knn.BatchNormAct2d(CHANNELS, activation="relu6")):
        peer = nn.BatchNorm2d(CHANNELS).double()
        act = nn.functional.relu6 if isinstance(made, knn.BatchNormAct2d) else nn.Identity()
        converted = effnet.sync_batchnorm(made)
        assert converted is made and converted.state_dict().keys() == peer.state_dict().keys()
        out, expected = converted(member.part(whole, images)), act(peer(whole.double()))
        assert_close(out, member.part(expected, images), TOLERANCES[torch.float32].forward, "out")
        assert_close(made.running_var, peer.running_var, TOLERANCES[torch.float32].forward, "running_var")


def large_mean(member: Member) -> None:
    """Moments are merged: a mean of 100 deviations leaves float32's accuracy, where E[x²] − E[x]² would lose half."""
    images = BATCHES[member.size][0]
    whole = (draw(sum(images), CHANNELS, 7, 7, seed=2) + 100).float()
    bn = knn.sync_batchnorm(nn.BatchNorm2d(CHANNELS, momentum=1.0))
    bn(member.part(whole, images))
    flat = whole.double().transpose(0, 1).flatten(1)
    assert_close(bn.running_var, flat.var(1), TOLERANCES[torch.float32].forward, "running_var")


def same_bits_everywhere(member: Member) -> None:
    """Every process arrives at the same statistics and the same gradient of them, to the last bit, every time."""
    images = BATCHES[member.size][0]
    results = []
    for _ in range(2):
        layers = knn.sync_batchnorm(Layers(torch.float32))
        x = member.part(whole_batch(images, CHANNELS, 9, torch.float32, torch.channels_last), images).requires_grad_()
        excited_core(layers, x, True).square().sum().backward()
        results.append((x.grad, *layers.buffers()))
    for first, second in zip(*results, strict=True):
        assert first is not None and torch.equal(first, second)
    for buffer in layers.buffers():
        others = [torch.empty_like(buffer) for _ in range(member.size)]
        dist.all_gather(others, buffer)
        assert all(torch.equal(buffer, other) for other in others)


def kept_bytes(compute: Computes, layers: Layers, x: Tensor) -> int:
    """Of what autograd keeps for backward, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in (*layers.parameters(), *layers.buffers())}
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        compute(layers, x, True).sum().backward()
    return sum(kept.values())


def keeps_what_the_operators_keep(member: Member) -> None:
    """Nothing of activation size more than u, y and what SE is given, whatever is recomputed for it."""
    x = draw(2, CHANNELS, 64, 64, seed=0, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    for compute in (norm_and_act, depthwise, core, excited_core):
        sizes = [
            kept_bytes(compute, convert(Layers(torch.float32)), x.clone().requires_grad_())
            for convert in (knn.sync_batchnorm, lambda layers: layers)
        ]
        assert sizes[0] <= 1.05 * sizes[1], f"{compute.__name__}: {sizes[0]} bytes, without synchronising {sizes[1]}"


def triton_kernels(member: Member) -> None:
    """The same composition of Triton's operators, in its interpreter."""
    effnet_kernels.set_backend("triton")
    try:
        compare(member, excited_core, images=BATCHES[member.size][0], norm={}, dtype=torch.float32)
    finally:
        effnet_kernels.set_backend("auto")


def autocast_is_followed(member: Member) -> None:
    images = BATCHES[member.size][0]
    layers, peer = knn.sync_batchnorm(Layers(torch.float32)), Layers(torch.float64)
    whole = whole_batch(images, CHANNELS, 8, torch.bfloat16, torch.channels_last).float()
    x, wide = member.part(whole, images).requires_grad_(), whole.double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = excited_core(layers, x, True)
    expected = excited_core(peer, wide, False)
    assert out.dtype == torch.bfloat16
    bounds = TOLERANCES[torch.bfloat16]
    assert_close(out, member.part(expected, images), bounds.forward, "out")
    weights = draw(*expected.shape, seed=4, dtype=torch.bfloat16)
    out.backward(member.part(weights, images)), expected.backward(weights.double())
    assert x.grad is not None and wide.grad is not None and x.grad.dtype == torch.float32
    assert_close(x.grad, member.part(wide.grad, images), bounds.gradient, "gradient of x")


Check = Callable[[Member], None]


def computed(*arguments: Any, **keywords: Any) -> Check:
    def check(member: Member) -> None:
        for images in BATCHES[member.size]:
            compare(member, *arguments, images=images, **keywords)

    return check


def checks(size: int) -> dict[str, Check]:
    """The checks for ``size`` processes by name, in the order in which all of them run them."""
    return checks_of_two() if size == 2 else checks_of_four()


def checks_of_four() -> dict[str, Check]:
    """What more processes may change, and one network each way."""
    found: dict[str, Check] = {f.__name__: computed(f, norm={}) for f in (norm_and_act, depthwise, excited_core, block)}
    found |= {check.__name__: check for check in (a_group_of_its_own, large_mean, same_bits_everywhere)}
    found["ddp"] = lambda member: train_network(member, DistributedDataParallel, fused=True)
    found["fsdp"] = lambda member: train_network(member, sharded, fused=True)
    return found


def checks_of_two() -> dict[str, Check]:
    found: dict[str, Check] = {}
    for name, compute in COMPUTED.items():
        for fused in (True, False):
            side = "fused" if fused else "unfused"
            found[f"{name}-{side}"] = computed(compute, norm={}, fused=fused)
        found[f"{name}-nchw"] = computed(compute, norm={}, layout=torch.contiguous_format)
        found[f"{name}-float32"] = computed(compute, norm={}, dtype=torch.float32)
    for setting in ("cumulative", "no_affine", "not_tracking"):
        for fused in (True, False):
            side = "fused" if fused else "unfused"
            found[f"{setting}-{side}"] = computed(excited_core, norm=NORMS[setting], fused=fused)
    found["torch's conversion"] = computed(block, norm={}, convert=CONVERSIONS["torch"])
    found["one pixel"] = computed(norm_and_act, norm={}, size=1)
    for plain in (
        evaluation_is_each_processes_own,
        a_group_of_its_own,
        modules,
        large_mean,
        same_bits_everywhere,
        autocast_is_followed,
        keeps_what_the_operators_keep,
        triton_kernels,
    ):
        found[plain.__name__] = plain
    for fused in (True, False):
        side = "fused" if fused else "unfused"
        found[f"ddp-{side}"] = lambda m, fused=fused: train_network(m, DistributedDataParallel, fused=fused)
        found[f"fsdp-{side}"] = lambda m, fused=fused: train_network(m, sharded, fused=fused)
    return found


def run_checks(rank: int, size: int, folder: str) -> None:
    """Run every check as process ``rank`` of ``size``, and write what failed where it failed first, if it did."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(Path(folder) / "meeting").as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    outcomes = {}
    for name, check in checks(size).items():
        failure = ""
        try:
            check(Member(rank, size))
        except Exception:
            failure = traceback.format_exc()
        outcomes[name] = failure
        failures: list[str] = [""] * size
        dist.all_gather_object(failures, failure)
        if any(failures):
            outcomes[name] = "\n".join(f"process {r}: {f}" for r, f in enumerate(failures) if f)
    torch.save(outcomes, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
