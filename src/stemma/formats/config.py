"""The config engine: a table of keys turns a publisher's config.json into a design and back.

Every key of a file is read by a row, ignored with a stated reason, or refused with the nearest known key. After
writing, the config is read again and must give the same design: what a layout cannot express is an error, not a loss.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stemma import spec
from stemma.declare.family import Design
from stemma.errors import CheckpointError, UsageError
from stemma.formats.classes import class_in, class_name, write_labels
from stemma.formats.keys import Layout, flat, meant, nested, reasons
from stemma.nn.parts import Dropout, Heads, LMHead, Normal

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


def read_config(layout: Layout, config: Mapping[str, Any]) -> tuple[Design, dict[str, str]]:
    """The design of a config, and its unused keys with reasons.

    Raises CheckpointError for an unknown key (with the nearest known one), a missing one and an unsupported value.
    """
    base, named = layout.base(), class_in(layout, config)
    config = flat(config, layout.sections)
    ignored = _ignored(layout, config, named)
    changes: dict[str, Any] = {}
    for k in layout.keys:
        if k.when is not None and not k.when(config):
            continue
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


def _ignored(layout: Layout, config: Mapping[str, Any], named: str | None) -> dict[str, str]:
    """The keys of a flat config that change nothing, with reasons. `named`: its class. Raises CheckpointError for an
    unknown key and for an unsupported value of a fixed one.

    General keys (`torch_dtype`) mean in a nested object what they mean outside of it."""
    known = {n for k in layout.keys for n in (k.name, *k.older)}
    general, fixed = {**GENERAL}, {**GENERAL_FIXED, **layout.fixed}
    for section in layout.sections:
        general |= {f"{section}.{name}": why for name, why in GENERAL.items()}
        fixed = {f"{section}.{name}": value for name, value in GENERAL_FIXED.items()} | fixed
    if named in layout.variants:  # an encoder alone: some files describe it, some the whole model
        fixed["is_encoder_decoder"] = (False, True)
    heads, own = layout.of_class(None), layout.of_class(named)
    unused = general | dict(layout.unused) | dict.fromkeys(heads, "of a head that its class does not have")
    ignored: dict[str, str] = {}
    for name, value in config.items():
        if name in known:
            continue
        if name in own and value != own[name]:
            raise CheckpointError(f"config.json: {name}={value!r} is not supported; only {own[name]!r} is")
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
    return ignored


def _in_their_words(
    error: UsageError, layout: Layout, config: Mapping[str, Any], changes: Mapping[str, Any], base: Design
) -> str:
    """An error about the design, in terms of the config's keys."""
    text = str(error)
    names = {path: k.spelling(config) for k in reversed(layout.keys) for path in k.paths}
    for path in sorted(names, key=len, reverse=True):
        text = re.sub(rf"\b{re.escape(path)}\b", names[path], text)
    if text != str(error):
        return text
    for k in layout.keys:  # it names no path: find the key whose value alone gives the same error
        try:
            spec.edit(base, {path: changes[path] for path in k.paths})
        except UsageError as alone:
            if str(alone) == str(error):
                return f"{k.spelling(config)}: {text}"
    return text


def write_config(layout: Layout, design: Design) -> dict[str, Any]:
    """The config.json of a design. Raises UsageError if the layout cannot express it."""
    heads, base = design.arch.heads, layout.base()
    config: dict[str, Any] = {"model_type": layout.model_type, "architectures": [class_name(layout, design)]}
    config |= write_labels(heads)
    if heads.lm is None:  # without a head, its keys describe the usual one
        design = replace(design, arch=replace(design.arch, heads=replace(heads, lm=base.arch.heads.lm)))
    for k in layout.keys:
        if not _reaches(design, k.paths[0]):
            if k.when is not None:
                continue
            raise UsageError(f"the {layout.model_type!r} layout has {k.name!r}, and this design no {k.paths[0]}")
        if not _takes(k.write, value := spec.get(design, k.paths[0])):
            raise UsageError(f"the {layout.model_type!r} layout has no word for {k.paths[0]}={value}")
        written = k.to_config(design)
        if not (k.rare and written == k.default):
            config[k.name] = written
    config = nested(config, layout.sections)
    again, _ = read_config(layout, config)
    old, new = (_comparable(d, layout, heads) for d in (design, again))
    refuse_loss(f"the {layout.model_type!r} layout", lost(old, new))
    return config


def lost(
    design: Design, again: Design, diff: Callable[[Design, Design], list[spec.Change]] = spec.diff
) -> list[spec.Change]:
    """What changes when a network is written and read again as `again`; dropout and initialisation do not count."""
    a, b = (replace(d, arch=replace(d.arch, init=Normal(), dropout=Dropout())) for d in (design, again))
    return [c for c in diff(a, b) if c.path.split(".")[0] in ("arch", "dims")]


def refuse_loss(what: str, changes: list[spec.Change]) -> None:
    """Raises UsageError if the layout `what` loses something."""
    if changes:
        first = changes[0]
        raise UsageError(f"{what} cannot express {first.path}={first.old} (it would read {first.new})")


def _reaches(design: Design, path: str) -> bool:
    try:
        spec.get(design, path)
    except UsageError:
        return False
    return True


def _takes(write: Callable[[Any, Design], Any], value: Any) -> bool:
    """Whether a value is of the kind of component that `write` is declared to take; of other types nothing is asked."""
    hint = next(iter(typing.get_type_hints(write).values()), Any) if inspect.isfunction(write) else Any
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not any(inspect.isclass(kind) and issubclass(kind, spec.Spec) for kind in kinds):
        return True
    return any(inspect.isclass(kind) and isinstance(value, kind) for kind in kinds)


def _comparable(design: Design, layout: Layout, heads: Heads) -> Design:
    """A design without what a config need not record: heads on the pooler, and the head's bias where its tensor
    tells."""
    own = design.arch.heads
    head = own.lm if heads.lm is not None else None
    if layout.bias_by_file and isinstance(head, LMHead):
        head = replace(head, bias=False)
    heads = Heads(head, detect=own.detect if heads.detect is not None else None)
    return replace(design, arch=replace(design.arch, heads=heads))
