"""paring: low-rank adapters whose ranks are found while they train."""

__version__ = "0.1.0"
