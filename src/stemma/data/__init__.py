"""Text for training: sources, cleaning, token stores, counter-based randomness, and baselines."""

from stemma.data import random, stats
from stemma.data.documents import Document, Source
from stemma.data.sources import read
from stemma.data.store import Store, View

__all__ = ["Document", "Source", "Store", "View", "random", "read", "stats"]
