"""Shared libraries without content, for x86-64, made without a compiler: every function returns 0."""

import struct
from collections.abc import Sequence
from pathlib import Path

LOAD, DYNAMIC, STACK = 1, 2, 0x6474E551  # kinds of segments
HASH, STRTAB, SYMTAB, STRSZ, SYMENT, SONAME = 4, 5, 6, 10, 11, 14  # tags of the dynamic section
HEAD, SEGMENT, SYMBOL, ENTRY = 64, 56, 24, 16  # bytes
RETURN_0 = b"\x31\xc0\xc3"  # xor eax, eax; ret


def write_library(path: Path, functions: Sequence[str]) -> None:
    """Write a library of the name of the file that has these functions (System V ABI, ELF-64)."""
    names = [path.name, *functions]
    text = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    at = {name: text.index(b"\0" + name.encode() + b"\0") + 1 for name in names}
    segments = 3
    code = HEAD + segments * SEGMENT
    symbols_at = -(-(code + len(RETURN_0)) // 8) * 8
    count = 1 + len(functions)
    # one bucket, and a chain through all symbols
    chain = [*(k + 1 for k in range(1, count - 1)), 0] if functions else []
    hashes = struct.pack(f"<II{1 + count}I", 1, count, min(1, len(functions)), 0, *chain)
    hash_at = symbols_at + count * SYMBOL
    text_at = hash_at + len(hashes)
    dynamic_at = -(-(text_at + len(text)) // 8) * 8
    dynamic = {HASH: hash_at, STRTAB: text_at, SYMTAB: symbols_at, STRSZ: len(text), SYMENT: SYMBOL}
    dynamic[SONAME] = at[path.name]
    table = b"".join(struct.pack("<qQ", *pair) for pair in [*dynamic.items(), (0, 0)])
    whole = dynamic_at + len(table)
    # global functions of this file, at the one piece of code
    symbols = bytes(SYMBOL) + b"".join(
        struct.pack("<IBBHQQ", at[name], 0x12, 0, 1, code, len(RETURN_0)) for name in functions
    )
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, HEAD, 0, 0, HEAD, SEGMENT, segments, 64, 0, 0
    )
    table_of_segments = [
        (LOAD, 7, 0, whole, 0x1000),
        (DYNAMIC, 6, dynamic_at, len(table), 8),
        (STACK, 6, 0, 0, 16),
    ]
    places = b"".join(
        struct.pack("<IIQQQQQQ", kind, flags, start, start, start, size, size, align)
        for kind, flags, start, size, align in table_of_segments
    )
    blob = (head + places + RETURN_0).ljust(symbols_at, b"\0") + symbols + hashes + text
    path.write_bytes(blob.ljust(dynamic_at, b"\0") + table)
