"""The text of a run, in its folder: reading, tokenizing, holding out, opening again.

RUN/tokenizer/  RUN/data/   what the text became
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import warnings
from pathlib import Path
from typing import Any

from stemma import disk, spec
from stemma.data import Source, Store, cleaning, read, shared
from stemma.data.mixture import Mixed, UsedUp
from stemma.data.progress import Meter
from stemma.declare import ramps
from stemma.declare.tasks import RowObjective
from stemma.errors import CheckpointError, DataError, UsageError
from stemma.objectives import Cursor, tokens
from stemma.objectives.languages import apart
from stemma.runs import folder
from stemma.tasks.encoder import TaskEncoder, rows
from stemma.train.assemble import fit_to_tokenizer, objective_of
from stemma.train.config import Plan
from stemma.train.evaluation import judged_by as judged_by
from stemma.train.loop import Loop
from stemma.train.source import TextSource

# what a run that was killed while preparing its text leaves behind, and the stages before it
LEFTOVERS = {"tokenizer", "data", "pretraining", "reference", "samples.jsonl", "judged.jsonl", "stages", *folder.CHAINS}
ROLES = ("bos", "eos", "pad", "unk", "mask", "cls", "sep")
FEW = 1000  # held-out targets by which nothing can be judged
MANY = 4  # epochs up to which text read again is about as good as new (Muennighoff et al. 2023, arXiv:2305.16264)
COUNTED = 50_000  # rows of a mixture with limits that are counted before a run


def check_enough(loop: Loop) -> None:
    """Raise DataError if a mixture with limits has text for fewer steps than the run takes, or a part without a
    document to train on."""
    source = loop.source
    if not isinstance(source, TextSource):
        return
    order = loop.objective.order(source.view)
    slots = order.mixture.slots if isinstance(order, Mixed) else None
    if slots is None:
        return
    ramp, rows, cursor = loop.plan.recipe.ramp, 0, Cursor()
    needed = int(ramps.total(ramp, source.full, loop.steps))
    try:
        for _, follow in itertools.islice(loop.objective.lazy_examples(source.view), min(needed, COUNTED)):
            rows, cursor = rows + 1, follow
        if needed <= COUNTED or apart(source.view, loop.plan.recipe.sampling):
            return
        rows = int(1.02 * rows * slots / max(1, cursor.slot))  # what is left, in proportion
    except UsedUp:
        pass
    if rows < needed:
        steps = ramps.longest(ramp, source.full, rows) if rows >= source.examples(0) else 0
        raise DataError(
            f"{loop.plan.data} has text for {steps:,} steps, as often as each part may be read, and the run takes "
            f"{loop.steps:,}; train for fewer, or raise the limits (#epochs=N in the data, recipe.sampling.epochs)"
        )


def report_uneven(plan: Plan, train: Any, rest: Any) -> None:
    """Print a note if much more is held out than was asked for: documents are few, and none is divided."""
    wanted, share = plan.train.val_fraction, rest.tokens_total / max(1, train.tokens_total + rest.tokens_total)
    if share <= 0.1 + 2 * wanted:
        return
    many = len(train) + len(rest)
    if train.has_groups:
        why = (
            "documents with one value in the field 'group' stay together; if it means something else, add "
            "#group=none to the name of the data"
        )
    elif isinstance(plan.objective, RowObjective):
        why = f"it has {many} rows that can be learnt from; give more, or set train.val_fraction"
    else:
        why = f"it has {many} documents, of which none is divided; FILE#split=paragraph or FILE#split=line makes more"
    disk.tell(f"{share:.0%} of the text is held out and not {wanted:.0%}: {why}")


def report_text(loop: Loop, held: Any, epochs: float) -> None:
    """Print how much text there is, how often the run reads it and by how much it is judged; then notes on what is too
    little, too often or too long."""
    source, plan, goal = loop.source, loop.plan, loop.objective
    if not isinstance(source, TextSource):
        disk.tell(f"{loop.steps:,} steps of {source.full:,} prompts, which are read {epochs:.2g} times")
        return
    judged = judged_by(plan, source.view, held)
    targets: int | None = None
    if not goal.counts_after_forward:
        examples = (example for example, _ in goal.examples(judged, once=True))
        targets = 0
        while some := list(itertools.islice(examples, 64)):
            targets += goal.counts(goal.collate(some)).get(goal.main, 0)
    by = f"{judged.tokens_total:,} held-out tokens" if targets is None else f"{targets:,} held-out targets"
    view: Any = source.view
    amount = f"{view.texts:,} documents" + (f" in {len(view):,} pieces" if len(view) > view.texts else "")
    if goal.of_rows:
        amount, by = f"{len(view):,} rows", f"{len(judged):,} held-out rows with {by.replace('held-out ', '')}"
    disk.tell(
        f"{amount}, {view.tokens_total:,} tokens, read {epochs:.2g} times in {loop.steps:,} steps; judged by {by}"
    )
    if targets is not None and targets < FEW:
        more = "raise train.eval_tokens" if len(judged) < len(held) else "give more text, or raise train.val_fraction"
        disk.tell(f"note: {targets:,} held-out targets are too few to tell good from bad by; {more}")
    if epochs > MANY and goal.in_bits:
        disk.tell(
            f"note: the text is read {epochs:.0f} times; after about {MANY} times new text teaches more (Muennighoff "
            "et al. 2023); give more text or a smaller budget"
        )
    if (warmup := plan.recipe.schedule.warmup) >= loop.steps > 1:
        disk.tell(
            f"note: the warm-up of {warmup:,} steps is longer than the run of {loop.steps:,}, so the peak rate is "
            "never reached; set recipe.schedule.warmup"
        )


def check_tokenizer(plan: Plan, tokenizer: Any) -> None:
    """Raise UsageError for a given tokenizer that lacks what the objective needs, before any text is read with it."""
    if plan.dims.languages:  # they depend on the text too
        return
    try:
        objective_of(fit_to_tokenizer(plan, tokenizer), tokenizer)
    except UsageError as error:
        raise UsageError(
            f"the tokenizer that was given does not fit {plan.name}: {error}; give one that does, or none, to have one "
            "trained"
        ) from None


# settings that older runs did not have, and what these runs did
OLDER: dict[str, Any] = {"matrices": "shape", "unit": "document", "piece": None, "judged": "size"}


def read_plan(run: Path) -> tuple[Plan, str]:
    """The plan of a run, and the fingerprint of its text. Raises CheckpointError for a run that cannot be read."""

    def parse(about: Any) -> tuple[Plan, str]:
        plan = {**about["plan"], "train": {**OLDER, **about["plan"]["train"]}}
        return spec.from_dict(Plan, plan), about["data"]["fingerprint"]

    return folder.read(run, parse)


def split(plan: Plan, store: Any) -> tuple[Any, Any]:
    """(training, held-out) documents of a run, long ones in pieces."""
    train, held = store.split(plan.train.val_fraction, plan.seed, plan.train.unit)
    if plan.train.piece is None:
        return train, held
    return train.cut(max(plan.train.piece, plan.objective.consecutive) * plan.context), held


def facts(store: Any, train: Any) -> dict[str, Any]:
    """What `run.json` keeps of the text: amounts, and `notes` on what was passed over when it was read."""
    amounts = {
        "documents": train.texts,
        "pieces": len(train),
        "tokens": int(train.tokens_total),
        "bytes": int(train.bytes_total),
    }
    return {"fingerprint": store.fingerprint, **amounts, "notes": store.meta.get("notes", [])}


def reopen(run: Path, verify: bool = True) -> tuple[Plan, Any, Any]:
    """Plan, tokenizer and store of a run; builds the store again from its text if its folder is gone. `verify`: compare
    the store with its checksums, which reads all of it. Raises CheckpointError if something is damaged or not the
    run's."""
    plan, fingerprint = read_plan(run)
    tokenizer = tokenizer_of(run)
    data = run / "data"
    if not (data / "meta.json").exists() and verify:
        _rebuild(plan, run, tokenizer, fingerprint)
    try:
        store = Store.open(data)
        if verify:
            store.verify()
    except CheckpointError as error:
        if "cannot" in str(error):
            raise
        why = str(error).removesuffix("; delete the folder")
        raise CheckpointError(
            f"{why}; delete {data} to make it again from {plan.data} with: {folder.resume_command(run)}"
        ) from None
    if store.fingerprint != fingerprint:
        raise CheckpointError(
            f"{data} is not the text that this run was started on; delete it to make it again from {plan.data} with: "
            f"{folder.resume_command(run)}"
        )
    if store.vocab != tokenizer.vocab_size:
        raise CheckpointError(
            f"the token store {data} is damaged: its meta.json has a vocabulary of {store.vocab:,} and the tokenizer "
            f"{tokenizer.vocab_size:,}; delete the folder to make it again with: {folder.resume_command(run)}"
        )
    if store.meta.get("tokenizer") != encoder_of(plan, tokenizer).fingerprint:
        raise CheckpointError(
            f"{run / 'tokenizer'} is not the tokenizer that this run was started with; put that back, or begin anew"
        )
    return plan, tokenizer, store


