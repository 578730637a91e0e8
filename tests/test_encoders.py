"""ALBERT, ELECTRA, XLM, XLM-R and the distilled encoders: what parity and the harness do not say of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import stemma
from cases.encoders import BARE, CASES, MASKED
from oracle import saved
from stemma import families, formats, spec
from stemma.errors import CheckpointError, UsageError
from stemma.nn.model import Model, count
from stemma.nn.parts import Choose, Classify, Heads, MLMHead, Summary
from stemma.text import Tokenizer, spm

# what the hub's repositories hold, with the leftovers of the releases that wrote them
ALBERT = {
    "architectures": ["AlbertForMaskedLM"], "bos_token_id": 2, "classifier_dropout_prob": 0.1, "down_scale_factor": 1,
    "embedding_size": 128, "eos_token_id": 3, "gap_size": 0, "hidden_size": 768, "initializer_range": 0.02,
    "inner_group_num": 1, "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
    "model_type": "albert", "net_structure_type": 0, "num_attention_heads": 12, "num_hidden_groups": 1,
    "num_hidden_layers": 12, "num_memory_blocks": 0, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30000,
}  # fmt: skip
ELECTRA = {
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "initializer_range": 0.02,
    "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "electra", "type_vocab_size": 2,
    "vocab_size": 30522,
}  # fmt: skip
XLM = {
    "architectures": ["XLMWithLMHeadModel"], "asm": False, "attention_dropout": 0.1, "bos_index": 0, "bos_token_id": 0,
    "causal": False, "dropout": 0.1, "emb_dim": 1024, "embed_init_std": 0.02209708691207961, "end_n_top": 5,
    "eos_index": 1, "gelu_activation": True, "id2lang": {"0": "en", "1": "fr"}, "init_std": 0.02, "is_encoder": True,
    "lang2id": {"en": 0, "fr": 1}, "layer_norm_eps": 1e-12, "mask_index": 5, "max_position_embeddings": 512,
    "max_vocab": -1, "min_count": 0, "model_type": "xlm", "n_heads": 8, "n_langs": 2, "n_layers": 6, "pad_index": 2,
    "pad_token_id": 2, "same_enc_dec": True, "share_inout_emb": True, "sinusoidal_embeddings": False, "start_n_top": 5,
    "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "first",
    "summary_use_proj": True, "unk_index": 3, "use_lang_emb": True, "vocab_size": 64139,
}  # fmt: skip
QUIET = {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0}
LOUD = {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}
SMALL = {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
HUB: dict[str, dict[str, Any]] = {
    "albert-base-v1": ALBERT | LOUD | {"hidden_act": "gelu"},
    "albert-base-v2": ALBERT | QUIET | {"hidden_act": "gelu_new"},
    "electra-small": ELECTRA | SMALL | {"architectures": ["ElectraForPreTraining"], "embedding_size": 128,
                                        "num_hidden_layers": 12},
    "electra-small-generator": ELECTRA | SMALL | {"architectures": ["ElectraForMaskedLM"], "embedding_size": 128,
                                                  "num_hidden_layers": 12},
    "electra-large-generator": ELECTRA | SMALL | {"architectures": ["ElectraForMaskedLM"], "embedding_size": 1024,
                                                  "num_hidden_layers": 24},
    "xlm-mlm-enfr-1024": XLM,
    "xlm-clm-enfr-1024": XLM | {"causal": True},
    "xlm-mlm-17-1280": XLM | {"emb_dim": 1280, "n_heads": 16, "n_layers": 16, "n_langs": 17, "use_lang_emb": False,
                              "vocab_size": 200000, "lang2id": {chr(97 + i): i for i in range(17)}},
    "distilbert-base-uncased": {
        "activation": "gelu", "architectures": ["DistilBertForMaskedLM"], "attention_dropout": 0.1, "dim": 768,
        "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02, "max_position_embeddings": 512,
        "model_type": "distilbert", "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1,
        "seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522},
    "xlm-roberta-base": {
        "architectures": ["XLMRobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu",
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "model_type": "xlm-roberta", "num_attention_heads": 12,
        "num_hidden_layers": 12, "output_past": True, "pad_token_id": 1, "position_embedding_type": "absolute",
        "type_vocab_size": 1, "vocab_size": 250002, **LOUD},
    "distilroberta-base": {
        "architectures": ["RobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu",
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 514, "model_type": "roberta", "num_attention_heads": 12, "num_hidden_layers": 6,
        "pad_token_id": 1, "type_vocab_size": 1, "vocab_size": 50265, **LOUD},
    "minilm-l12-h384-uncased": {
        "hidden_act": "gelu", "hidden_size": 384, "initializer_range": 0.02, "intermediate_size": 1536,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 12,
        "num_hidden_layers": 12, "type_vocab_size": 2, "vocab_size": 30522, **LOUD},
}  # fmt: skip


@pytest.mark.parametrize("size", HUB)
def test_hub_configs_give_the_published_size(size: str) -> None:
    """Families of one network are told apart by their sizes, heads and rates."""
    design, owner, _, unused = formats.read_design(HUB[size])
    declared = families.design(size)
    assert owner is families.family(size) and design.name == declared.name
    assert design.dims == declared.dims and design.arch.dropout == declared.arch.dropout
    for part in ("structure", "position", "norm", "residual", "attention", "mask", "mlp", "embed_norm"):
        assert getattr(design.arch, part) == getattr(declared.arch, part), part
    ids = ("bos_id", "eos_id", "pad_id")
    assert [getattr(design.text, i) for i in ids] == [getattr(declared.text, i) for i in ids]
    assert all(unused.values())


def test_bodies_and_heads_have_their_exact_counts() -> None:
    for wanted, heads in ((BARE, Heads()), (MASKED, Heads(MLMHead()))):
        designs = {n: spec.edit(families.design(n), {"arch.heads": heads}) for n in wanted}
        assert {n: count(d.arch, d.dims) for n, d in designs.items()} == wanted


def test_a_config_of_another_size_is_of_the_first_family_of_its_network() -> None:
    raw = HUB["minilm-l12-h384-uncased"] | {"hidden_size": 48, "architectures": ["BertModel"]}
    assert formats.read_design(raw)[1] is families.family("bert")
    raw = HUB["electra-small-generator"] | {"hidden_size": 48}
    assert formats.read_design(raw)[1] is families.family("electra-generator")
    assert formats.read_design(raw | {"architectures": ["ElectraForPreTraining"]})[1] is families.family("electra")


@pytest.mark.parametrize(
    ("size", "change", "word"),
    [
        ("xlm-mlm-enfr-1024", {"asm": True}, "asm"),
        ("xlm-mlm-enfr-1024", {"summary_type": "mean", "architectures": ["XLMForMultipleChoice"]}, "'first'"),
        ("xlm-mlm-enfr-1024", {"n_langs": 0}, "n_langs"),
        ("xlm-mlm-enfr-1024", {"use_lang_emb": "yes"}, "use_lang_emb"),
        ("xlm-mlm-enfr-1024", {"lang2id": {"en": 0, "fr": 2}}, "lang2id"),
        ("xlm-mlm-enfr-1024", {"causal": "no"}, "causal"),
        ("electra-small", {"summary_activation": "tanh", "architectures": ["ElectraForMultipleChoice"]}, "'gelu'"),
        ("albert-base-v1", {"num_hidden_groups": 13}, "num_hidden_groups=13"),
        ("albert-base-v1", {"embedding_size": None}, "embedding_size"),
    ],
)
def test_what_a_layout_cannot_mean_is_refused(size: str, change: dict[str, Any], word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        formats.read_design(HUB[size] | change)


def test_the_search_for_answers_of_xlm_is_refused_by_name(tmp_path: Path) -> None:
    import json

    saved("xlm-answer", tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"architectures": ["XLMForQuestionAnswering"]}))
    with pytest.raises(CheckpointError, match="'XLMForQuestionAnswering' is not supported"):
        stemma.load(tmp_path)


# ---------------------------------------------------------------- sharing and widths


def test_shared_layers_are_one_set_of_weights() -> None:
    model = stemma.build("albert-base-v2", d_model=24, heads=4, d_ff=32, vocab=50, embed=8, layers=6)
    assert model.encoder is not None and len(model.encoder.blocks) == 1 and len(model.encoder.order) == 6
    grouped = stemma.build(
        "albert-base-v2", d_model=24, heads=4, d_ff=32, vocab=50, embed=8, layers=6, groups=3, inner=2
    )
    assert [number for number, _ in grouped.encoder.order] == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5]  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["albert-groups", "electra-detect", "electra-generator", "xlm-clm", "xlm-choose"])
def test_a_save_is_byte_for_byte_what_it_was(case: str, tmp_path: Path) -> None:
    saved(case, tmp_path / "a")
    stemma.load(tmp_path / "a").save(tmp_path / "b")
    stemma.load(tmp_path / "b").save(tmp_path / "c")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "b" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()


def test_a_discriminator_and_its_generator_are_one_layout(tmp_path: Path) -> None:
    """The body of either takes the other's head only where it is asked for."""
    saved("electra-generator", tmp_path / "g")
    model = stemma.load(tmp_path / "g")
    assert model.arch.heads == Heads(lm=MLMHead()) and model.family.name == "electra-generator"
    both = stemma.load(tmp_path / "g", new=["detect"])
    out = both(torch.tensor([[5, 6]]))  # the LM head keeps `logits`
    assert both.detect is not None and out.detector_logits.shape == (1, 2) and out.logits.shape[:2] == (1, 2)
    saved("electra-detect-relu", tmp_path / "d")
    found = stemma.load(tmp_path / "d").arch.heads
    assert found.lm is None and found.detect is not None and found.detect.act == "relu"


