"""A running decoding: prompts are read, then one token a row and step, with keys and values kept. Rows may join and
leave at any time.

Rows have their own lengths; positions are explicit, and nothing is padded on the left.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from stemma import executor
from stemma.decoding import compiled
from stemma.decoding.generation_config import start_token
from stemma.decoding.inputs import language_ids, pad
from stemma.errors import NotFinite, UsageError
from stemma.executor import Step
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model
from stemma.nn.positions import Position

Room = int | Sequence[int]


class Session:
    """The rows of a decoding, with a cache. `logits` (B V) are those of each row's next token.

    `prompts`: token ids. `room`: new tokens to have place for, of all rows or of each; a row that does not fit in the
    model's positions is refused (UsageError), and buffers begin that long (they grow where a row becomes longer).
    `languages`: the number of each row's language, for a model with a table of them. `starts`: the first token of each
    text of an encoder-decoder, where it is not the model's own.
    """

    PER_ROW: tuple[str, ...] = ("lengths", "logits", "languages")  # attributes with an entry a row, or None
    CACHED = True
    COUNTS_ON = True  # whether each token's position is the next one
    EXTENDS = True  # whether several tokens are read at once (`extend`), and can be taken back (`cut`)
    cache: Cache
    languages: Tensor | None  # B
    logits: Tensor  # B V
    left: int  # steps that are known to fit
    first: int  # the position of a text's first token
    executor: executor.Executor | compiled.CompiledSteps | None = None  # computes the steps, where the model has one
    newest: Step | None = None  # what it gave last
    _lengths: Tensor | None = None
    _counts: list[int] | None = None

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: Room = 0,
        languages: Sequence[int | None] | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        self.prepare(model, prompts, room, languages, starts)
        self.find_executor()
        with executor.fast_linear():
            self.read(prompts)

    @property
    def rows(self) -> int:
        return len(self.logits)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row (B)."""
        if self._lengths is None:
            self._lengths = torch.tensor(self._counts, device=self.device)
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: Tensor) -> None:
        self._lengths, self._counts = lengths, None

    @property
    def counts(self) -> list[int]:
        """The same as a list: steps of an executor need no tensor."""
        if self._counts is None:
            self._counts = [int(n) for n in self.lengths.tolist()]
        return self._counts

    def step(self, tokens: Tensor | Sequence[int]) -> Tensor:
        """Read one more token a row (B). Returns the logits of the next (B V)."""
        if self.executor is None or not self.executor.ready(self.cache, self.languages):
            return self.read_next(torch.as_tensor(tokens, device=self.device))
        if self.cache.journal is not None and self.cache.ring is not None:  # rings keep what is overwritten
            return self.read_next(torch.as_tensor(tokens, device=self.device))
        self._check_place()
        tokens = tokens.tolist() if isinstance(tokens, Tensor) else tokens
        try:
            self.newest = self.executor.step(tokens, self._next_places(), self.counts, self.cache, self.languages)
            self.logits = self.newest.logits
        except NotFinite as error:
            self.logits = error.logits
            self._advance(1)
            raise
        self._advance(1)
        return self.logits

    @property
    def goes_ahead(self) -> bool:
        """Whether several steps are computed in one go (`steps`)."""
        ahead = self.COUNTS_ON and isinstance(self.executor, executor.Executor) and self.cache.journal is None
        return ahead and self.executor is not None and self.executor.ready(self.cache)

    def steps(self, tokens: Sequence[int], count: int) -> list[Step]:
        """Read one more token a row (B), then the likeliest one, and so on: `count` in all, which are known to fit, or
        fewer before logits that are not finite."""
        assert isinstance(self.executor, executor.Executor)
        self._check_place()
        found = self.executor.steps(tokens, self._next_places(), self.counts, self.cache, self.languages, count)
        self.newest, self.logits = found[-1], found[-1].logits
        self.left -= len(found) - 1
        self._advance(len(found))
        return found

    def read_next(self, tokens: Tensor) -> Tensor:
        """The same by PyTorch."""
        self._check_place()
        ids, order = tokens[:, None], self.lengths[:, None]
        inputs = Inputs(
            ids,
            position_ids=self._places(torch.zeros_like(order)),
            langs=language_ids(ids, self.languages),
            order=order,
            cache=self.cache,
        )
        with executor.fast_linear():
            logits = self.model.logits(self.model.decode(inputs)[:, 0]).float()
        self._advance(1)
        self.logits = self._finite(logits)
        return self.logits

    def likeliest(self, logits: Tensor) -> Step | None:
        """The likeliest tokens by these logits (B V), where the executor has found them with the last step."""
        return self.newest if self.newest is not None and self.newest.logits is logits else None

    def extend(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read some more tokens of each row, at least one, in one pass. Returns the logits after each of them (B T V);
        a row with fewer tokens than others has numbers without a meaning at its end. Raises UsageError for a model
        that predicts one place at a time (`EXTENDS`)."""
        if not self.EXTENDS:
            raise UsageError("a model of this kind reads a new text token by token")
        counts = torch.tensor([len(row) for row in tokens], device=self.device)
        ids, real = pad(tokens, self.device)
        self.left -= ids.shape[1]
        self._check_places(counts)
        ragged = not bool(real.all())
        self.cache.even = self.cache.even and not ragged
        places = self.lengths[:, None] + torch.arange(ids.shape[1], device=self.device).minimum(counts[:, None] - 1)
        inputs = Inputs(
            ids,
            real if ragged else None,
            position_ids=self._places(places - self.lengths[:, None]),
            langs=language_ids(ids, self.languages),
            order=places,
            cache=self.cache,
        )
        with executor.fast_linear():  # as a step is computed
            hidden = self.model.decode(inputs)
            self._advance(counts)
            logits = self._head(hidden)
        self.logits = logits[torch.arange(len(ids), device=self.device), counts - 1]
        return logits

    def fits(self, new: int) -> bool:
        """Whether `new` more tokens of every row have places."""
        limit = self.model.dims.context if self._position.length_dependent else self._limit
        return limit is None or int(self._last_places().max()) + new <= limit

    def mark(self) -> None:
        """From here on `cut` may take back what is read."""
        self.cache.mark()

    def cut(self, lengths: Sequence[int], logits: Tensor) -> None:
        """Take back what was read beyond the first `lengths` tokens of each row, since `mark`. `logits`: those of the
        next tokens (B V)."""
        before, self.logits = self.lengths, logits
        left = torch.tensor(list(lengths), device=self.device)
        self.cache.forget(left)
        self._advance(left - before)

    def admit(
        self,
        prompts: Sequence[Sequence[int]],
        room: Room = 0,
        languages: Sequence[int | None] | None = None,
        starts: Sequence[int] | None = None,
    ) -> Tensor:
        """Read prompts as new rows, behind the rows that are there. Returns the logits of all rows."""
        if not prompts:
            return self.logits
        self.take(type(self)(self.model, prompts, room, languages, starts))
        return self.logits

    def take(self, new: Session) -> None:
        """Take the rows of another session of this kind, which is of no use afterwards, behind the own ones."""
        if not self.rows:
            vars(self).update(vars(new))
            return
        if (self.languages is None) != (new.languages is None):
            raise UsageError("rows that are decoded together all have a language, or none of them")
        self.join(new)

    def join(self, new: Session) -> None:
        """The same where both have rows, and all or none have languages."""
        self.cache.admit(new.cache)
        for name in self.PER_ROW:
            if getattr(self, name) is not None:
                setattr(self, name, torch.cat([getattr(self, name), getattr(new, name)]))
        self.left = min(self.left, new.left)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the given rows, in this order. Others are released; a row may be named twice."""
        at = torch.tensor(list(rows), dtype=torch.int64, device=self.device)
        self.cache.keep(at)
        for name in self.PER_ROW:
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name)[at])

    def leave(self, row: int, tokens: Sequence[int], whole: bool = True) -> None:
        """A row is about to be released (`keep`). `tokens`: what it read and wrote; `whole`: without an error."""

    def close(self, whole: bool = True) -> None:
        """Release all rows; the session is of no use afterwards."""

    def undo(self) -> bool:
        """After a step that failed: make it undone, so that it may be tried again. Returns whether that can be."""
        return False

    # ------------------------------------------------------------ for subclasses

    def find_executor(self) -> None:
        """See whether the model has an executor or compiled steps, which compute the steps."""
        steps = compiled.of(self.model) if self.CACHED else None
        if steps is not None:
            self.executor = steps
            return
        found = executor.of(self.model) if self.CACHED else None
        self.executor = found if isinstance(found, executor.Executor) else None

    def prepare(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        room: Room,
        languages: Sequence[int | None] | None,
        starts: Sequence[int] | None,
    ) -> None:
        """Check the prompts, and set `texts`, the rows to continue: the prompts, or the start tokens of an
        encoder-decoder."""
        if not prompts:
            raise UsageError("a session begins with at least one prompt")
        self.model, self.device = model, model.device
        self.first = 0 if model.decoder is None else model.decoder.position.first
        self.room = [room] * len(prompts) if isinstance(room, int) else list(room)
        self.left = min(self.room)
        self.texts = [list(p) for p in prompts]
        if model.arch.structure == "encoder-decoder":
            self.texts = [[s] for s in starts or [start_token(model)] * len(prompts)]
        for i, text in enumerate(self.texts):
            if not text:
                raise UsageError(f"prompt {i} is empty: a decoder needs at least one token to go on from")
        self._check_ids(prompts)
        self.lengths = torch.tensor([len(t) for t in self.texts], device=self.device)
        self.languages = self._numbers(languages)
        self._check_room()

    def read(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read the texts; an encoder reads the prompts first."""
        model, longest = self.model, max(len(t) for t in self.texts)
        both = model.arch.structure == "encoder-decoder"
        even = all(len(t) == longest for t in self.texts)
        layers = model.dims.depth if both else model.dims.layers
        self.cache = Cache(model.arch, layers, len(self.texts), self._capacity(), even)
        if isinstance(self.executor, executor.Executor) and self.executor.reads and executor.usable():
            rows, languages = range(len(self.texts)), self._language_numbers()
            self.logits = self._finite(self.executor.read(self.texts, self._range, self.cache, rows, languages))
            return
        ids, real = pad(self.texts, self.device)
        positions, prefix = self._place(self.texts)
        inputs = Inputs(
            ids,
            None if even else real,
            position_ids=positions,
            langs=language_ids(ids, self.languages),
            order=torch.arange(longest, device=self.device).expand(len(ids), -1),
            prefix=prefix,
            cache=self.cache,
        )
        if both:
            source, source_real = pad(prompts, self.device)
            inputs.encoder_mask = None if bool(source_real.all()) else source_real
            inputs.encoder_hidden = model.encode(Inputs(source, inputs.encoder_mask))
        hidden = model.decode(inputs)
        self.logits = self._head(hidden[torch.arange(len(ids), device=self.device), self.lengths - 1])

    def _capacity(self) -> int:
        """Tokens of the longest row at its end."""
        longest = max(len(t) for t in self.texts)
        return self.model.ahead + max(longest, *(len(t) + n for t, n in zip(self.texts, self.room, strict=True)))

    def _place(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
        """The positions of the first tokens (B T, or B T C), and how many of each row see each other whole."""
        places = torch.arange(max(len(t) for t in texts), device=self.device)
        return places.expand(len(texts), -1) + self.first, None

    def _places(self, ahead: Tensor) -> Tensor:
        """The positions of the tokens that are `ahead` (B T) of the next one: B T, or B T C."""
        return self.lengths[:, None] + ahead + self.first

    def _range(self, start: int, end: int) -> Sequence[int]:
        """The positions of the tokens at places from `start` on."""
        return range(start + self.first, end + self.first)

    def _language_numbers(self) -> list[int] | None:
        """The language of each row, if they have one."""
        return None if self.languages is None else [int(n) for n in self.languages.tolist()]

    def _next_places(self) -> list[int]:
        """The positions of the next tokens: all columns of a row, then those of the next."""
        return [n + self.first for n in self.counts]

    def _advance(self, counts: Tensor | int) -> None:
        """Rows have become longer by so many tokens (B), or shorter."""
        if isinstance(counts, int):
            self._counts, self._lengths = [n + counts for n in self.counts], None
        else:
            self.lengths = self.lengths + counts

    def _head(self, hidden: Tensor) -> Tensor:
        logits = self.model.logits(hidden).float()
        return self._finite(logits)

    def _finite(self, logits: Tensor) -> Tensor:
        """The same logits (B V). Raises NotFinite, with `logits` set, where some are not finite."""
        finite = logits.isfinite()
        if not bool(finite.all()):
            self.logits = logits if logits.ndim == 2 else logits[:, -1]
            raise NotFinite((~finite.flatten(1).all(-1)).nonzero()[:, 0].tolist(), logits)
        return logits

    # ------------------------------------------------------------ checks

    def _numbers(self, languages: Sequence[int | None] | None) -> Tensor | None:
        numbers = [n for n in languages or () if n is not None]
        if not numbers:
            return None
        if languages is None or len(numbers) < len(languages):
            raise UsageError("rows that are decoded together all have a language, or none of them")
        return torch.tensor(numbers, device=self.device)

    @property
    def _limit(self) -> int | None:
        """Tokens of a row that have a place in the position table, if there is one."""
        limit = self._position.limit
        return None if limit is None else limit - self.model.ahead

    @property
    def _position(self) -> Position:
        stack = self.model.decoder or self.model.encoder
        assert stack is not None
        return stack.position

    def _check_room(self) -> None:
        whole, longest = max((len(t) + n, len(t)) for t, n in zip(self.texts, self.room, strict=True))
        limit, trained = self._limit, self.model.dims.context
        if self.CACHED and self._position.length_dependent and whole > trained:
            raise UsageError(
                f"a row of {whole} tokens cannot join: past {trained} tokens every new token changes all keys of this "
                "model, so the row needs a session that begins with it"
            )
        if limit is not None and whole > limit:
            ways = f"max_new_tokens={limit - longest} or a shorter prompt" if limit > longest else "a shorter prompt"
            raise UsageError(
                f"a prompt of {longest} tokens and max_new_tokens={whole - longest} do not fit in this model's {limit} "
                f"positions; use {ways}"
            )
        if limit is None and whole > trained and self.model.arch.structure != "encoder-decoder":
            warnings.warn(f"{whole} tokens are more than the {trained} this model was trained on", stacklevel=4)

    def _check_place(self) -> None:
        """Refuse a step past the position table, which a row's `room` did not ask for."""
        self.left -= 1
        if self.left < 0:
            self._check_places(1)

    def _check_places(self, counts: Tensor | int) -> None:
        """The same for so many tokens of each row (B)."""
        limit = self.model.dims.context if self._position.length_dependent else self._limit
        if limit is not None and int((self._last_places() + counts).max()) > limit:
            raise UsageError(f"a row is full: this session has {limit} positions for it")

    def _last_places(self) -> Tensor:
        """The highest place in the table that the next step reads for each row (B)."""
        return self.lengths

    def _check_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        vocab = self.model.dims.vocab
        for i, prompt in enumerate(prompts):
            if wrong := [t for t in prompt if not 0 <= t < vocab]:
                raise UsageError(f"prompt {i} holds the token id {wrong[0]}; this model's ids are 0 to {vocab - 1}")
