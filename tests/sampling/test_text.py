"""Prompts in, text out: order, buckets, and what is refused."""

import jax
import pytest

from jaxllm.data.tokenizers import ByteTokenizer
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.sampling.text import bucket, sample_texts

MODEL = Model(preset("tiny"))
OPTIONS = {"seed": 0, "max_new_tokens": 4, "temperature": 1.0}


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def test_every_sample_of_every_prompt_in_order_and_the_same_again(params):
    prompts = ["a", "some longer prompt, past the first bucket", ""]
    found = list(sample_texts(MODEL, params, ByteTokenizer(), prompts, num_samples=3, batch_size=4, **OPTIONS))
    assert [(s.prompt, s.number) for s in found] == [(p, i) for p in prompts for i in range(3)]
    assert all(1 <= len(s.tokens) <= 4 and s.mean_log_prob < 0 for s in found)
    assert len({tuple(s.tokens) for s in found}) > 5
    again = list(sample_texts(MODEL, params, ByteTokenizer(), prompts, num_samples=3, batch_size=2, **OPTIONS))
    assert [s.tokens for s in again] == [s.tokens for s in found]
    single = list(sample_texts(MODEL, params, ByteTokenizer(), prompts, num_samples=1, batch_size=8, **OPTIONS))
    assert [s.tokens for s in single] == [s.tokens for s in found if s.number == 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_the_tokenizer_lacks_are_never_drawn(params, temperature):
    """The model has more of them, and likes them best: a vocabulary may be rounded up so that it divides over the mesh."""
    tokenizer = ByteTokenizer()
    likes = params | {"head": {"kernel": params["head"]["kernel"].at[:, tokenizer.vocab_size :].multiply(50.0)}}
    options = OPTIONS | {"temperature": temperature, "max_new_tokens": 16}
    found = list(sample_texts(MODEL, likes, tokenizer, ["a", "b"], num_samples=4, batch_size=8, **options))
    assert MODEL.config.vocab_size > tokenizer.vocab_size > max(token for sample in found for token in sample.tokens)


def test_a_prompt_that_does_not_fit_is_refused(params):
    with pytest.raises(ValueError, match="exceed the model's context of 1024"):
        list(sample_texts(MODEL, params, ByteTokenizer(), ["a" * 1021], **OPTIONS))


@pytest.mark.parametrize(("length", "size"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128)])
def test_buckets(length, size):
    assert bucket(length) == size
