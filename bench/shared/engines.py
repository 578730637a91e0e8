"""One engine in a process of its own, for bench/decode.py: `PYTHON engines.py ENGINE PATH DTYPE THREADS`.

Seconds are those of a clock, or with STEMMA_CLOCK=processor in the environment those of the processor, which on one thread
leave out what neighbours took. Each line of standard input is a job, {"prompts": lists of ids, "new": tokens to write after each}; each line of standard
output what became of it, {"prefill": seconds to the first token, "decode": seconds for the others, "tokens": lists}. All
engines decode greedily and end no text early. The processes of llama.cpp and CTranslate2 import nothing of Stemma.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

clock = time.process_time if os.environ.get("STEMMA_CLOCK") == "processor" else time.perf_counter
Job = Callable[[list[list[int]], int], tuple[list[list[int]], list[float]]]  # -> tokens, the time of each step


def stemma_engine(path: str, dtype: str, threads: int) -> Job:
    import torch

    import stemma
    from stemma import executor
    from stemma.decoding import stream

    torch.set_num_threads(threads)
    few = dtype not in ("float32", "bfloat16", "float16")  # the types are those of the file
    model = stemma.load(path, quantize="keep") if few else stemma.load(path, dtype=dtype)
    found = executor.of(model.eval())
    if isinstance(found, executor.Reason):
        print(f"stemma: PyTorch, for {found.words}", file=sys.stderr)

    def run(prompts: list[list[int]], new: int) -> tuple[list[list[int]], list[float]]:
        times: list[float] = []
        tokens: list[list[int]] = [[] for _ in prompts]
        for event in stream(model, prompts, max_new_tokens=new, ignore_eos=True, temperature=0):
            tokens[event.row].append(event.token)
            if event.row == len(prompts) - 1:
                times.append(clock())
        return tokens, times

    return run


def transformers_engine(path: str, dtype: str, threads: int) -> Job:
    import torch
    import transformers as hf

    torch.set_num_threads(threads)
    both = hf.AutoConfig.from_pretrained(path).is_encoder_decoder
    kind: Any = hf.AutoModelForSeq2SeqLM if both else hf.AutoModelForCausalLM
    model = kind.from_pretrained(path, dtype=getattr(torch, dtype)).eval()

    def run(prompts: list[list[int]], new: int) -> tuple[list[list[int]], list[float]]:
        times: list[float] = []

        def note(ids: Any, scores: Any, **_: Any) -> Any:
            times.append(clock())
            return torch.zeros(len(ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            stopping_criteria=hf.StoppingCriteriaList([note]),
        )
        return out[:, -new:].tolist(), times

    return run


def ctranslate2_engine(path: str, dtype: str, threads: int) -> Job:
    import ctranslate2

    generator = ctranslate2.Generator(path, device="cpu", compute_type=dtype, intra_threads=threads, inter_threads=1)

    def run(prompts: list[list[int]], new: int) -> tuple[list[list[int]], list[float]]:
        times: list[float] = []
        tokens: list[list[int]] = [[] for _ in prompts]

        def note(result: Any) -> bool:
            tokens[result.batch_id].append(result.token_id)
            if result.batch_id == len(prompts) - 1:
                times.append(clock())
            return False

        generator.generate_batch(
            [[f"t{i}" for i in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
            callback=note,
            max_batch_size=0,
        )
        return tokens, times

    return run


def llama_cpp_engine(path: str, dtype: str, threads: int) -> Job:
    import llama_cpp as lib
    import numpy as np

    silent = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(silent, ctypes.c_void_p(0))
    params = lib.llama_model_default_params()
    params.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(path.encode(), params)
    assert model, f"llama.cpp does not load {path}"
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    contexts: dict[tuple[int, int], Any] = {}

    def context_for(rows: int, length: int) -> Any:
        if (rows, length) not in contexts:
            context = lib.llama_context_default_params()
            context.n_ctx, context.n_batch, context.n_ubatch = rows * length, 2048, 512
            context.n_seq_max, context.n_threads, context.n_threads_batch = rows, threads, threads
            contexts[rows, length] = lib.llama_init_from_model(model, context), lib.llama_batch_init(4096, 0, 1)
        return contexts[rows, length]

    def read(context: Any, batch: Any, items: list[tuple[int, int, int, bool]]) -> None:
        """Tokens as (row, token, place, whether its logits are wanted)."""
        batch.n_tokens = len(items)
        for i, (row, token, place, wanted) in enumerate(items):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0], batch.logits[i] = row, wanted
        assert lib.llama_decode(context, batch) == 0

    def best(context: Any, at: int) -> int:
        return int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, at), (vocab,)).argmax())

    def run(prompts: list[list[int]], new: int) -> tuple[list[list[int]], list[float]]:
        length = -(-(len(prompts[0]) + new) // 256) * 256
        context, batch = context_for(len(prompts), length)
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        times: list[float] = []
        tokens: list[list[int]] = [[] for _ in prompts]
        first = []
        for row, prompt in enumerate(prompts):
            read(context, batch, [(row, t, i, i == len(prompt) - 1) for i, t in enumerate(prompt)])
            first.append(best(context, len(prompt) - 1))
        for step in range(new):
            if step:
                read(context, batch, [(r, t[-1], len(prompts[r]) + step - 1, True) for r, t in enumerate(tokens)])
            found = [best(context, r) for r in range(len(prompts))] if step else first
            for row, token in enumerate(found):
                tokens[row].append(token)
            times.append(clock())
        return tokens, times

    run.silent = silent  # type: ignore[attr-defined]  # llama.cpp calls it
    return run


ENGINES = {
    "stemma": stemma_engine,
    "transformers": transformers_engine,
    "ctranslate2": ctranslate2_engine,
    "llama.cpp": llama_cpp_engine,
}


def main() -> None:
    name, path, dtype, threads = sys.argv[1:]
    run = ENGINES[name](path, dtype, int(threads))
    for line in sys.stdin:
        job = json.loads(line)
        start = clock()
        tokens, times = run(job["prompts"], job["new"])
        found = {"prefill": times[0] - start, "decode": times[-1] - times[0], "tokens": tokens}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
