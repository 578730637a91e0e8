"""The config engine: a table of keys turns a publisher's config.json into a design and back.

Every key of a file is read by a row, ignored with a stated reason, or refused with the nearest known key. After
writing, the file is read again and must give the same design: what a layout cannot express is an error, not a loss.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stemma import families, spec
from stemma.errors import CheckpointError, UsageError, did_you_mean
from stemma.families.declare import Design
from stemma.formats.names import Row
from stemma.nn.parts import Choose, Classify, Dims, Dropout, Heads, LMHead, Normal, Tag

REQUIRED = object()


def same(value: Any, *_: Any) -> Any:
    """The value as it is."""
    return value


@dataclass(frozen=True)
class Key:
    """One key: the paths of the design that it sets, the reference's own default where a file leaves it out (a value,
    or a function of the config), and how its value is read and written. `older`: earlier spellings."""

    name: str
    paths: tuple[str, ...]
    default: Any = REQUIRED
    read: Callable[[Any, Mapping[str, Any]], Any] = same
    write: Callable[[Any, Design], Any] = same
    older: tuple[str, ...] = ()

    def told(self, design: Design) -> Any:
        """What a config says of a design; of a dim that is left to a rule, what the rule gives. Raises UsageError if
        the layout has no word for it."""
        value = spec.get(design, self.paths[0])
        dim = self.paths[0].removeprefix("dims.")
        if dim in Dims.RULES and self.write is same:
            return getattr(design.dims, Dims.RULES[dim])
        return self.write(value, design)

    def spelling(self, config: Mapping[str, Any]) -> str:
        """The name (or names) by which a config has it."""
        return " and ".join(name for name in (self.name, *self.older) if name in config) or self.name

    def value(self, config: Mapping[str, Any]) -> Any:
        for name in (self.name, *self.older):
            if name in config:
                return config[name]
        if self.default is REQUIRED:
            raise CheckpointError(f"config.json has no {self.name!r}, which a model of this type needs")
        return self.default(config) if callable(self.default) else self.default


def key(name: str, *paths: str, default: Any = REQUIRED, **how: Any) -> Key:
    """A key, with less to type."""
    return Key(name, paths, default, **how)


def meant(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name that `word` is one slip of typing away from, else for the nearest."""
    known = list(known)
    slips = [name for name in known if _slip(word, name)]
    return did_you_mean(word, slips) or did_you_mean(word, known)


def _slip(a: str, b: str) -> bool:
    """Whether `a` is `b` with one letter missing, added or replaced, or two neighbours swapped."""
    i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    a, b = a[i:], b[i:]
    return a[1:] == b or a == b[1:] or a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])


def token(value: Any, config: Mapping[str, Any]) -> Any:
    """The id of a token; -1 means that there is none (in the first LLaMA files)."""
    return None if value == -1 else value


def number(value: Any, config: Mapping[str, Any]) -> Any:
    """A whole number, where our own field might also be left out."""
    if not isinstance(value, int):
        raise CheckpointError(f"{value!r} should be a whole number")
    return value


def switch(on: Any, off: Any) -> dict[str, Callable[..., Any]]:
    """`read` and `write` of a key that is true or false where ours is one of two values."""

    def read(value: Any, config: Mapping[str, Any]) -> Any:
        if not isinstance(value, bool):
            raise CheckpointError(f"{value!r} should be true or false")
        return on if value else off

    def write(value: Any, design: Design) -> Any:
        if value not in (on, off):
            raise UsageError(f"this layout has no word for {value!r}")
        return bool(value == on)

    return {"read": read, "write": write}


def several(value: Any, config: Mapping[str, Any]) -> Any:
    """A number, or a list of them as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def ids(*, pad: int | None, bos: int | None, eos: int | None) -> tuple[Key, ...]:
    """The keys of the ids that pad, begin and end a text, with the reference's defaults."""
    return (
        key("pad_token_id", "text.pad_id", default=pad),
        key("bos_token_id", "text.bos_id", default=bos),
        key("eos_token_id", "text.eos_id", default=eos, read=several),
    )


def with_defaults(keys: Iterable[Key], **defaults: Any) -> tuple[Key, ...]:
    """Keys that a layout shares with another one, some with defaults of its own."""
    return tuple(replace(k, default=defaults.get(k.name, k.default)) for k in keys)


