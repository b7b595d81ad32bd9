"""Synthetic X-ray archives for the demo, the tests and the benchmarks."""

from .archive import Counts, gate_images, generator_hash, write_archive
from .likeness import Figure, Likeness, check_likeness
from .picture import Picture, SynthSettings, ThreatBox, render_bag

__all__ = [
    "Counts",
    "Figure",
    "Likeness",
    "Picture",
    "SynthSettings",
    "ThreatBox",
    "check_likeness",
    "gate_images",
    "generator_hash",
    "render_bag",
    "write_archive",
]