def test_rates_of_task_heads() -> None:
    """RoBERTa's and ELECTRA's heads drop twice, DistilBERT's and XLM's once, each where its authors do."""

    def kept(model: Model) -> tuple[float, float]:
        task = model.task
        assert task is not None
        return (task.summary.rate if task.summary is not None and task.summary.dense is not None else 0.0), task.rate

    sizes = dict(d_model=24, heads=4, d_ff=32, vocab=50, layers=1)
    for name, task, want in [
        ("roberta-base", "classify", (0.1, 0.1)),
        ("electra-base", "classify", (0.1, 0.1)),
        ("electra-base", "choose", (0.0, 0.1)),
        ("distilbert-base", "classify", (0.0, 0.2)),
        ("xlm-mlm-en-2048", "classify", (0.0, 0.1)),
        ("albert-base-v1", "classify", (0.0, 0.1)),
    ]:
        assert kept(stemma.build(name, task=task, **sizes)) == want, (name, task)


def test_a_new_head_of_xlm_chooses_through_its_labels() -> None:
    model = stemma.build("xlm-mlm-en-2048", task=Choose(Summary(act=None), through=5), d_model=24, heads=4, layers=1)
    assert model.task is not None and model.task.through is not None and model.task.through.out_features == 5
    assert model(torch.randint(9, (2, 3, 4))).logits.shape == (2, 3)