def words(table: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """`read` and `write` of a key whose words differ from ours. The first of several that mean the same is written."""

    def read(value: Any, config: Mapping[str, Any]) -> Any:
        if not isinstance(value, str) or value not in table:
            raise CheckpointError(f"{value!r} is not supported; known: {', '.join(table)}{meant(str(value), table)}")
        return table[value]

    def write(value: Any, design: Design) -> Any:
        for theirs, ours in table.items():
            if ours == value:
                return theirs
        raise UsageError(f"this layout has no word for {value!r}")

    return {"read": read, "write": write}


@dataclass(frozen=True)
class Layout:
    """A publisher's layout: `classes` gives the heads of each model class, `fixed` the keys whose other values mean a
    model that is not supported, `unused` keys that change nothing here. `prefix`: what a file of a model with a head
    puts before the names of the body; `bodies`: what another class puts there. `mark`: a key that only this one has,
    where several layouts share a model_type. `rows` is the names table; `renames`, other spellings of parts of names;
    `stray`, tensors that old files hold and nobody needs, as regular expressions. `variants`: what else of the design a
    class changes (an encoder alone); `labels`: of a task head where a config tells no number; `tied_by_file`,
    `bias_by_file`: whether the head is the embeddings, or has a bias, is told by the tensors and not by the config."""

    model_type: str
    families: tuple[str, ...]
    classes: Mapping[str, Heads]
    keys: tuple[Key, ...]
    rows: Callable[[Design], Iterable[Row]]
    prefix: str = ""
    bodies: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    stray: Mapping[str, str] = field(default_factory=dict)
    tied_by_file: bool = False
    bias_by_file: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    labels: int = 2
    mark: str = ""

    @property
    def name(self) -> str:
        """The model_type, with the mark where there is one."""
        return f"{self.model_type} ({self.mark})" if self.mark else self.model_type

    def base(self) -> Design:
        """What a config changes: the first size of the first family, with all heads that keys speak of."""
        first = families.family(self.families[0]).first
        known = (first.arch.heads, *self.classes.values())
        heads = {
            "arch.heads.lm": next((h.lm for h in known if h.lm is not None), None),
            "arch.heads.detect": next((h.detect for h in known if h.detect is not None), None),
        }
        return spec.edit(first, {**heads, "text.bos_id": None, "text.eos_id": None, "text.pad_id": None})


def reasons(reason: str, names: str) -> dict[str, str]:
    """One reason for each of several names."""
    return dict.fromkeys(names.split(), reason)


GENERATION = reasons(
    "read by generation, where there is no generation_config.json",
    "max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k "
    "top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids "
    "num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values "
    "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix",
)
GENERAL: dict[str, str] = {
    **reasons("read elsewhere", "model_type architectures"),
    **reasons(
        "says how the file was made",
        "_name_or_path name_or_path transformers_version _commit_hash _attn_implementation_autoset attn_implementation "
        "finetuning_task task_specific_params tokenizer_class auto_map",
    ),
    **reasons(
        "the loader's own arguments decide", "dtype torch_dtype use_bfloat16 torchscript tf_legacy_loss use_cache"
    ),
    **reasons(
        "what a call returns is fixed here",
        "return_dict output_attentions output_hidden_states output_scores return_dict_in_generate output_past",
    ),
    **reasons("memory in training, not a result", "gradient_checkpointing chunk_size_feed_forward"),
    **reasons("labels of a task head", "id2label label2id num_labels _num_labels problem_type"),
    **reasons("dropout of a task head, which its spec says", "classifier_dropout cls_dropout"),
    **GENERATION,
    **reasons("the tokenizer's files say which token it is", "sep_token_id mask_token_id cls_token_id unk_token_id"),
}
GENERAL_FIXED: dict[str, Any] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}


PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def heads_wanted(layout: Layout, config: Mapping[str, Any]) -> Heads:
    """The heads of the class that a config names, with its number of labels. Raises CheckpointError for others."""
    names = class_names(config)
    if not names:
        return Heads()  # an old file names no class; its heads are what it holds
    named_class = class_in(layout, config)
    if named_class is None:
        raise CheckpointError(
            f"config.json: class {names[0]!r} is not supported; known: {', '.join(layout.classes)}"
            f"{did_you_mean(names[0], layout.classes)}"
        )
    heads = layout.classes[named_class]
    if (field := _counted(heads)) is not None:
        named, number = config.get("id2label"), config.get("num_labels")
        if named is not None and not isinstance(named, Mapping):
            raise CheckpointError(f"config.json: id2label={named!r} should be an object of numbers and names")
        heads = spec.edit(heads, {f"task.{field}": len(named) if named else number or layout.labels})
    if isinstance(heads.task, Classify) and (problem := config.get("problem_type")) is not None:
        words = {theirs: ours for ours, theirs in PROBLEMS.items()}
        if problem not in words:
            hint = did_you_mean(str(problem), words)
            raise CheckpointError(
                f"config.json: problem_type={problem!r} is not known; known: {', '.join(words)}{hint}"
            )
        heads = spec.edit(heads, {"task.problem": words[problem]})
    elif isinstance(heads.task, Classify) and heads.task.labels == 1:
        heads = spec.edit(heads, {"task.problem": "regression"})  # the convention where no problem is named
    return heads


