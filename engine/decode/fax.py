"""Bits of facsimiles (ITU-T T.4, T.6) in TIFF: Modified Huffman, Group 3 of one or two dimensions, Group 4.

libtiff paints what it can of a damaged line, and says nothing of a Group 4 picture that ends early. This
reader takes only lines that are as long as the picture is wide. Single damaged lines of Group 3 in one
dimension, whose ends are marked, harm no other: they are taken as far as they can be read, and named.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

_WHITE = """
00110101 000111 0111 1000 1011 1100 1110 1111 10011 10100 00111 01000 001000 000011 110100 110101 101010
101011 0100111 0001100 0001000 0010111 0000011 0000100 0101000 0101011 0010011 0100100 0011000 00000010
00000011 00011010 00011011 00010010 00010011 00010100 00010101 00010110 00010111 00101000 00101001
00101010 00101011 00101100 00101101 00000100 00000101 00001010 00001011 01010010 01010011 01010100
01010101 00100100 00100101 01011000 01011001 01011010 01011011 01001010 01001011 00110010 00110011
00110100 11011 10010 010111 0110111 00110110 00110111 01100100 01100101 01101000 01100111 011001100
011001101 011010010 011010011 011010100 011010101 011010110 011010111 011011000 011011001 011011010
011011011 010011000 010011001 010011010 011000 010011011
""".split()  # noqa: SIM905
_BLACK = """
0000110111 010 11 10 011 0011 0010 00011 000101 000100 0000100 0000101 0000111 00000100 00000111 000011000
0000010111 0000011000 0000001000 00001100111 00001101000 00001101100 00000110111 00000101000 00000010111
00000011000 000011001010 000011001011 000011001100 000011001101 000001101000 000001101001 000001101010
000001101011 000011010010 000011010011 000011010100 000011010101 000011010110 000011010111 000001101100
000001101101 000011011010 000011011011 000001010100 000001010101 000001010110 000001010111 000001100100
000001100101 000001010010 000001010011 000000100100 000000110111 000000111000 000000100111 000000101000
000001011000 000001011001 000000101011 000000101100 000001011010 000001100110 000001100111 0000001111
000011001000 000011001001 000001011011 000000110011 000000110100 000000110101 0000001101100 0000001101101
0000001001010 0000001001011 0000001001100 0000001001101 0000001110010 0000001110011 0000001110100
0000001110101 0000001110110 0000001110111 0000001010010 0000001010011 0000001010100 0000001010101
0000001011010 0000001011011 0000001100100 0000001100101
""".split()  # noqa: SIM905
_LONG = """
00000001000 00000001100 00000001101 000000010010 000000010011 000000010100 000000010101 000000010110
000000010111 000000011100 000000011101 000000011110 000000011111
""".split()  # noqa: SIM905 - 1792 and more, of both colors
_PASS, _ACROSS = 100, 101  # modes; others are distances of two changes
_MODES = {
    "0001": _PASS, "001": _ACROSS, "1": 0, "011": 1, "000011": 2, "0000011": 3, "010": -1, "000010": -2,
    "0000010": -3,
}  # fmt: skip
_BITS = 13  # of the longest code


class DamagedFaxError(Exception):
    """The bits are no facsimile of the size that is asked for."""


def _table(codes: dict[str, int]) -> list[tuple[int, int]]:
    """Give for all 13 next bits (value, length of the code), or (-1, 0) where there is none."""
    table = [(-1, 0)] * (1 << _BITS)
    for code, value in codes.items():
        first = int(code, 2) << _BITS - len(code)
        for bits in range(first, first + (1 << _BITS - len(code))):
            table[bits] = (value, len(code))
    return table


def _runs(codes: Sequence[str]) -> list[tuple[int, int]]:
    lengths = (*range(64), *range(64, 2561, 64))
    return _table(dict(zip([*codes, *_LONG], lengths, strict=True)))


_RUNS = (_runs(_WHITE), _runs(_BLACK))
_MODE_TABLE = _table(_MODES)


def fax_lines(
    data: bytes, width: int, height: int, compression: int, options: int
) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Decode into bits [height, width], 1 where the facsimile is black, and list the damaged lines.

    `compression` is TIFF's tag 259 (2, 3 or 4), `options` tag 292, of Group 3. Raises DamagedFaxError.
    """
    changes = np.zeros((height, width), np.uint8)
    reader, damaged = _Reader(data, width), list[int]()
    if compression == 3:
        lines = _group3(reader, height, bool(options & 1), damaged)
    else:
        lines = _others(reader, height, compression == 4)
    for line, places in enumerate(lines):
        changes[line, _visible(places)] = 1
    return np.bitwise_xor.accumulate(changes, axis=1), damaged


def _others(reader: "_Reader", height: int, two_dimensions: bool) -> Iterator[list[int]]:
    """Yield the lines of Modified Huffman, or of Group 4."""
    above = list[int]()
    for _ in range(height):
        if two_dimensions:
            above = reader.line_by(above)
        else:
            reader.align()
            above = reader.line()
        yield above