def tokenizer_of(run: Path) -> Any:
    """The tokenizer of a run. Raises CheckpointError if it is damaged or gone."""
    from stemma.text import Tokenizer

    try:
        return Tokenizer.load(run / "tokenizer")
    except CheckpointError as error:
        raise CheckpointError(
            f"the tokenizer of the run {run} cannot be read: {error}; put it back as it was, or begin anew elsewhere"
        ) from None


def _rebuild(plan: Plan, run: Path, tokenizer: Any, fingerprint: str) -> None:
    """Build the store of a run again from the text it was built from."""
    try:
        source = source_of(plan, tokenizer)
        warnings.warn(f"the tokens of the run are gone from {run / 'data'}; made again from {plan.data}", stacklevel=2)
        store = shared.build(source, encoder_of(plan, tokenizer), run / "data")
    except DataError as error:
        raise DataError(
            f"the tokens of the run are gone from {run / 'data'}, and so is their text: {error}; put back one of them"
        ) from None
    if store.fingerprint != fingerprint:
        shutil.rmtree(run / "data", ignore_errors=True)
        raise CheckpointError(
            f"the tokens of the run are gone from {run / 'data'}, and {plan.data} is no more the text that they were "
            f"made of; put back one of them as it was, or begin anew elsewhere"
        )


