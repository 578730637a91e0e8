"""Faults that the default tests must notice: one small change of the source each, over all rooms.

`test_mutants.py` (slow) plants each in a copy of the checkout and runs the default tests of the named files on it;
at least one of them has to fail. A fault is found by its text, wherever in the source that stands, so that moving code
costs nothing here; renaming what a text mentions does."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old`, which occurs once in the source, becomes `new`; `tests`: files whose default tests are run on it."""

    name: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # nn
    Mutant("nn: a window is a token wider", "mask & (far < window)", "mask & (far <= window)", "parity"),
    Mutant("nn: later documents see earlier ones", "inputs.qdoc[:, queries, None] == inputs.kdoc[:, None, keys]", "inputs.qdoc[:, queries, None] >= inputs.kdoc[:, None, keys]", "harness"),
    Mutant("nn: empty cache slots count as seen", "EMPTY = 2**40", "EMPTY = 0", "generate"),
    Mutant("nn: scores are scaled as sums of one", "(spec.scale_width or dims.width) * terms) ** -0.5", "(spec.scale_width or dims.width)) ** -0.5", "parity"),
    Mutant("nn: training sees a token ahead", 'float("-inf")).triu(1)', 'float("-inf")).triu(2)', "objectives harness"),
    Mutant("nn: RMSNorm in half precision without eps", "wide.square().mean(-1, keepdim=True) + self.eps)", "wide.square().mean(-1, keepdim=True))", "parity harness"),
    Mutant("nn: NTK scaling by another power", "self.spec.base * factor ** (self.width / (self.width - 2))) ** i", "self.spec.base * factor) ** i", "parity decoders"),
    Mutant("nn: T5's farthest bucket is missing", "(exact + grown.long()).clamp(max=n - 1)", "(exact + grown.long()).clamp(max=n - 2)", "parity"),
    Mutant("nn: RoBERTa's positions begin one early", "self.first = 0 if padding is None else padding + 1", "self.first = 0 if padding is None else padding", "parity tree"),
    Mutant("nn: weights of experts are not normalised", "(weights / weights.sum(-1, keepdim=True) if self.normalised else weights)", "weights", "parity"),
    Mutant("nn: GPT-2's residual scale is gone", "std /= math.sqrt(2 * dims.layers)", "std /= math.sqrt(dims.layers)", "decoders harness tree config"),
    Mutant("nn: XLNet's queries see themselves", "kpos[:, None, :] >= given.places[:, :, None]", "kpos[:, None, :] > given.places[:, :, None]", "xlnet generate"),
    Mutant("nn: a window in blocks is a token wider", "tile._replace(upper=0, lower=1 - window)", "tile._replace(upper=0, lower=-window)", "blocks"),
    Mutant("nn: dropout in blocks draws one mask for all", "place = score.seed, tile.rows.start, tile.queries.start, tile.keys.start", "place = score.seed, 0", "blocks"),
    # declarations
    Mutant("declare: the architecture may change in tuning", 'path.split(".")[1:2] != ["mask"]]', 'path.split(".")[1:2] == ["nothing"]]', "tree"),
    Mutant("declare: a ramp rounds down", "max(1, round(full * share / self.multiple))", "max(1, int(full * share / self.multiple))", "ramp"),
    # objectives
    Mutant("objectives: masks are fewer in short texts", "int(self.spec.rate * len(here) + rng.random())", "int(self.spec.rate * len(here))", "objective_masking objectives"),
    Mutant("objectives: static masking never repeats", "draw.generator(self.seed, purposes.MASK, document, self.copy(epoch))", "draw.generator(self.seed, purposes.MASK, document, epoch)", "objective_masking objectives"),
    Mutant("objectives: the z-loss is not squared", "z * logits.logsumexp(-1).square().sum() if z else loss", "z * logits.logsumexp(-1).sum() if z else loss", "objectives engine optimisers"),
    Mutant("objectives: a chunk's gradient is dropped", "g if held is None else held.add_(g)", "g if held is None else held", "objectives engine"),
    Mutant("objectives: windows overlap wrongly", "if fill <= stride < fill + take:", "if fill < stride <= fill + take:", "objectives train"),
    Mutant("objectives: a generator keeps its own samples as replaced", "scatter(0, where, ids[where] != goal)", "scatter(0, where, ids[where] == goal)", "objective_rtd"),
    Mutant("objectives: the detector counts padding", "each[known].sum()", "each.sum()", "objective_rtd"),
    Mutant("objectives: BART's spans lose a token more", "lost[min(start + length, len(tokens))] -= 1", "lost[min(start + length + 1, len(tokens))] -= 1", "objective_seq2seq"),
    Mutant("objectives: segments of a pair share nothing", "cut = min(over, abs(keep_a - keep_b))", "cut = 0", "objective_orders xlnet"),
    # data
    Mutant("data: more is held out than asked", "out = draw < fraction", "out = draw < 2 * fraction", "data building"),
    Mutant("data: pieces of a document are read in one go", "return self._store._pieces(self.indices[owner], block, part)", "return self", "pieces"),
    Mutant("data: held-out blocks are twice the share", "target = fraction * sizes.sum()", "target = 2 * fraction * sizes.sum()", "pieces"),
    Mutant("objectives: every piece of a document is closed", "after = self.after if view.closed(document) else []", "after = self.after", "pieces"),
    Mutant("train: epochs are counted without their last", "if read >= epochs:", "if read >= epochs - 0.1:", "pieces"),
    Mutant("data: a mixture gives a draw twice", "return Draw(j, starts[j] + at)", "return Draw(j, starts[j] + max(at - 1, 0))", "mixtures data"),
    Mutant("data: shares grow with the wrong power", "(size / max(sizes)) ** alpha", "(size / max(sizes)) ** (1 / alpha if alpha else 0)", "mixtures languages objective_languages"),
    Mutant("data: shuffling by fewer rounds", "for turn in range(6):", "for turn in range(5):", "data objectives"),
    # train
    Mutant("train: gains with a row a head are matrices", 'if p.ndim < 2 or uses.get(n) == "vector"', "if p.ndim < 2", "optimisers"),
    Mutant("formats: absolute positions of DeBERTa are left out", "return Disentangled(absolute=_biased(config))", "return Disentangled()", "settings parity"),
    Mutant("nn: a decoder is as wide as its encoder", "Stack(arch, dims.decoder, depth", "Stack(arch, dims, depth", "settings seq2seq"),
    Mutant("data: test files are trained on", "if any(_plain(other) in known for other in _training(name))", "if False", "data"),
    Mutant("train: biases decay", 'n in rest], "weight_decay": 0.0', 'n in rest], "weight_decay": spec.weight_decay', "optimisers train"),
    Mutant("train: the warm-up begins at zero", "return lr * step / warm", "return lr * (step - 1) / warm", "train optimisers"),
    Mutant("train: Adam's second moment forgets", "torch._foreach_addcmul_(second, grads, grads, 1 - beta2)", "torch._foreach_addcmul_(second, grads, grads, beta2)", "optimisers"),
    Mutant("train: the mean of weights starts slower", "(1 + self.updates) / (10 + self.updates)", "(1 + self.updates) / (20 + self.updates)", "engine"),
    Mutant("planning: gradients of earlier micro-batches are forgotten", "float(found.held.max()) + there if later", "float(found.held.max()) if later", "aligned_plans"),
    Mutant("train: what the reference says is of the next text", "int(end - size), int(size)", "int(end), int(size)", "references"),
    Mutant("train: one high loss is a spike", "return min(last) > middle", "return max(last) > middle", "engine engine_pairs"),
    Mutant("train: dropout is the same in each step", "_mix(self.plan.seed, self.step + 1,", "_mix(self.plan.seed, 1,", "train engine"),
    Mutant("runs: a best checkpoint is removed", "if old not in kept and old.name not in named:", "if old not in kept:", "best"),
    Mutant("runs: a worse evaluation is the best", "value > measured(text, best.values)", "value != measured(text, best.values)", "best"),
    Mutant("runs: a changed length begins the schedule anew", "place += (at - begin) * pace", "place = 0.0", "best"),
    Mutant("runs: a run by the clock forgets the end", "there = self.seconds - elapsed - closing - 2 * self.saving", "there = self.seconds", "clock"),
    Mutant("runs: a change of the length is in no checkpoint", "self.forced = True", "self.forced = False", "clock"),
    Mutant("runs: batches made ahead are of the old length", "trainer.move(trainer.cursor)", "pass", "clock"),
    Mutant("train: one checkpoint too many is kept", "% every == 0][-keep:]", "% every == 0][-keep - 1 :]", "train engine accidents"),
    Mutant("train: damaged checkpoints pass", "if _sum(path / file) != expected:", "if _sum(path / file) == -1:", "train accidents scale"),
    # adapters
    Mutant("nn: places behind a prefix are not shifted", "pos = pos + by if pos.ndim == 2", "pos = pos if pos.ndim == 2", "prompts"),
    Mutant("nn: packed documents do not see the prompt", "same | (inputs.kdoc[:, None, keys] == EVERY) if inputs.front else same", "same", "prompts"),
    Mutant("nn: answers do not see their prompt", "inputs.roots[:, queries, None] == inputs.kdoc", "inputs.qdoc[:, queries, None] == inputs.kdoc", "continuations"),
    Mutant("objectives: the mean of the others in a group holds the answer itself", "(samples / max(1, samples - 1))", "1.0", "policy_gradient"),
    Mutant("objectives: GSPO's ratio is a product", 'mean=ratio == "mean"', "mean=False", "policy_gradient"),
    Mutant("objectives: GKD's divergence is turned around", "return beta * theirs + (1 - beta) * own", "return beta * own + (1 - beta) * theirs", "policy_gradient"),
    Mutant("alignment: dropped answers are learnt", 'own["keep"] = own["keep"] * stays', 'own["keep"] = own["keep"] * 1', "grpo"),
    Mutant("alignment: a reward may be NaN", 'if found != found or found in (float("inf"), float("-inf")):', 'if found in (float("inf"), float("-inf")):', "rewards"),
    Mutant("alignment: a reward that depends on the batch goes through", "if again != before:", "if again is None:", "rewards"),
    Mutant("objectives: the reference keeps its adapters", "adapters.without(found) if net is None", "contextlib.nullcontext() if net is None", "preference"),
    Mutant("objectives: the reference has dropout", "        model.eval()\n        if trains and", "        if trains and", "preference"),
    Mutant("objectives: in bf16 the reference takes another kernel", "if trains and autocast_on(", "if not trains and autocast_on(", "preference"),
    Mutant("objectives: DPO's margin has another sign", "d = c - r - spec.margin", "d = c - r + spec.margin", "preference"),
    Mutant("objectives: a reward's margin has another sign", "gap = better - worse - margins", "gap = better - worse + margins", "reward_models"),
    Mutant("objectives: every pair of answers weighs alike", '[1 / len(examples[k]["pairs"]) for k, *_ in pairs]', "[1.0 for k, *_ in pairs]", "reward_models"),
    Mutant("objectives: a reward is read at padding", "return ids[: int(kept[-1]) + 1] if len(kept) else ids", "return ids", "reward_models"),
    Mutant("objectives: rewards have dropout", "        model.eval()\n        try:\n            for some in _chunks", "        try:\n            for some in _chunks", "reward_models"),
    Mutant("objectives: XLNet's head reads padding", "        read = heads.pooler\n", "        pass\n", "reward_models"),
    Mutant("conversations: equal scores are no tie", "scores[0] == scores[1])\n    margin", "scores[0] < scores[1])\n    margin", "comparisons"),
    Mutant("tuning: safety does not come first", "tagged | (safety.sigmoid() < threshold)", "tagged", "reward_models"),
    Mutant("objectives: KTO's divergence may be negative", '(sums / batch["groups"]).clamp_min(0)', '(sums / batch["groups"])', "preference"),
    Mutant("nn: a soft prompt is padding", "F.pad(mask, (n, 0), value=1)", "F.pad(mask, (n, 0), value=0)", "prompts"),
    Mutant("rewrites: T5's prefix is cut as a decoder's", "step = 4 if self.cross else 2", "step = 2", "prompts"),
    Mutant("rewrites: a merge forgets the rows of tokens", "return with_weight(plain, self.put(plain", "return with_weight(plain, (plain", "token_rows"),
    Mutant("formats: an embedding's A and B are not turned", "tensor.t() if across else tensor", "tensor", "token_rows"),
    # decoding
    Mutant("decoding: a run of tokens may repeat at the end", "for i in range(len(ids) - n + 1) if", "for i in range(len(ids) - n) if", "rules"),
    Mutant("decoding: top-p takes too few", "beyond = mass - ordered.softmax(-1) >= self.top_p", "beyond = mass >= self.top_p", "generate rules"),
    Mutant("decoding: beams are ranked by another length", "self.ended.append((score / len(beam.ids) ** self.power, beam))", "self.ended.append((score / (len(beam.ids) + 1) ** self.power, beam))", "generate rules seq2seq"),
    # formats
    Mutant("formats: neighbours and halves are mixed up", "heads = tensor.reshape(-1, 2, width // 2, *tensor.shape[1:])", "heads = tensor.reshape(-1, width // 2, 2, *tensor.shape[1:])", "meta gguf_write llama2c"),
    Mutant("formats: Q6_K is off by one", "_groups(_f32(q) - 32, _f32(block", "_groups(_f32(q) - 31, _f32(block", "gguf"),
    Mutant("formats: a repeated tensor is not compared", "if not torch.equal(self.source.get(other), self.source.get(name)):", "if torch.equal(self.source.get(other), self.source.get(name) + 1):", "checkpoints"),
    Mutant("formats: stray tensors are taken", "if reason is None:\n                raise CheckpointError(f\"{self.where} holds", "if reason is False:\n                raise CheckpointError(f\"{self.where} holds", "checkpoints"),
    # text, planning, report, command line
    Mutant("text: a byte changes its letter", "rest = [byte for byte in range(256) if byte not in set(shown)]", "rest = [byte for byte in range(255, -1, -1) if byte not in set(shown)]", "text meta"),
    Mutant("planning: shards are sent twice, not thrice", "* 3 * one * (1 - 1 / mesh.fsdp)", "* 2 * one * (1 - 1 / mesh.fsdp)", "planning"),
    Mutant("parallel: a part of the loss is not summed", "[total, *sums.values()]", "[total]", "scale"),
    Mutant("report: children come in no order", 'k(i)}">{escape(family.name)}</span>\' if i is not None', 'k(0)}">{escape(family.name)}</span>\' if i is not None', "report"),
    Mutant("cli: a checkpoint's error has another exit code", "exit_code = 4", "exit_code = 1", "cli accidents"),
]  # fmt: skip