def _group3(reader: "_Reader", height: int, two_dimensions: bool, damaged: list[int]) -> Iterator[list[int]]:
    """Yield the lines of Group 3, adding to the damaged ones.

    The mark at the end of a damaged line shows where the next one begins. What is read of the line is taken
    if all others are sure: none is told by it, those beside it are sound, and none is missing or left over.
    """
    above, marks = list[int](), 0
    for line in range(height):
        marked = reader.skip_line_end()
        by_above = two_dimensions and not reader.bit()
        start = reader.position
        try:
            above = reader.line_by(above) if by_above else reader.line()
            if marked and 0 < line < height - 1:
                reader.expect_line_end()
        except DamagedFaxError:
            alone = marked and not two_dimensions and damaged[-1:] != [line - 1]
            if not alone or not reader.find_line_end(start):
                raise
            above = reader.before_damage()
            damaged.append(line)
        yield above
        marks += marked and line > 0
    if 0 < marks < height - 1 or (damaged and reader.holds_more()):
        raise DamagedFaxError("has more or fewer lines than it should")


class _Reader:
    """Reads lines from bits; a line is the places where its color changes, the first of them to black.

    Runs of no length are kept: by T.6 the next line is not told by them, but encoders that write them, and
    libtiff, count on them.
    """

    def __init__(self, data: bytes, width: int):
        self._data = data + bytes(4)
        self._end = 8 * len(data)
        self._width = width
        self._changes: list[int] = []  # of the line that is told by no other, as far as it is read
        self.position = 0  # in bits

    def _next(self) -> int:
        """Return the next 13 bits, without going on."""
        start = self.position >> 3
        word = int.from_bytes(self._data[start : start + 4])
        return word >> 19 - (self.position & 7) & 0x1FFF

    def _take(self, table: list[tuple[int, int]]) -> int:
        value, length = table[self._next()]
        self.position += length
        if value < 0 and length == 0:
            raise DamagedFaxError("ends early" if self.position + _BITS > self._end else "holds no code")
        return value

    def bit(self) -> int:
        value = self._next() >> _BITS - 1
        self.position += 1
        return value

    def align(self) -> None:
        self.position = -(-self.position // 8) * 8

    def skip_line_end(self) -> bool:
        """Go beyond the mark at the start of a line, eleven zeros or more and a one; tells if it is there."""
        start = self.position
        while self._next() == 0 and self.position < self._end:
            self.position += 1
        if self._at_line_end() or self.position > start:
            self.position += _BITS + 1 - self._next().bit_length()
        return self.position > start

    def _at_line_end(self) -> bool:
        """Tell if a mark is next, or nothing."""
        return self._next() >> 2 == 0

    def expect_line_end(self) -> None:
        if not self._at_line_end():
            raise DamagedFaxError("has a line of another length")

    def find_line_end(self, start: int) -> bool:
        """Go to the first mark of a line's end behind `start`; tells if there is one."""
        self.position = start
        while not self._at_line_end() and self.position < self._end:
            self.position += 1
        return self.position + _BITS <= self._end

    def holds_more(self) -> bool:
        """Tell if anything but marks and zeros is left."""
        while self.position < self._end and self.skip_line_end():
            pass
        return self.position < self._end

    def before_damage(self) -> list[int]:
        """Give what `line` has read before it failed: runs of black that end inside the line."""
        inside = [place for place in self._changes if place < self._width]
        return inside[: len(inside) & ~1]

    def _run(self, color: int, rest: int) -> int:
        """Return the length of a run: any number of makeup codes, and one of less than 64."""
        length = part = self._take(_RUNS[color])
        while part > 63:
            if length == rest and _RUNS[color][self._next()][0] != 0:
                break  # some encoders leave the last code out where the line is full
            part = self._take(_RUNS[color])
            length += part
            if length > self._width:
                break
        return length

    def line(self) -> list[int]:
        changes = self._changes = list[int]()
        color = place = 0
        while place < self._width:
            place += self._run(color, self._width - place)
            changes.append(place)
            color ^= 1
        return self._whole(changes, place)

    def line_by(self, above: list[int]) -> list[int]:
        """Read a line that is told by the one above."""
        width, changes = self._width, list[int]()
        ends = [*above, width, width, width]
        color, place, index = 0, -1, 0
        while place < width:
            index = max(0, index - 2) & ~1 | color
            while ends[index] <= place and ends[index] < width:
                index += 2
            mode = self._take_mode()
            if mode == _PASS:
                place = ends[index + 1]
            elif mode == _ACROSS:
                for each in (color, color ^ 1):
                    place = max(place, 0)
                    place += self._run(each, width - place)
                    changes.append(place)
            else:
                if ends[index] + mode < place:
                    raise DamagedFaxError("goes backwards")
                place = ends[index] + mode
                changes.append(place)
                color ^= 1
        return self._whole(changes, place)

    def _take_mode(self) -> int:
        value, length = _MODE_TABLE[self._next()]
        if length == 0:
            raise DamagedFaxError("ends early" if self._next() < 4 else "holds no code")
        self.position += length
        return value

    def _whole(self, changes: list[int], place: int) -> list[int]:
        if place != self._width or self.position > self._end:
            raise DamagedFaxError("has a line of another length")
        while changes and changes[-1] == self._width:
            changes.pop()
        return changes


def _visible(changes: list[int]) -> list[int]:
    """Drop two changes at one place, which leave the color as it was."""
    if len(set(changes)) == len(changes):
        return changes
    return [place for place, times in Counter(changes).items() if times % 2]
