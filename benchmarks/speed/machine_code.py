"""What Triton compiles a kernel to, for an NVIDIA GPU that need not be there, by the tools in its wheel."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class MachineCode:
    """What the assembler says of one kernel on one architecture."""

    registers: int  # of a thread
    spills: int  # bytes of stack of a thread
    shared: int  # bytes of shared memory of a program, those that the driver keeps among them
    load_bits: dict[int, int]  # how many load instructions of global memory for each width in bits


def compiled(
    kernel: Any,
    pointers: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    capability: int,
) -> MachineCode:
    """Compile a kernel whose arguments are pointers (their Triton type by name) and constants.

    Pointers count as aligned to 16 bytes, as torch's allocator gives them; capability is 80, 90 or 100.
    """
    signature = {name: pointers.get(name, "constexpr") for name in kernel.arg_names}
    position = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    values = {position[name]: value for name, value in constants.items()}
    aligned = {position[name]: [["tt.divisibility", 16]] for name in pointers}
    source = ASTSource(kernel, signature, values, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        return _read(_dumped("-res-usage", file.name), _dumped("-sass", file.name))


def _dumped(what: str, file: str) -> str:
    return subprocess.run([CUOBJDUMP, what, file], capture_output=True, text=True, check=True).stdout


def _read(usage: str, sass: str) -> MachineCode:
    """Read cuobjdump's two listings; a figure that is absent is an error, never a zero."""
    registers, stack, shared = (
        int(re.findall(rf"\b{name}:(\d+)", usage)[0]) for name in ("REG", "STACK", "SHARED")
    )
    loads = re.findall(r"\bLDG\.E((?:\.\w+)*)", sass)
    if not loads:
        raise ValueError("no load of global memory was found in the disassembly")
    widths = [_bits(suffix) for suffix in loads]
    return MachineCode(
        registers, stack, shared, {width: widths.count(width) for width in sorted(set(widths))}
    )


def _bits(suffix: str) -> int:
    """Read a load's width from its suffixes: .128, .64, .U16, .S8; a plain load has 32 bits."""
    found = re.findall(r"\.[US]?(\d+)\b", suffix)
    return int(found[-1]) if found else 32
