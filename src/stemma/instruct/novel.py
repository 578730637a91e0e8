"""Which instructions are new: those that no other is alike by ROUGE-L (Lin 2004), as `rouge_score` computes it."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cached_property
from typing import Any

from stemma.errors import require

LIMIT = 0.7  # F-measure above which an instruction is not new


class Novel:
    """Instructions that are there already. Raises ResourceError where `rouge_score` is not installed."""

    def __init__(self, limit: float = LIMIT) -> None:
        require("rouge_score", "telling instructions apart", "rouge-score")
        self.limit = limit
        self.texts: list[str] = []
        self._lengths: list[int] = []
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)  # word -> (instruction, how often)

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score import rouge_scorer

        return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)

    def _words(self, text: str) -> list[str]:
        from rouge_score import tokenize

        return list(tokenize.tokenize(text, None))

    def add(self, text: str) -> None:
        """Take in an instruction."""
        words = self._words(text)
        for word, times in Counter(words).items():
            self._places[word].append((len(self.texts), times))
        self.texts.append(text)
        self._lengths.append(len(words))

    def alike(self, text: str) -> tuple[float, str]:
        """(F-measure, instruction) of one that is more alike than the limit, the first of the most alike ones; (0, "")
        if there is none. Words in common bound the longest common subsequence, so that few pairs are compared."""
        words = self._words(text)
        common: Counter[int] = Counter()
        for word, times in Counter(words).items():
            for place, there in self._places.get(word, ()):
                common[place] += min(times, there)
        best, found = 0.0, ""
        for place in sorted(common):
            if 2 * common[place] > self.limit * (len(words) + self._lengths[place]):
                score = float(self._scorer.score(self.texts[place], text)["rougeL"].fmeasure)
                if score > max(best, self.limit):
                    best, found = score, self.texts[place]
        return best, found
