"""Run by a Python that has llama_cpp (see test_llama_cpp.py): jobs as JSON on standard input, results on standard
output. It knows nothing of Stemma.

A job: {"path": a GGUF file, "prompts": lists of ids, "new": tokens to add, "forced": ids that a decoder is given after
each prompt, "texts": what to tokenise}. A result: {"tokens": what followed each prompt, "logits": after the prompt and
each forced id, "hidden": of an encoder, "ids": of each text}.

Other jobs: {"path", "quantise": [a file to write, llama.cpp's number of its type], "keep_split"}, and {"blocks": ggml's
number of a type, "name", "of": an array of numbers, "to": the beginning of two names, for its bytes and the numbers that
these give}. Their results are empty.
"""

import ctypes
import glob
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


def quantise(job):
    path, number = job["quantise"]
    params = L.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.keep_split = number, 1, bool(job.get("keep_split"))
    assert L.llama_model_quantize(job["path"].encode(), path.encode(), params) == 0
    return {}


def blocks(job):
    """The numbers of a file as blocks of a type, and what ggml makes of the blocks. Each column has the same weight."""
    (path,) = glob.glob(os.path.join(os.path.dirname(L.__file__), "lib", "libggml-base.so"))
    ggml, x = ctypes.CDLL(path), np.load(job["of"])
    ggml.ggml_row_size.restype, ggml.ggml_row_size.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]
    raw = np.zeros((len(x), ggml.ggml_row_size(job["blocks"], x.shape[1])), np.uint8)
    weights, out = np.ones(x.shape[1], np.float32), np.empty(x.size, np.float32)
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    where = x.ctypes.data, raw.ctypes.data
    done = ggml.ggml_quantize_chunk(
        job["blocks"], *where, 0, *x.shape, weights.ctypes.data if job["name"].startswith("IQ") else None
    )
    assert done == raw.size
    name = job["name"].lower()
    back = getattr(ggml, f"dequantize_row_{name[:-1] + 'K' if name.endswith('_k') else name}")
    back.argtypes, back.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    back(raw.ctypes.data, out.ctypes.data, x.size)
    np.save(job["to"] + ".raw.npy", raw)
    np.save(job["to"] + ".npy", out.reshape(x.shape))
    return {}


def run(job):
    if "quantise" in job:
        return quantise(job)
    if "blocks" in job:
        return blocks(job)
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
