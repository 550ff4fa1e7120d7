"""How wide a kernel's accesses to global memory are, by the argument that they go to: read from its PTX.

ptxas leaves these widths alone. In its own code they could not be told apart: there, a vector of a tensor's elements
looks like a vector of BatchNorm's constants.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_PARAMETER = re.compile(r"ld\.param\.[bu]64\s+(%rd\d+), \[\w+_param_(\d+)\]")
_DEFINITION = re.compile(r"^\s*(?:@!?%p\d+\s+)?(?!ld\.|st\.)[\w.:]+\s+(%rd\d+), (.*);", re.MULTILINE)
_ADDRESS = re.compile(r"%rd\d+")
_ACCESS = re.compile(r"\b(ld|st)\.global(\S*)\s+([^;]*);")
_VECTOR = re.compile(r"\.v(\d)\b")
_BITS = re.compile(r"\.[bfsu](\d+)\b")
_TARGET = re.compile(r"\[\s*(%rd\d+)")
# To shared memory, while the program goes on.
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\s+\[[^]]*\], \[\s*(%rd\d+)[^]]*\], (0x[0-9a-f]+|\d+)")


@dataclass
class Accesses:
    """The bytes that a thread's loads and stores move at once, by argument."""

    loads: dict[str, list[int]] = field(default_factory=dict)
    stores: dict[str, list[int]] = field(default_factory=dict)


def accesses(ptx: str, arguments: Sequence[str]) -> Accesses:
    """Of a kernel with ``arguments``, those that are constants left out.

    Raises:
        ValueError: an address is not computed from exactly one argument.
    """
    parameters = {register: int(index) for register, index in _PARAMETER.findall(ptx)}
    sources: dict[str, list[str]] = {}
    for register, operands in _DEFINITION.findall(ptx):
        sources.setdefault(register, []).extend(_ADDRESS.findall(operands))

    def argument(address: str) -> str:
        found, seen, ahead = set(), {address}, [address]
        while ahead:
            register = ahead.pop()
            if register in parameters:
                found.add(arguments[parameters[register]])
            ahead += [source for source in sources.get(register, ()) if source not in seen]
            seen.update(ahead)
        if len(found) != 1:
            raise ValueError(f"{address} is computed from {sorted(found) or 'no argument'}, expected exactly one")
        return found.pop()

    result = Accesses()
    for direction, modifiers, operands in _ACCESS.findall(ptx):
        target, bits, vector = _TARGET.search(operands), _BITS.search(modifiers), _VECTOR.search(modifiers)
        if target is None or bits is None:
            raise ValueError(f"cannot read {direction}.global{modifiers} {operands}")
        width = int(bits.group(1)) // 8 * (int(vector.group(1)) if vector else 1)
        by_argument = result.loads if direction == "ld" else result.stores
        by_argument.setdefault(argument(target.group(1)), []).append(width)
    for address, width in _COPY.findall(ptx):
        result.loads.setdefault(argument(address), []).append(int(width, 0))
    return result