def prepared(run: Path) -> tuple[Any, Any]:
    """The store and the tokenizer in a run's directory."""
    return Store.open(run / "data"), tokenizer_of(run)


def prepare(
    plan: Plan,
    out: Path,
    tokenizer: Any,
    quiet: bool,
    share: bool = True,
    taken: contextlib.ExitStack | None = None,
) -> tuple[Any, Any]:
    """Read the text, train a tokenizer on the training part of it if none is given, and store the tokens in `out`; with
    `share`, by way of the cache, for other runs to use. Until `taken` closes, no other process can begin a run in
    `out`. Raises UsageError if one has."""
    source = source_of(plan, tokenizer)
    if tokenizer is None:
        tokenizer = _train_tokenizer(plan, source)
    if not quiet:
        disk.tell(f"reading {plan.data} with {tokenizer.vocab_size:,} tokens of {plan.text.tokenizer}")
    with disk.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if taken is not None:
        taken.enter_context(folder.lock(out))
        folder.check_free(out, leftovers=LEFTOVERS)  # another may have begun here while the tokenizer was trained
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    tokenizer.save(out / "tokenizer")
    bar = None if quiet else Meter("tokenising")
    build = shared.build if share else Store.build
    store = build(source, encoder_of(plan, tokenizer), out / "data", progress=bar)
    if not quiet:
        for note in store.meta.get("notes", []):  # also of a store that was made before
            disk.tell(note)
    return store, tokenizer


def source_of(plan: Plan, tokenizer: Any) -> Source:
    """What a run reads: the documents of a text, or the rows of a task, which the tokenizer has to fit into a row."""
    encoder = encoder_of(plan, tokenizer)
    if isinstance(encoder, TaskEncoder):
        return rows(plan.data, encoder)
    return cleaning.cleaned(read(plan.data), plan.clean)


def encoder_of(plan: Plan, tokenizer: Any) -> Any:
    """What makes ids of documents: the tokenizer, or of rows what writes them for the task."""
    if not isinstance(plan.objective, RowObjective):
        return tokenizer
    return TaskEncoder(plan.objective.task, tokenizer, plan.context, plan.arch.structure)


def _train_tokenizer(plan: Plan, source: Any) -> Any:
    """A tokenizer of the plan's kind and vocabulary, trained on the part of the text that is not held out."""
    from stemma.data.heldout import training_texts
    from stemma.text import Specials, Tokenizer
    from stemma.text.growing import without_runs

    text = plan.text
    more = tuple(dict.fromkeys([*text.blanks, *text.extras, *tokens(plan.objective, text)]))
    specials = Specials(**{role: getattr(text, role) for role in ROLES}, extra=text.sentinels, more=more)
    texts = training_texts(source, plan.train.val_fraction, plan.seed, plan.train.unit)
    return Tokenizer.train(
        text.tokenizer,
        without_runs(texts) if text.runs else texts,
        plan.dims.vocab - max(0, text.runs - 1),
        specials,
        lowercase=text.lower and text.tokenizer == "wordpiece",
        alphabet=plan.train.alphabet,
    ).grown(0, (), text.runs)
