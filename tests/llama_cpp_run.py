"""Run by a Python that has llama_cpp (see test_llama_cpp.py): jobs as JSON on standard input, results on standard
output. It knows nothing of Stemma.

A job: {"path": a GGUF file, "prompts": lists of ids, "new": tokens to add, "forced": ids that a decoder is given after
each prompt, "texts": what to tokenise}. A result: {"tokens": what followed each prompt, "logits": after the prompt and
each forced id, "hidden": of an encoder, "ids": of each text}.
"""

import ctypes
import json
import os
import sys

import llama_cpp as L
import numpy as np

log = L.llama_log_callback(
    lambda level, text, data: sys.stderr.write(text.decode()) if "STEMMA_DEBUG" in os.environ else None
)
L.llama_log_set(log, ctypes.c_void_p(0))


def fill(batch, ids, start, want):
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
        batch.logits[i] = want == "all" or i == len(ids) - 1


def row(pointer, n):
    return np.ctypeslib.as_array(pointer, (n,)).astype(np.float64).tolist()


def run(job):
    params = L.llama_model_default_params()
    params.n_gpu_layers = 0
    model = L.llama_model_load_from_file(job["path"].encode(), params)
    assert model, "llama.cpp does not load " + job["path"]
    vocab = L.llama_model_get_vocab(model)
    size, width = L.llama_vocab_n_tokens(vocab), L.llama_model_n_embd(model)
    out = {"tokens": [], "logits": [], "hidden": [], "ids": []}
    for text in job.get("texts", []):
        raw = text.encode()
        room = (L.llama_token * 4096)()
        n = L.llama_tokenize(vocab, raw, len(raw), room, 4096, True, False)
        out["ids"].append(list(room[:n]))
    both = L.llama_model_has_encoder(model) and L.llama_model_has_decoder(model)
    context = L.llama_context_default_params()
    context.n_ctx, context.n_batch, context.n_ubatch, context.n_threads, context.n_threads_batch = 256, 256, 256, 1, 1
    context.type_k = context.type_v = 0  # F32, so that the cache rounds nothing
    context.flash_attn_type = 0
    context.embeddings = bool(job.get("encoder"))
    if job.get("encoder"):
        context.pooling_type = 0
    for prompt in job.get("prompts", []):
        for forced in [None] if job.get("encoder") else [None, job["forced"]]:
            c = L.llama_init_from_model(model, context)
            assert c, "llama.cpp makes no context"
            batch = L.llama_batch_init(256, 0, 1)
            step = prompt
            if both:
                fill(batch, prompt, 0, "all")
                assert L.llama_encode(c, batch) == 0
                step = [L.llama_model_decoder_start_token(model)]
            if job.get("encoder"):
                fill(batch, prompt, 0, "all")
                assert L.llama_decode(c, batch) == 0
                out["hidden"].append([row(L.llama_get_embeddings_ith(c, i), width) for i in range(len(prompt))])
            elif forced is None:  # one at a time, the likeliest
                told, at = [], 0
                for _ in range(job["new"]):
                    fill(batch, step, at, "last")
                    assert L.llama_decode(c, batch) == 0
                    told.append(int(np.argmax(row(L.llama_get_logits_ith(c, len(step) - 1), size))))
                    at, step = at + len(step), told[-1:]
                out["tokens"].append(told)
            else:  # all at once
                ids = step + forced
                fill(batch, ids, 0, "all")
                assert L.llama_decode(c, batch) == 0
                out["logits"].append([row(L.llama_get_logits_ith(c, i), size) for i in range(len(step) - 1, len(ids))])
            L.llama_batch_free(batch)
            L.llama_free(c)
    L.llama_model_free(model)
    return out


if __name__ == "__main__":
    stdout = os.dup(1)  # llama.cpp prints to it
    os.dup2(2, 1)
    L.llama_backend_init()
    with os.fdopen(stdout, "w") as results:
        json.dump([run(job) for job in json.load(sys.stdin)], results)