def _counted(heads: Heads) -> str | None:
    """The field of a task head that a config's number of labels sets."""
    match heads.task:
        case Classify() | Tag():
            return "labels"
        case Choose(through=int()):
            return "through"
    return None


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes that a config names. Raises CheckpointError if it has no list of names for them."""
    listed = config.get("architectures") or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise CheckpointError(f"config.json: architectures={listed!r} should be a list of class names")
    return listed


def class_in(layout: Layout, config: Mapping[str, Any]) -> str | None:
    """The first class that a config names and the layout knows."""
    return next((name for name in class_names(config) if name in layout.classes), None)


def label_names(config: Mapping[str, Any], heads: Heads) -> tuple[str, ...]:
    """What the scores of a task head are called, in order; empty where a config does not say it of so many."""
    field, named = _counted(heads), config.get("id2label")
    if field is None or not isinstance(named, Mapping):
        return ()
    count = getattr(heads.task, field)
    if {str(i) for i in named} != {str(i) for i in range(count)}:
        return ()
    by_number = {str(i): name for i, name in named.items()}
    return tuple(str(by_number[str(i)]) for i in range(count))


def write_labels(heads: Heads, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys that say what a task head scores, and what it is called where `names` are as many."""
    out: dict[str, Any] = {}
    if (field := _counted(heads)) is not None:
        count = getattr(heads.task, field)
        names = names if len(names) == count else tuple(f"LABEL_{i}" for i in range(count))
        out["id2label"] = {str(i): name for i, name in enumerate(names)}
        out["label2id"] = {name: i for i, name in enumerate(names)}
    if isinstance(heads.task, Classify):
        out["problem_type"] = PROBLEMS[heads.task.problem]
    return out


def read_config(layout: Layout, config: Mapping[str, Any]) -> tuple[Design, dict[str, str]]:
    """The design that a config describes and the keys that were not used, with reasons.

    Raises CheckpointError for an unknown key (with the nearest known one), a missing one and an unsupported value.
    """
    base = layout.base()
    known = {n for k in layout.keys for n in (k.name, *k.older)}
    fixed = {**GENERAL_FIXED, **layout.fixed}
    named = class_in(layout, config)
    if named in layout.variants:  # an encoder alone, of which some files say what it is and some what it is part of
        fixed["is_encoder_decoder"] = (False, True)
    unused = {**GENERAL, **layout.unused}
    ignored: dict[str, str] = {}
    for name, value in config.items():
        if name in known:
            continue
        if name in fixed:
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in allowed and value is not None:
                raise CheckpointError(f"config.json: {name}={value!r} is not supported; only {allowed[0]!r} is")
            ignored[name] = "only one value is supported, and it has it"
        elif name in unused:
            ignored[name] = unused[name]
        else:
            hint = meant(name, [*known, *fixed, *unused])
            raise CheckpointError(
                f"config.json: no key {name!r} is known for model_type {layout.model_type!r}"
                f"{hint or '; if it says nothing of the network, take it out'}"
            )
    changes: dict[str, Any] = {}
    for k in layout.keys:
        value = k.value(config)
        try:
            changes |= dict.fromkeys(k.paths, k.read(value, config))
        except (CheckpointError, UsageError) as error:
            name = k.spelling(config)
            raise CheckpointError(
                f"config.json: {error}" if name in str(error) else f"config.json: {name}: {error}"
            ) from None
    try:
        return spec.edit(spec.edit(base, changes), layout.variants.get(named or "", {})), ignored
    except UsageError as error:
        raise CheckpointError(f"config.json: {_in_their_words(error, layout, config, changes, base)}") from None


def _in_their_words(
    error: UsageError, layout: Layout, config: Mapping[str, Any], changes: Mapping[str, Any], base: Design
) -> str:
    """An error about the design in terms of the config's keys."""
    text = str(error)
    names = {path: k.spelling(config) for k in reversed(layout.keys) for path in k.paths}
    for path in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(path)}\b", names[path], text)
    if text != str(error):
        return text
    for k in layout.keys:  # it names no path: the key whose value alone gives the same error is meant
        try:
            spec.edit(base, {path: changes[path] for path in k.paths})
        except UsageError as alone:
            if str(alone) == str(error):
                return f"{k.spelling(config)}: {text}"
    return text


