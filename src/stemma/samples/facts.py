"""Small tables of widely known facts, of which other sets are made."""

from __future__ import annotations

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin", "Portugal": "Lisbon",
    "Austria": "Vienna", "Poland": "Warsaw", "Greece": "Athens", "Norway": "Oslo", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Denmark": "Copenhagen", "Ireland": "Dublin", "Hungary": "Budapest", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Kenya": "Nairobi", "Peru": "Lima", "Chile": "Santiago",
    "Canada": "Ottawa", "Cuba": "Havana", "Iran": "Tehran", "Iraq": "Baghdad", "Turkey": "Ankara",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "early": "late", "high": "low", "old": "new", "wet": "dry",
    "hard": "soft", "light": "dark", "full": "empty", "open": "closed", "rich": "poor", "loud": "quiet",
    "near": "far", "clean": "dirty", "thick": "thin", "strong": "weak", "long": "short",
}  # fmt: skip
KINDS = {
    "animal": ("horse", "cow", "cat", "dog", "sheep", "goat", "lion", "mouse", "bear", "duck"),
    "fruit": ("apple", "pear", "plum", "cherry", "grape", "lemon", "orange", "peach", "fig", "melon"),
    "tool": ("hammer", "saw", "axe", "drill", "spade", "knife", "chisel", "file", "plane", "pliers"),
    "colour": ("red", "green", "blue", "yellow", "white", "black", "brown", "grey", "purple", "pink"),
    "metal": ("iron", "copper", "gold", "silver", "tin", "lead", "zinc", "nickel", "steel", "brass"),
}
NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ida",
    "Jonas",
    "Lena",
    "Max",
    "Nora",
    "Paul",
)
TOWNS = ("Leeds", "Lyon", "Turin", "Bonn", "Porto", "Graz", "Cork", "Bergen", "Ghent", "Basel")
