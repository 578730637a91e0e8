"""Contrastive search (Su et al. 2022, section 3.3): likely tokens whose states are unlike those before them, so that a
text neither repeats itself nor is drawn."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stemma.decoding.requests import GenerationRequest
from stemma.decoding.rules import constrained, dead_end
from stemma.decoding.session import NotFinite
from stemma.decoding.sessions import check
from stemma.nn.cache import Cache
from stemma.nn.inputs import Inputs
from stemma.nn.model import Model


def search(model: Model, request: GenerationRequest) -> tuple[list[int], list[float]]:
    """The new tokens of a text, and the log-probability of each. A step reads all candidates as rows of one cache, and
    goes on with the row of the best."""
    check(model, request)
    alpha, k, rules = request.penalty_alpha, request.sampler.top_k, request.rules
    seen, ids, logprobs = list(request.prompt), list[int](), list[float]()
    cache = Cache(model.arch, model.dims.layers, 1, model.ahead + len(seen) + rules.max_new_tokens, even=True)
    hidden = model.decode(Inputs(torch.tensor([seen], device=model.device), cache=cache))[0]  # T D
    past = F.normalize(hidden.float(), dim=-1)
    while len(ids) < rules.max_new_tokens and not (ids and ids[-1] in rules.eos):
        logits = model.logits(hidden[-1:]).float()
        if not bool(logits.isfinite().all()):
            raise NotFinite([0], logits)
        scores = constrained(logits, [(rules, seen, len(ids))])[0]
        if not bool((scores > -torch.inf).any()):
            raise dead_end()
        likely = scores.softmax(-1).topk(min(k, len(scores)))
        cache.keep(torch.zeros_like(likely.indices))
        states = model.decode(Inputs(likely.indices[:, None], cache=cache))[:, 0]  # k D
        alike = (F.normalize(states.float(), dim=-1) @ past.T).amax(1)
        scored = torch.where(likely.values > 0, (1 - alpha) * likely.values - alpha * alike, -torch.inf)
        best = scored.argmax()[None]
        cache.keep(best)
        hidden = states[best]
        past = torch.cat([past, F.normalize(hidden.float(), dim=-1)])
        ids.append(int(likely.indices[best]))
        seen.append(ids[-1])
        logprobs.append(float(logits.log_softmax(-1)[0, ids[-1]]))
    return ids, logprobs
