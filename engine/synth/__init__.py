"""Synthetic X-ray archives for the demo, the tests and the benchmarks."""

from .archive import Counts, gate_images, generator_hash, write_archive
from .isolated import isolated_threat
from .likeness import Figure, Likeness, air_of, check_likeness
from .picture import Picture, SynthSettings, ThreatBox, render_bag

__all__ = [
    "Counts",
    "Figure",
    "Likeness",
    "Picture",
    "SynthSettings",
    "ThreatBox",
    "air_of",
    "check_likeness",
    "gate_images",
    "generator_hash",
    "isolated_threat",
    "render_bag",
    "write_archive",
]
