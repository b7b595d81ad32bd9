"""Results that are signed: whoever has the public key can tell that no row, model or setting was changed."""

from .signing import Signed, sign
from .verifying import verify

__all__ = ["Signed", "sign", "verify"]
