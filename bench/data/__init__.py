"""Datasets: from a name or a file to transitions in memory, checked and fingerprinted."""

from bench.data.card import Card, Reference, cards, data_root
from bench.data.checks import report
from bench.data.combine import combine
from bench.data.dataset import Dataset, fingerprint, fingerprint_next
from bench.data.flat import read_flat, write_flat
from bench.data.loading import expand, load, names
from bench.data.minari_export import export_minari
from bench.data.raw import DataWarning, Raw
from bench.data.render import render
from bench.data.transitions import to_transitions

__all__ = [
    "Card",
    "DataWarning",
    "Dataset",
    "Raw",
    "Reference",
    "cards",
    "combine",
    "data_root",
    "expand",
    "export_minari",
    "fingerprint",
    "fingerprint_next",
    "load",
    "names",
    "read_flat",
    "render",
    "report",
    "to_transitions",
    "write_flat",
]
