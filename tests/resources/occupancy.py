"""How many of a kernel's warps fit on one multiprocessor: the arithmetic of NVIDIA's cuda_occupancy.h."""

from dataclasses import dataclass

from effnet_kernels.plan import Device

_KIB = 1024
WARP = 32
REGISTERS = 65536
# Registers and warps belong to one of a multiprocessor's four partitions.
PARTITIONS = 4
REGISTER_UNIT = 256  # per warp
SHARED_UNIT = 128
SHARED_RESERVED = _KIB  # per block, by the driver


@dataclass(frozen=True)
class Architecture:
    """The limits of the largest GPU of an architecture."""

    number: int
    device: Device
    warps: int = 64
    blocks: int = 32

    def occupancy(self, registers: int, threads: int, shared: int) -> float:
        """The share of the multiprocessor's warps that are in use, from 0 to 1, with ``shared`` bytes a block."""
        warps = -(-threads // WARP)
        registers_of_warp = _round_up(registers * WARP, REGISTER_UNIT)
        by_registers = REGISTERS // PARTITIONS // registers_of_warp * PARTITIONS // warps
        by_shared = self.device.shared_per_multiprocessor // _round_up(shared + SHARED_RESERVED, SHARED_UNIT)
        return min(by_registers, by_shared, self.warps // warps, self.blocks) * warps / self.warps


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


ARCHITECTURES = (
    Architecture(80, Device(108, 163 * _KIB, 164 * _KIB)),
    Architecture(90, Device(132, 227 * _KIB, 228 * _KIB)),
    Architecture(100, Device(148, 227 * _KIB, 228 * _KIB)),
)
