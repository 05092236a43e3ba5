"""Tiny random checkpoints of the text architectures that people use, each with a tokenizer of its style, made here."""

import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doubles.reviews import CLASSES, FILLERS

WORDS = (*CLASSES, *FILLERS)
VOCABULARY_SIZE = 330
SPREAD = 0.15  # of weights; with the usual ones, models this small give about the same for every text
# A style: special tokens in the order of their numbers, what they are for, and the template around a text.
STYLES: Mapping[str, tuple[tuple[str, ...], Mapping[str, str], str | None]] = {
    "bert": (
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        "[CLS] $A [SEP]",
    ),
    "roberta": (
        ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
        "<s> $A </s>",
    ),
    "t5": (("<pad>", "</s>", "<unk>"), {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}, "$A </s>"),
    "gpt": (("<|endoftext|>",), {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}, None),
    "llama": (("<unk>", "<s>", "</s>"), {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, "<s> $A"),
    "gemma": (
        ("<pad>", "</s>", "<s>", "<unk>"),
        {"pad": "<pad>", "eos": "</s>", "bos": "<s>", "unk": "<unk>"},
        "<s> $A",
    ),
    "xlnet": (
        ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>"),
        {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "cls": "<cls>", "sep": "<sep>", "pad": "<pad>"},
        "$A <sep> <cls>:2",
    ),
}
NORMAL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SHORT = NORMAL | {"max_position_embeddings": 64}
OFFSET = NORMAL | {"max_position_embeddings": 66}  # two rows stand for no position
GROUPED = SHORT | {"num_key_value_heads": 1, "head_dim": 16}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}
T5 = {
    "decoder_start_token_id": 0,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64}
# Model type of transformers: style of its tokenizer, and sizes.
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "bert": ("bert", SHORT),
    "distilbert": ("bert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64}),
    "albert": ("bert", SHORT | {"embedding_size": 16}),
    "electra": ("bert", SHORT | {"embedding_size": 16}),
    "mobilebert": ("bert", SHORT | {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}),
    "roformer": ("bert", SHORT | {"embedding_size": 32}),
    "rembert": ("bert", SHORT | {"input_embedding_size": 16, "output_embedding_size": 16}),
    "megatron-bert": ("bert", SHORT),
    "ernie": ("bert", SHORT),
    "squeezebert": ("bert", SHORT | {"embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1}),
    "convbert": ("bert", SHORT | {"embedding_size": 32}),
    "layoutlm": ("bert", SHORT),
    "deberta": ("bert", SHORT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32}),
    "deberta-v2": (
        "bert",
        SHORT
        | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
        | {"pooler_hidden_size": 32, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 16},
    ),
    "modernbert": ("bert", SHORT | {"global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3}),
    "fnet": ("bert", SHORT),
    "big_bird": ("roberta", SHORT | {"block_size": 4, "num_random_blocks": 1}),
    "roberta": ("roberta", OFFSET),
    "xlm-roberta": ("roberta", OFFSET),
    "camembert": ("roberta", OFFSET),
    "data2vec-text": ("roberta", OFFSET),
    "ibert": ("roberta", OFFSET),
    "mpnet": ("roberta", OFFSET),
    "longformer": ("roberta", OFFSET | {"attention_window": [8, 8]}),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    "xlm": ("roberta", XLM | {"pad_index": 1}),
    "flaubert": ("roberta", XLM | {"pad_index": 1}),
    "funnel": (
        "bert",
        {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64},
    ),
    "bart": ("roberta", SEQ2SEQ),
    "mbart": ("roberta", SEQ2SEQ),
    "t5": ("t5", T5),
    "mt5": ("t5", T5 | {"feed_forward_proj": "gated-gelu"}),
    "gpt2": ("gpt", GPT),
    "gptj": ("gpt", GPT | {"rotary_dim": 8}),
    "gpt_neo": (
        "gpt",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_neox": ("gpt", SHORT),
    "opt": (
        "roberta",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 64},
    ),
    "bloom": ("gemma", {"hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "falcon": ("gpt", SHORT),
    "mpt": ("gpt", {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}),
    "phi": ("gpt", SHORT),
    "llama": ("llama", GROUPED),
    "mistral": ("llama", GROUPED | {"sliding_window": 16}),
    "mixtral": ("llama", GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "qwen2": ("gpt", SHORT | {"num_key_value_heads": 1}),
    "qwen3": ("gpt", GROUPED),
    "gemma": ("gemma", GROUPED),
    "gemma2": ("gemma", GROUPED),
    "gemma3_text": ("gemma", GROUPED),
    "stablelm": ("gpt", SHORT | {"num_key_value_heads": 2}),
}
LEFT = ("bloom", "xlnet")  # whose tokenizers pad there


def save_family(name: str, folder: Path, **changes: Any) -> Path:
    """Write a random checkpoint of an architecture without a head, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel

    style, sizes = FAMILIES[name]
    special, roles, _ = STYLES[style]
    numbers = {
        f"{role}_token_id": special.index(token) for role, token in roles.items() if role in ("bos", "eos", "pad")
    }
    if "pad" not in roles:
        numbers["pad_token_id"] = None
    config = AutoConfig.for_model(name, **{"vocab_size": VOCABULARY_SIZE} | numbers | dict(sizes) | changes)
    config.architectures = None if name != "funnel" else ["FunnelModel"]  # it has two, and from_config looks here
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=SPREAD)
    model.save_pretrained(folder)
    tokenizer_of(style, "left" if name in LEFT else "right").save_pretrained(folder)
    return folder


def tokenizer_of(style: str, side: str = "right") -> Any:
    """Return a tokenizer that knows ``WORDS``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special, roles, template = STYLES[style]
    if style in ("gpt", "roberta"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE, special_tokens=list(special), initial_alphabet=alphabet
        )
        tokenizer.train_from_iterator([f"{word} {word}" for word in WORDS], trainer)
    elif style in ("t5", "xlnet"):
        pieces = [*((token, 0.0) for token in special), ("\u2581", -3.0), *((f"\u2581{word}", -2.0) for word in WORDS)]
        pieces += [(letter, -4.0) for letter in string.printable.strip()]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special.index(roles["unk"])))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    else:
        numbers = {word: number for number, word in enumerate((*special, *WORDS))}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=roles["unk"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if template is not None:
        used = [(token, special.index(token)) for token in special if token in template]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    names = {f"{role}_token": token for role, token in roles.items()}
    types = (
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if style in ("bert", "xlnet") else {}
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **names, **types)
