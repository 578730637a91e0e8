"""Forward passes and decoding of every family against transformers: same weights, same inputs, one run, interleaved.

    python bench/families.py [--threads 2] [--repeats 9] [--rows 8] [--length 128] [--new 48] [--only NAME] [--json FILE]

One small model a family, made by transformers with random weights, saved once, loaded by both. `forward`: a batch of
rows with some padding, logits and all. `decode`: the whole call of `generate`, greedy, one row. A ratio is how many
times faster Stemma is: the median of the paired ratios, with their range.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

import stemma

BERT = dict(vocab_size=8000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
            max_position_embeddings=514)  # fmt: skip
LLAMA = dict(vocab_size=8000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=688,
             num_key_value_heads=4, max_position_embeddings=1024, pad_token_id=0)  # fmt: skip
GQA = LLAMA | dict(num_key_value_heads=2, head_dim=64)
T5 = dict(vocab_size=8000, d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4, decoder_start_token_id=0)
BART = dict(vocab_size=8000, d_model=256, encoder_layers=4, decoder_layers=4, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=1024, decoder_ffn_dim=1024, max_position_embeddings=512,
            forced_eos_token_id=None)  # fmt: skip
DEBERTA = BERT | dict(relative_attention=True, pos_att_type="c2p|p2c", type_vocab_size=0, position_biased_input=False)
GPT = dict(vocab_size=8000, n_positions=1024, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0)

# family -> the reference's class and config
ROWS: dict[str, tuple[str, Any]] = {
    "bert": ("BertForMaskedLM", hf.BertConfig(**BERT)),
    "roberta": ("RobertaForMaskedLM", hf.RobertaConfig(**BERT)),
    "albert": ("AlbertForMaskedLM", hf.AlbertConfig(**BERT, embedding_size=64)),
    "electra": ("ElectraForPreTraining", hf.ElectraConfig(**BERT, embedding_size=128)),
    "deberta": ("DebertaForMaskedLM", hf.DebertaConfig(**DEBERTA)),
    "deberta-v2": (
        "DebertaV2ForMaskedLM",
        hf.DebertaV2Config(**DEBERTA, position_buckets=64, norm_rel_ebd="layer_norm", share_att_key=True),
    ),
    "xlm": ("XLMWithLMHeadModel", hf.XLMConfig(vocab_size=8000, emb_dim=256, n_layers=4, n_heads=4, n_langs=2)),
    "xlnet": ("XLNetLMHeadModel", hf.XLNetConfig(vocab_size=8000, d_model=256, n_layer=4, n_head=4, d_inner=1024)),
    "distilbert": ("DistilBertForMaskedLM", hf.DistilBertConfig(vocab_size=8000, dim=256, n_layers=4, n_heads=4, hidden_dim=1024)),
    "gpt1": ("OpenAIGPTLMHeadModel", hf.OpenAIGPTConfig(**GPT)),
    "gpt2": ("GPT2LMHeadModel", hf.GPT2Config(**GPT)),
    "llama": ("LlamaForCausalLM", hf.LlamaConfig(**LLAMA)),
    "mistral": ("MistralForCausalLM", hf.MistralConfig(**GQA, sliding_window=64)),
    "mixtral": ("MixtralForCausalLM", hf.MixtralConfig(**GQA, num_local_experts=4, sliding_window=None)),
    "qwen2": ("Qwen2ForCausalLM", hf.Qwen2Config(**(LLAMA | dict(num_key_value_heads=2)))),
    "qwen3": ("Qwen3ForCausalLM", hf.Qwen3Config(**GQA)),
    "gemma2": ("Gemma2ForCausalLM", hf.Gemma2Config(**GQA, sliding_window=64)),
    "gemma3": ("Gemma3ForCausalLM", hf.Gemma3TextConfig(**GQA, sliding_window=64)),
    "command-r": ("CohereForCausalLM", hf.CohereConfig(**LLAMA)),
    "glm4": ("GlmForCausalLM", hf.GlmConfig(**GQA)),
    "t5": ("T5ForConditionalGeneration", hf.T5Config(**T5)),
    "mt5": ("MT5ForConditionalGeneration", hf.MT5Config(**T5)),
    "bart": ("BartForConditionalGeneration", hf.BartConfig(**BART)),
    "mbart": ("MBartForConditionalGeneration", hf.MBartConfig(**BART, decoder_start_token_id=2)),
}  # fmt: skip


def paired(we: Callable[[], Any], they: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of both, taken in turn, and the ratio of each pair."""
    we(), they()
    times: list[tuple[float, float]] = []
    for turn in range(repeats):
        pair = {}
        for call in (we, they) if turn % 2 else (they, we):
            start = time.perf_counter()
            call()
            pair[call] = time.perf_counter() - start
        times.append((pair[we], pair[they]))
    ratios = sorted(b / a for a, b in times)
    return {
        "ratio": round(statistics.median(ratios), 2),
        "range": f"{ratios[len(ratios) // 10]:.2f}-{ratios[-1 - len(ratios) // 10]:.2f}",
        "ours ms": round(1e3 * statistics.median(a for a, _ in times), 1),
        "theirs ms": round(1e3 * statistics.median(b for _, b in times), 1),
    }


def writes(model: Any) -> bool:
    return type(model).__name__.endswith(("LMHeadModel", "CausalLM", "ConditionalGeneration")) and not isinstance(
        model, hf.XLNetLMHeadModel | hf.XLMWithLMHeadModel
    )


def measured(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of one family."""
    kind, config = ROWS[name]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        getattr(hf, kind)(config).save_pretrained(folder)
        theirs = getattr(hf, kind).from_pretrained(folder).eval()
        ours = stemma.load(folder)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 8000, (args.rows, args.length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -args.length // 4 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids.flip(0)
    with torch.inference_mode():
        forward = paired(lambda: ours(**inputs), lambda: theirs(**inputs), args.repeats)
    row: dict[str, Any] = {"family": name, "forward": forward}
    if writes(theirs):
        prompt = ids[1:2, :32]
        fixed = dict(max_new_tokens=args.new, min_new_tokens=args.new, do_sample=False, pad_token_id=0)

        def we() -> list[int]:
            return stemma.generate(ours, prompt.tolist(), max_new_tokens=args.new, min_new_tokens=args.new)[0].ids

        def they() -> list[int]:
            return theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **fixed)[0, -args.new :].tolist()

        row["decode"] = paired(we, they, max(3, args.repeats // 2))
        row["same tokens"] = we() == they()
    return row


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    out = []
    for name in ROWS:
        if args.only in (None, name):
            out.append(measured(name, args))
            print(line(out[-1]), flush=True)
    return out


def line(row: dict[str, Any]) -> str:
    cells = [row["family"]]
    for what in ("forward", "decode"):
        m = row.get(what)
        cells += [f"{m['ours ms']}", f"{m['theirs ms']}", f"**{m['ratio']:.2f}** ({m['range']})"] if m else ["", "", ""]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--new", type=int, default=48)
    parser.add_argument("--only")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hf.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {hf.__version__}, {args.threads} threads, float32\n")
    print(
        "| family | forward ms | reference ms | ratio | decode ms | reference ms | ratio |\n|---|---|---|---|---|---|---|"
    )
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2))