def write_config(layout: Layout, design: Design) -> dict[str, Any]:
    """The config.json of a design. Raises UsageError if the layout has no way to say something that the design has."""
    heads, base = design.arch.heads, layout.base()
    config: dict[str, Any] = {"model_type": layout.model_type, "architectures": [class_name(layout, design)]}
    config |= write_labels(heads)
    if heads.lm is None:  # a body alone still says how a head on it would be
        design = replace(design, arch=replace(design.arch, heads=replace(heads, lm=base.arch.heads.lm)))
    for k in layout.keys:
        if not _reaches(design, k.paths[0]):
            raise UsageError(f"the {layout.model_type!r} layout has {k.name!r}, and this design no {k.paths[0]}")
        config[k.name] = k.told(design)
    again, _ = read_config(layout, config)
    old, new = (_comparable(d, layout, heads) for d in (design, again))
    refuse_loss(f"the {layout.model_type!r} layout", lost(old, new))
    return config


def lost(
    design: Design, again: Design, diff: Callable[[Design, Design], list[spec.Change]] = spec.diff
) -> list[spec.Change]:
    """What a network loses when it is read as `again`, training apart."""
    a, b = (replace(d, arch=replace(d.arch, init=Normal(), dropout=Dropout())) for d in (design, again))
    return [c for c in diff(a, b) if c.path.split(".")[0] in ("arch", "dims")]


def refuse_loss(what: str, changes: list[spec.Change]) -> None:
    """Raises UsageError if a layout, called `what`, loses something."""
    if changes:
        first = changes[0]
        raise UsageError(f"{what} cannot say {first.path}={first.old} (it would read {first.new})")


def _reaches(design: Design, path: str) -> bool:
    try:
        spec.get(design, path)
    except UsageError:
        return False
    return True


def class_name(layout: Layout, design: Design) -> str:
    """The publisher's class for a design: the one that has its heads, else the one that has most of them. Raises
    UsageError if it has none for the task, or for the structure."""
    heads = design.arch.heads
    known = {n: h for n, h in layout.classes.items() if _form(h) == _form(heads)}
    if not known:
        raise UsageError(f"the {layout.model_type!r} layout has no class for the task head {heads.task}")
    known = {n: h for n, h in known.items() if _fits(design, layout.variants.get(n, {}), layout)}
    if not known:
        raise UsageError(f"the {layout.model_type!r} layout has no class for this head on an {design.arch.structure}")

    def shared(has: Heads) -> tuple[bool, int, bool]:
        pairs = list(zip(present(has), present(heads), strict=True))
        fits = all(ours for theirs, ours in pairs if theirs)
        return fits, sum(theirs and ours for theirs, ours in pairs), type(has.lm) is type(heads.lm)

    return max(known, key=lambda name: shared(known[name]))


def _fits(design: Design, variant: Mapping[str, Any], layout: Layout) -> bool:
    """Whether a design has what a class changes, and nothing that only other classes change."""
    if any(spec.get(design, path) != value for path, value in variant.items()):
        return False
    others = [v for v in layout.variants.values() if v != variant]
    return not any(v and all(spec.get(design, path) == value for path, value in v.items()) for v in others)


def _form(heads: Heads) -> Any:
    """What must agree for a task head to be of the same class: all but its labels and rates."""
    if heads.task is None:
        return None
    free = {"labels": 2, "through": 2, "problem": "single", "dropout": 0.0}
    return spec.edit(heads.task, {k: v for k, v in free.items() if getattr(heads.task, k, None) is not None})


def present(heads: Heads) -> tuple[bool, ...]:
    """Which of the heads of pretraining there are."""
    return heads.lm is not None, heads.pooler is not None, heads.pair, heads.detect is not None


def _comparable(design: Design, layout: Layout, heads: Heads) -> Design:
    """Without what a config need not record: which heads stand on the pooler, and whether the head has a bias where
    its tensor tells."""
    own = design.arch.heads
    head = own.lm if heads.lm is not None else None
    if layout.bias_by_file and isinstance(head, LMHead):
        head = replace(head, bias=False)
    heads = Heads(head, detect=own.detect if heads.detect is not None else None)
    return replace(design, arch=replace(design.arch, heads=heads))
