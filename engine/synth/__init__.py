"""Synthetic X-ray archives for the demo, the tests and the benchmarks."""

from .air import air_of
from .archive import Counts, gate_images, generator_hash, render, write_archive
from .isolated import isolated_threat
from .picture import Picture, SynthSettings, ThreatBox, render_bag

__all__ = [
    "Counts",
    "Picture",
    "SynthSettings",
    "ThreatBox",
    "air_of",
    "gate_images",
    "generator_hash",
    "isolated_threat",
    "render",
    "render_bag",
    "write_archive",
]
