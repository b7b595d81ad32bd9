"""Sets of classes as the bits of a number, since lists neither pass through a join nor are compared fast."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from ..row import THREATS, threats_of

if TYPE_CHECKING:
    import pyarrow as pa


def bits_of(threats: "pa.Array") -> "pa.Array":
    """Return the classes of each row as the bits of a number, none of them for null."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    rows = pc.list_parent_indices(threats).to_numpy(zero_copy_only=False)
    which = pc.index_in(threats.flatten(), value_set=pa.array(THREATS)).to_numpy(zero_copy_only=False)
    bits = np.bincount(rows, weights=np.exp2(which), minlength=len(threats))
    return pa.array(bits.astype(np.int8))


def every_set() -> "pa.Array":
    """Return the lists of class names for every set of classes, by the bits that stand for them."""
    import pyarrow as pa

    return pa.array(map(threats_of, range(1 << len(THREATS))), pa.list_(pa.string()))
