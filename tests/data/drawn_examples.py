"""Encoded examples drawn at random, for the tests of whatever reads them."""

import numpy as np

from jaxllm.data.examples import Example

ROLES = (("user", "assistant"), ("system", "user", "assistant"))


class Memory:
    """Examples held in memory, with what a reader needs of a store."""

    def __init__(self, examples):
        self.examples = list(examples)
        self.num_examples = len(self.examples)
        self.lengths = np.asarray([len(example.tokens) for example in self.examples], np.int32)
        self.trained = np.asarray([np.count_nonzero(example.weights) for example in self.examples], np.int32)

    def example(self, index):
        return self.examples[index]


def drawn(seed, count, longest=14, vocab_size=64):
    """Examples of 2..longest tokens: a prompt of weight 0, then an answer of weights 1 or 0.5."""
    random = np.random.RandomState(seed)
    examples = []
    for number in range(count):
        length = random.randint(2, longest + 1)
        prompt = random.randint(1, length)
        after = np.arange(length) >= prompt
        roles = ROLES[number % 2]
        weights = np.where(after, random.choice([1.0, 0.5], length), 0).astype(np.float32)
        turns = np.where(after, len(roles) - 1, np.arange(length) % 2 - 1).astype(np.int16)
        examples.append(Example(random.randint(0, vocab_size, length).astype(np.int32), weights, turns, roles))
    return examples


def tagged(seed, count, longest=14, first=0):
    """Examples whose every token says which they are: all tokens of example i are first + i; every token but the first is trained on."""
    lengths = np.random.RandomState(seed).randint(2, longest + 1, count)
    return [
        Example(np.full(n, first + i, np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32), np.zeros(n, np.int16), ("text",))
        for i, n in enumerate(lengths)
    ]