def test_the_rate_before_a_pair_head_acts_in_training_only() -> None:
    model = stemma.build("albert-base-v2", {"arch.dropout.pair": 0.5}, d_model=24, heads=4, d_ff=32, vocab=50, layers=1)
    ids = torch.randint(9, (2, 6))
    assert torch.equal(model(ids).seq_relationship_logits, model(ids).seq_relationship_logits)
    model.train()
    a, b = model(ids), model(ids)
    assert torch.equal(a.pooled, b.pooled) and not torch.equal(a.seq_relationship_logits, b.seq_relationship_logits)


def test_positions_may_begin_as_sines() -> None:
    import transformers as hf

    changes = {"arch.init.positions": "sines", "dims.context": 30}
    ours = stemma.build("xlm-mlm-en-2048", changes, d_model=24, heads=4, layers=1, vocab=50)
    theirs = hf.XLMModel(hf.XLMConfig(emb_dim=24, n_heads=4, n_layers=1, vocab_size=50, max_position_embeddings=30,
                                      sinusoidal_embeddings=True))  # fmt: skip
    table = ours.encoder.position.table.weight  # type: ignore[union-attr]
    torch.testing.assert_close(table, theirs.position_embeddings.weight, rtol=0, atol=1e-5)
    design = formats.read_design(HUB["xlm-mlm-enfr-1024"] | {"sinusoidal_embeddings": True})[0]
    assert design.arch.init.positions == "sines"  # type: ignore[union-attr]


# ---------------------------------------------------------------- languages


