import copy

import pytest
import torch
from torch import nn

from hftoolkit.train.speedups.cpu import MIN_ELEMENTS, block_stack, faster_steps, low_precision_stream, row_gradients

ROWS, WIDTH = MIN_ELEMENTS // 16, 16


class Embeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(ROWS, WIDTH, padding_idx=0)
        self.places = nn.Embedding(8, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        return self.norm(self.words(ids) + self.places(torch.arange(ids.shape[1])))


class Encoder(nn.Module):
    """What a text backbone is made of; notes the type of what goes into each block."""

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 2)
        self.seen = []

    def forward(self, ids):
        stream = self.embeddings(ids)
        for block in self.blocks:
            self.seen.append(stream.dtype)
            stream = self.norm(stream + block(stream))
        return self.head(stream.mean(1)).float()


@pytest.fixture
def encoder():
    torch.manual_seed(3)
    return Encoder()


def batches(number):
    generator = torch.Generator().manual_seed(5)
    # Few different ids, so that rows are used several times; 0 is padding.
    return [torch.randint(0, 9, (4, 6), generator=generator) * 100 for _ in range(number)]


def gradients_after(model, number):
    for ids in batches(number):
        model(ids).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_row_gradients_are_the_dense_ones(encoder, micro_batches):
    dense = gradients_after(copy.deepcopy(encoder), micro_batches)
    with row_gradients(encoder):
        collected = gradients_after(encoder, micro_batches)
    assert not any(gradient.is_sparse for gradient in collected.values())
    torch.testing.assert_close(collected, dense, rtol=1e-5, atol=1e-6)


def test_a_row_gradient_does_not_leak_into_the_next_step(encoder):
    with row_gradients(encoder):
        gradients_after(encoder, 2)
        memory = encoder.embeddings.words.weight.grad.data_ptr()
        encoder.zero_grad()
        again = gradients_after(encoder, 1)
        assert encoder.embeddings.words.weight.grad.data_ptr() == memory
    encoder.zero_grad()
    torch.testing.assert_close(again, gradients_after(encoder, 1), rtol=1e-5, atol=1e-6)


def test_only_large_trainable_tables_of_one_user_give_rows(encoder):
    frozen, tied = copy.deepcopy(encoder), copy.deepcopy(encoder)
    frozen.embeddings.words.weight.requires_grad = False
    tied.output = nn.Linear(WIDTH, ROWS, bias=False)
    tied.output.weight = tied.embeddings.words.weight
    for model, expected in ((encoder, True), (frozen, False), (tied, False)):
        with row_gradients(model):
            assert model.embeddings.words.sparse is expected
            assert not model.embeddings.places.sparse


def test_the_stream_is_bf16_under_autocast_only(encoder):
    with low_precision_stream(encoder):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoder(batches(1)[0])
        encoder(batches(1)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoder(batches(1)[0])
    assert encoder.seen == [torch.bfloat16] * 2 + [torch.float32] * 4


def test_a_table_beside_the_blocks_is_cast_itself():
    model = nn.Module()
    model.words, model.blocks = nn.Embedding(4, 2), nn.ModuleList([nn.Linear(2, 2)])
    with low_precision_stream(model), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.words(torch.tensor([1])).dtype == torch.bfloat16


class Block(nn.Module):
    """A block whose sum tells the type of what it gets; notes it."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear, self.seen = nn.LayerNorm(4), nn.Linear(4, 4), []

    def forward(self, stream):
        self.seen.append(stream.dtype)
        return stream + self.linear(self.norm(stream))


def test_images_enter_the_first_block_in_bf16():
    model = nn.Sequential(nn.LayerNorm(4), nn.Sequential(Block(), Block(), Block()), nn.Linear(4, 2))
    assert block_stack(model) is model[1]
    values = torch.randn(2, 3, 4)
    with low_precision_stream(model), torch.autocast("cpu", dtype=torch.bfloat16):
        model(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(values)
    assert [block.seen for block in model[1]] == [[torch.bfloat16, torch.float32]] * 3


def test_a_model_without_embeddings_and_blocks_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 2))
    with faster_steps(model), torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.ones(1, 2)).sum().backward()
    assert model[0].weight.grad is not None


def test_afterwards_the_model_is_as_before_also_after_a_failure(encoder):
    with pytest.raises(RuntimeError), faster_steps(encoder):
        assert encoder.embeddings.words.sparse
        raise RuntimeError
    assert not encoder.embeddings.words.sparse
    assert not encoder.embeddings._forward_hooks
    assert not encoder.embeddings.words.weight._post_accumulate_grad_hooks
