"""A BERT of a few thousand random weights, made here, that knows the words of the reviews."""

from pathlib import Path

from doubles.reviews import CLASSES, FILLERS

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CLASSES, *FILLERS)


def save_bert(folder: Path, initializer_range: float = 0.02) -> Path:
    """Write a random BERT of two blocks and 16 channels, and a tokenizer that knows ``VOCABULARY``."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=initializer_range,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(VOCABULARY)})
    assert len(tokenizer) == len(VOCABULARY)
    tokenizer.save_pretrained(folder)
    return folder