def test_a_text_goes_on_in_its_language(tmp_path: Path) -> None:
    saved("xlm-clm", tmp_path)
    model = stemma.load(tmp_path)
    assert model.text.languages == ("en", "fr", "de", "ro")
    prompt = [7, 12, 33, 8]

    def greedy(language: int | None) -> list[int]:
        ids = list(prompt)
        for _ in range(10):
            batch = torch.tensor([ids])
            langs = None if language is None else torch.full_like(batch, language)
            with torch.no_grad():
                ids.append(int(model(batch, langs=langs).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    options: dict[str, Any] = dict(max_new_tokens=10, ignore_eos=True)
    for language, number in (("de", 2), (2, 2), ("2", 2), ("fr", 1), (None, None)):
        assert stemma.generate(model, [prompt], language=language, **options)[0].ids == greedy(number)
    assert greedy(2) != greedy(None) != greedy(1)
    two, other = (stemma.generate(model, [prompt], num_beams=2, language=n, **options)[0].ids for n in ("de", "fr"))
    assert two != other


def test_languages_that_are_none_are_refused(tmp_path: Path) -> None:
    saved("xlm-clm", tmp_path / "a")
    model = stemma.load(tmp_path / "a")
    for wrong in ("fra", 4, -1, "4"):
        with pytest.raises(UsageError, match="none of this model's: en, fr, de, ro"):
            stemma.generate(model, [[5]], language=wrong)
    saved("xlm-clm-one", tmp_path / "b")
    one = stemma.load(tmp_path / "b")
    with pytest.raises(UsageError, match="no languages"):
        stemma.generate(one, [[5]], language="en")
    with pytest.raises(UsageError, match="no languages"):
        one(torch.tensor([[5]]), langs=torch.tensor([[0]]))


def test_names_of_languages_are_kept(tmp_path: Path) -> None:
    model = stemma.build("xlm-clm-enfr-1024", d_model=24, heads=4, layers=1, vocab=50, d_ff=96)
    model.save(tmp_path)
    again = stemma.load(tmp_path)
    assert again.text.languages == ("en", "fr") and again.family.name == "xlm-clm" and again.dims == model.dims


# ---------------------------------------------------------------- vocabularies as they were published


LINES = [
    f"The king of {i}, and {i + 7}, went to the old house; the queen saw {3 * i}, too. Nobody knows" for i in range(99)
]
SPOKEN = [
    "The Queen saw the HOUSE of 8, 12, and 19, too", "naïve Straße, café!", "the <mask> house", "the [MASK] house", "  old  ",
    "''the king'' and ``the queen``", "the king</s><s>[CLS]", "東京 king", "",
]  # fmt: skip


def published(folder: Path, model_type: str) -> Path:
    """A folder with a SentencePiece file as the publisher's, and no tokenizer.json."""
    import json

    import sentencepiece

    folder.mkdir()
    own: dict[str, Any] = {}
    if model_type == "albert":
        own = dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(folder / "m"), vocab_size=160, minloglevel=3, num_threads=1,
        hard_vocab_limit=False, **own,
    )  # fmt: skip
    raw = (folder / "m.model").read_bytes()
    if model_type == "albert":  # a piece that a comma ends after a number: such a model has them
        pair = next(
            t.encode() for t, _, kind in spm.parse(raw, "m").pieces if len(t.encode()) == 2 and kind == spm.NORMAL
        )
        raw = raw.replace(b"\n\x02" + pair, b"\n\x027,", 1)
    (folder / ("spiece.model" if model_type == "albert" else "sentencepiece.bpe.model")).write_bytes(raw)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize("model_type", ["albert", "xlm-roberta"])
def test_vocabularies_of_sentencepiece_equal_the_reference(model_type: str, tmp_path: Path) -> None:
    import transformers as hf

    folder = published(tmp_path / "a", model_type)
    kind = hf.AlbertTokenizer if model_type == "albert" else hf.XLMRobertaTokenizer
    ours, theirs = Tokenizer.load(folder), kind.from_pretrained(folder)
    ours.save(tmp_path / "b")
    for tokenizer in (ours, Tokenizer.load(tmp_path / "b")):
        assert tokenizer.vocab_size == len(theirs) and tokenizer.kind == "unigram"
        for text in SPOKEN:
            assert tokenizer.encode(text, allow_special=True) == theirs(text)["input_ids"], text
        assert tokenizer.encode_pair("the king", "the queen")[0] == theirs("the king", "the queen")["input_ids"]
        ids = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        assert ids == (theirs.pad_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    if model_type == "albert":  # ALBERT's authors cut such a piece, which the reference forgets without tokenizer.json
        assert ours.id("7,") is not None and ours.id("7,") not in ours.encode("7, 8")


def test_words_cut_by_moses_are_refused(tmp_path: Path) -> None:
    """Cut in another way they would be other words, and their ids wrong without a sound."""
    saved("xlm-mlm", tmp_path)
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match="Moses"):
        stemma.load(tmp_path)
    assert stemma.load(tmp_path, tokenizer=False).tokenizer is None


def test_a_vocabulary_in_another_order_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path / "a", "albert")
    (folder / "config.json").write_text('{"model_type": "xlm-roberta"}')
    with pytest.raises(CheckpointError, match="as XLM-R's does"):
        Tokenizer.load(folder)


def test_names_in_objectives_are_sizes_of_the_tree() -> None:
    for family in families.tree().values():
        for size in family:
            goal = family[size].objective
            for field in ("teacher", "generator"):
                if (name := getattr(goal, field, None)) is not None:
                    assert families.design(name).name, size


def test_every_class_of_the_layouts_is_tried() -> None:
    tried = {name for name, _, _ in CASES.values()}
    for model_type in ("albert", "electra", "xlm", "xlm-roberta", "xlm-roberta-xl", "distilbert"):
        assert set(formats.LAYOUTS[model_type].classes) <= tried
    assert isinstance(families.family("distilbert").tasks["classify"].task, Classify)
