"""Blocks of tars as a hostile writer makes them, whatever they say."""


def header(name: bytes, kind: bytes, size: bytes) -> bytes:
    """Return a header of 512 bytes with a right checksum; `size` is its field as it stands."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:263] = b"ustar\0"
    return signed(block)


def signed(block: bytearray) -> bytes:
    """Return a header with its checksum computed anew."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes) -> bytes:
    """Return an extended header and its record."""
    return header(b"p", b"x", b"%o" % len(record)) + record + bytes(-len(record) % 512)
