"""One page that shows a finished scan: figures, an operating point to drag, and a gallery to judge."""

from .page import Shown, write_report

__all__ = ["Shown", "write_report"]
