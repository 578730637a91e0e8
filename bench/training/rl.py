"""The sides of `bench/align.py` for PPO: Stemma's loop, and a plain one of PyTorch and transformers."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROMPTS, NEW, MINIBATCH, ASKED = 16, 48, 8, 120  # answers of a step, their tokens, answers of an update, prompt tokens
KL, CLIP, RATE = 0.02, 0.2, 5e-6
REWARD = "def vowels(prompt, answer, record):\n    return sum(c in 'aeiou' for c in answer) / (1 + len(answer))\n"


def ours(folder: Path, out: Path, precision: str) -> Any:
    """Stemma's loop before its first step, as `stemma align ppo` makes it."""
    from stemma import formats
    from stemma.alignment.plans import resolve
    from stemma.data import Store
    from stemma.tasks.encoder import TaskEncoder, rows
    from stemma.train.assemble import fit_to_tokenizer, loop_of, with_steps

    draw = random.Random(1)
    prompts = ["".join(draw.choices(string.ascii_lowercase, k=ASKED)) for _ in range(200)]
    (out / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    (out / "reward.py").write_text(REWARD)
    how = {
        "objective.prompts": PROMPTS, "objective.minibatch": MINIBATCH, "objective.max_new_tokens": NEW,
        "objective.gates.finished": None, "objective.gates.spread": None, "objective.kl": KL, "recipe.lr": RATE,
        "train.precision": precision, "train.context": 256,
    }  # fmt: skip
    judge = f"{out / 'reward.py'}:vowels"
    plan = resolve("ppo", str(folder), str(out / "prompts.jsonl"), rewards=[judge], template="plain", overrides=how)
    tokenizer = formats.load(folder, device="meta").tokenizer
    assert tokenizer is not None
    plan = with_steps(fit_to_tokenizer(plan, tokenizer), 1000, True)
    encoder = TaskEncoder(plan.objective.task, tokenizer, plan.context, "decoder")
    store = Store.build(rows(plan.data, encoder), encoder, out / "store")
    return loop_of(plan, tokenizer, store.split(0.1, 1)[0])


class Plain:
    """PPO as one writes it with transformers: `generate`, one forward pass of each network over all answers, and updates
    over minibatches. Logits are computed for the answers alone."""

    def __init__(self, folder: Path, loop: Any, precision: str) -> None:
        import transformers as hf

        def network() -> Any:
            return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        self.loop, self.bf16 = loop, precision == "bf16"
        self.policy, self.reference, self.critic = network().train(), network().eval(), network().model.train()
        self.head = nn.Linear(self.policy.config.hidden_size, 1, bias=False)
        learning = [*self.policy.parameters(), *self.critic.parameters(), *self.head.parameters()]
        self.learning, self.optimizer = learning, torch.optim.AdamW(learning, lr=RATE, weight_decay=0.0)
        self.slot = 0

    def autocast(self) -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16)

    def logprobs(self, model: Any, ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        """Of the tokens behind the prompts, B N."""
        with self.autocast():
            logits = model(ids, attention_mask=mask, position_ids=places, logits_to_keep=NEW + 1).logits[:, :-1]
        return -F.cross_entropy(logits.float().transpose(1, 2), ids[:, -NEW:], reduction="none")

    def values(self, ids: Tensor, mask: Tensor, places: Tensor) -> Tensor:
        with self.autocast():
            states = self.critic(ids, attention_mask=mask, position_ids=places).last_hidden_state
            return self.head(states[:, -NEW - 1 : -1]).float()[..., 0]

    def asked(self) -> tuple[Tensor, Tensor]:
        """The next prompts, padded on the left."""
        source = self.loop.source
        rows = [source.prompts[source.order[self.slot + i][0]].ids for i in range(PROMPTS)]
        self.slot += PROMPTS
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def __call__(self) -> int:
        """Take a step; returns the tokens that were read and written."""
        prompts, real = self.asked()
        self.policy.eval()
        with torch.no_grad(), self.autocast():
            ids = self.policy.generate(
                prompts, attention_mask=real, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=NEW,
                min_new_tokens=NEW, pad_token_id=0,
            )  # fmt: skip
        self.policy.train()
        mask = torch.cat([real, torch.ones(PROMPTS, NEW, dtype=torch.int64)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        tokenizer = self.loop.objective.tokenizer
        answers = [tokenizer.decode(row) for row in ids[:, -NEW:].tolist()]
        scores = torch.tensor([sum(c in "aeiou" for c in text) / (1 + len(text)) for text in answers])
        with torch.no_grad():
            old, reference = (self.logprobs(net, ids, mask, places) for net in (self.policy, self.reference))
            values = self.values(ids, mask, places)
        rewards = -KL * (old - reference)
        rewards[:, -1] += scores
        ahead, found = torch.zeros(PROMPTS), torch.zeros_like(values)
        for t in reversed(range(NEW)):
            following = values[:, t + 1] if t + 1 < NEW else torch.zeros(PROMPTS)
            ahead = rewards[:, t] + following - values[:, t] + 0.95 * ahead
            found[:, t] = ahead
        returns = found + values
        found = (found - found.mean()) * torch.rsqrt(found.var(correction=0) + 1e-8)
        for part in torch.randperm(PROMPTS).split(MINIBATCH):
            given = ids[part], mask[part], places[part]
            ratio = (self.logprobs(self.policy, *given) - old[part]).exp()
            gain = torch.minimum(found[part] * ratio, found[part] * ratio.clamp(1 - CLIP, 1 + CLIP))
            new = self.values(*given)
            near = values[part] + (new - values[part]).clamp(-CLIP, CLIP)
            errors = torch.maximum((new - returns[part]).square(), (near - returns[part]).square())
            (-gain.mean() + 0.1 * 0.5 * errors.mean()).backward()
            nn.utils.clip_grad_norm_(self.learning, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return int(mask.sum())

    def finish(self) -> None:
        return


def apart(loop: Any, plain: Plain) -> float:
    """The largest distance between the log-probabilities that both sides give the same answers."""
    experience = loop.source.collect(loop.cursor, 0)
    worst = 0.0
    for one, own in zip(experience.rollouts, experience.facts, strict=True):
        ids = torch.tensor([[*one.prompt.ids, *one.ids]])
        with torch.no_grad():
            logits = plain.policy(ids).logits[0, len(one.prompt.ids) - 1 : -1].float()
        found = logits.log_softmax(-1).gather(1, torch.tensor(one.ids)[:, None])[:, 0]
        worst = max(worst, float((found - own["old"]).abs().max()))
    return worst


def stepper(loop: Any) -> Callable[[], int]:
    """A step of Stemma, which returns the tokens that it read and wrote."""

    def step() -> int:
        before = loop.tokens
        loop.advance()
        return int(loop.tokens - before)

    return step
