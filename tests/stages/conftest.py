"""A small text that can be learnt, and a way to run stages as the command line does."""

import random

import jax
import pytest

from jaxllm.__main__ import main


def sentences(count, seed):
    """Lines with structure: agreement over a distance, arithmetic, repetition."""
    draw = random.Random(seed)
    names, verbs, things = ("anna", "bela", "chen", "dora"), ("reads", "paints", "mends"), ("a book", "the door", "two shoes")
    for _ in range(count):
        a, b = draw.randrange(10), draw.randrange(10)
        yield f"{draw.choice(names)} {draw.choice(verbs)} {draw.choice(things)}; {a}+{b}={a + b}.\n"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with one text file of documents, one a line (jsonl)."""
    import json

    path = tmp_path_factory.mktemp("corpus") / "lines.jsonl"
    lines = list(sentences(3000, 0))
    documents = ["".join(lines[i : i + 5]) for i in range(0, len(lines), 5)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def stage(monkeypatch, tmp_path_factory):
    """Runs `jaxllm ...` in this process; returns its exit code."""
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path_factory.getbasetemp() / "tokens"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)  # conftest has set it
    return lambda *words: main([str(word) for word in words])


@pytest.fixture(scope="session")
def train_small(corpus):
    """Trains in a folder of its own, from a config's text with {path!r} in it; returns the work directory."""

    def train(folder, text):
        (folder / "config.py").write_text(text.format(path=str(corpus)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAXLLM_CACHE", str(folder / "tokens"))
            assert main(["pretrain", "--config", str(folder / "config.py"), "--workdir", str(folder / "run")]) == 0
        return folder / "run"

    return train
