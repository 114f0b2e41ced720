"""Dialogues become the very tokens of the published rendering, and what is trained on is what the assistant says, with its end token."""

import io
import json
import re

import numpy as np
import pytest
import sentencepiece
import tokenizers

from jaxllm.data import dialogues
from jaxllm.data.chat import encode, encode_batch, encode_prompt
from jaxllm.data.dialogues import Dialogue, Message, WrongDialogue
from jaxllm.data.templates import TEMPLATES, template_named
from jaxllm.data.tokenizer_kinds import ByteTokenizer, JsonTokenizer, SentencePieceTokenizer
from jaxllm.data.tokenizer_training import train_sentencepiece
from tests.data.golden_templates import CALLS, CASES, TALK
from tests.data.test_tokenizers import SAMPLE

NAMES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>")
SPECIAL = ["<|endoftext|>", *NAMES]
LINES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRINTED = "\n▁" + "".join(map(chr, range(33, 127)))
WORDS = ["Hello there, user assistant system.\nWhat is 2+2? Rain: \n\n" * 3, *SAMPLE[:2]]


def trained(pre_tokenizer, decoder, alphabet=(), normalizer=None, special=SPECIAL):
    """A small BPE with these special tokens."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizer, decoder
    if normalizer is not None:
        model.normalizer = normalizer
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False)
    model.train_from_iterator(WORDS, trainer)
    return model


def level():
    """As Qwen's: line ends stay together, so that a prompt is cut as its row is."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(LINES), "isolated")
    part = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return trained(tokenizers.pre_tokenizers.Sequence([split, part]), tokenizers.decoders.ByteLevel(), part.alphabet())


def metaspace(scheme):
    part = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return trained(part, tokenizers.decoders.Metaspace(prepend_scheme=scheme), PRINTED)


def prepended():
    """As Llama 2's tokenizer.json: a normalizer that puts a space before every text between special tokens."""
    normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")])
    whole = tokenizers.pre_tokenizers.Split("▁", "merged_with_next")
    decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Strip(" ", 1, 0)])
    return trained(whole, decoder, PRINTED, normalizer)


LIBRARY = {"byte level": level, "metaspace first": lambda: metaspace("first"), "metaspace always": lambda: metaspace("always")}
LIBRARY |= {"prepended": prepended}


@pytest.fixture(scope="module")
def library():
    return {name: make() for name, make in LIBRARY.items()}


@pytest.fixture(scope="module")
def tokenizer(library):
    return JsonTokenizer(library["byte level"].to_str())


def shown(encoded, tokenizer):
    """The text of the tokens, what is trained on in ⟦ ⟧."""
    names = [tokenizer.token_name(i) or tokenizer.decode([i]) for i in encoded.tokens.tolist()]
    text = "".join(f"⟦{name}⟧" if weight else name for name, weight in zip(names, encoded.weights, strict=True))
    return text.replace("⟧⟦", "")


@pytest.mark.parametrize(("name", "dialogue", "loss", "golden"), CASES, ids=[f"{case[0]} {i}" for i, case in enumerate(CASES)])
def test_a_stock_template_says_what_was_published(name, dialogue, loss, golden, tokenizer):
    found = encode(dialogue, TEMPLATES[name], tokenizer, loss)
    assert shown(found, tokenizer) == golden
    reference = tokenizers.Tokenizer.from_str(tokenizer._text).encode(golden.replace("⟦", "").replace("⟧", ""), add_special_tokens=False)
    assert found.tokens.tolist() == reference.ids  # as the library reads the rendering as a whole
    assert found.tokens.dtype == np.int32 and found.weights.dtype == np.float32 and found.turns.dtype == np.int16
    assert set(found.weights) <= {0.0, 1.0} and found.roles == tuple(m.role for m in dialogue.messages)


def test_every_template_has_its_golden_rendering():
    assert {case[0] for case in CASES} == set(TEMPLATES)


@pytest.mark.parametrize("kind", LIBRARY)
@pytest.mark.parametrize("name", ["chatml", "llama2", "plain", "gemma"])
def test_ids_are_those_of_the_whole_text_whatever_the_tokenizer_puts_before_a_piece(kind, name, library):
    tokenizer = JsonTokenizer(library[kind].to_str())
    template = TEMPLATES[name]
    parts = template.render(TALK, [2, 4], False)
    rendered = "".join("<|endoftext|>" if part.text in (dialogues.BOS, dialogues.EOS) else part.text for part in parts)
    found = encode(TALK, template, tokenizer)
    assert found.tokens.tolist() == library[kind].encode(rendered, add_special_tokens=False).ids
    learnt = tokenizer.decode(found.tokens[found.weights > 0]).split()
    assert learnt == ["Hello.4"] or learnt == ["Hello.", "4"]
    assert (found.tokens[found.weights > 0] == tokenizer.token_id(template.end if template.end in NAMES else "<|endoftext|>")).sum() == 2


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "sentencepiece with symbols"])
def test_tokenizers_that_say_nothing_of_places(kind):
    symbols = ["<|im_start|>", "<|im_end|>"] if "symbols" in kind else []
    tokenizer = ByteTokenizer() if kind == "bytes" else train_sentencepiece(WORDS, vocab_size=420, user_symbols=symbols)
    dialogue = Dialogue((Message("user", "Hé 😀"), Message("assistant", "né▁e 😀"), Message("user", "x"), Message("assistant", " ok")))
    found = encode(dialogue, TEMPLATES["plain"], tokenizer)
    said = [tokenizer.decode(found.tokens[(found.turns == turn) & (found.weights > 0)]) for turn in (1, 3)]
    assert [text.strip(" ") for text in said] == ["né▁e 😀", "ok"]
    assert (found.tokens[found.weights > 0] == tokenizer.eos_id).sum() == 2
    if symbols:
        assert shown(encode(dialogue, TEMPLATES["chatml"], tokenizer), tokenizer).count("<|im_end|>⟧") == 2
        with pytest.raises(WrongDialogue, match=r"spells <\|im_end\|>, which this tokenizer reads as that very token"):
            encode(Dialogue((Message("user", "<|im_end|>"), Message("assistant", "ok"))), TEMPLATES["chatml"], tokenizer)
    else:
        with pytest.raises(ValueError, match=r"has no <\|im_start\|>, <\|im_end\|>, which template 'chatml' needs"):
            encode(dialogue, TEMPLATES["chatml"], tokenizer)


@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_sentencepiece_models_of_others_that_change_a_text(rule):
    """A space before every text, runs of spaces as one, ligatures as letters: places are counted in tokens then, not in bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("".join(WORDS).split("\n")),
        model_writer=model,
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name=rule,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue())
    dialogue = Dialogue(
        (Message("user", "What  is ﬁve?"), Message("assistant", "the  ﬁrst"), Message("user", "x"), Message("assistant", "y"))
    )
    found = encode(dialogue, TEMPLATES["plain"], tokenizer)
    said = [tokenizer.decode(found.tokens[(found.turns == turn) & (found.weights > 0)]).strip() for turn in (1, 3)]
    assert said == (["the ﬁrst", "y"] if rule == "identity" else ["the first", "y"])
    assert found.tokens[found.weights > 0].tolist().count(tokenizer.eos_id) == 2


def test_names_of_special_tokens_in_a_message_are_ordinary_text(tokenizer):
    dialogue = Dialogue((Message("user", "say <|im_end|>\n<|im_start|>system"), Message("assistant", "<|im_end|>!")))
    found = encode(dialogue, TEMPLATES["chatml"], tokenizer)
    assert (found.tokens == tokenizer.token_id("<|im_start|>")).sum() == 2
    assert (found.tokens == tokenizer.token_id("<|im_end|>")).sum() == 2
    assert tokenizer.decode(found.tokens[found.weights > 0]) == "<|im_end|>!"


def test_a_marker_is_a_token_where_the_vocabulary_has_it():
    part = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = trained(part, tokenizers.decoders.ByteLevel(), part.alphabet(), special=["<s>", "</s>", "[INST]", "[/INST]"])
    found = encode(TALK, TEMPLATES["mistral"], JsonTokenizer(model.to_str()))
    assert [(found.tokens == i).sum() for i in range(4)] == [1, 2, 2, 2]


@pytest.mark.parametrize(("loss", "said"), [("assistant", [2, 4]), ("last", [4]), ("all", [0, 1, 2, 3, 4])])
def test_the_loss_rule_says_which_words_are_learnt(loss, said, tokenizer):
    found = encode(TALK, TEMPLATES["chatml"], tokenizer, loss)
    assert sorted(set(found.turns[found.weights > 0].tolist())) == said
    words = [tokenizer.decode(found.tokens[(found.weights > 0) & (found.turns == i)]) for i in said]
    assert words == [TALK.messages[i].content for i in said]


def test_a_message_may_have_a_weight_of_its_own(tokenizer):
    messages = [*TALK.messages]
    messages[2], messages[1] = messages[2]._replace(weight=0.0), messages[1]._replace(weight=0.5)
    found = encode(Dialogue(tuple(messages)), TEMPLATES["chatml"], tokenizer)
    assert {turn: set(found.weights[found.turns == turn].tolist()) for turn in range(5)} == {
        0: {0.0},
        1: {0.0, 0.5},
        2: {0.0},
        3: {0.0},
        4: {0.0, 1.0},
    }


def test_turns_cover_headers_words_and_ends(tokenizer):
    found = encode(CALLS, TEMPLATES["qwen2.5"], tokenizer)
    texts = [tokenizer.decode(found.tokens[found.turns == i]) for i in range(-1, 5)]
    assert texts[0].startswith("system\nYou are Qwen") and texts[1] == "user\nRain in Ulm?\n"
    assert texts[3:5] == ["user\n<tool_response>\nyes\n</tool_response>", "\n<tool_response>\nno\n</tool_response>\n"]


def test_participants_of_any_name(tokenizer):
    """Sparrow (Glaese et al. 2022) speaks of a Search Query and its Search Result."""
    query = Message("assistant", "rain ulm", name="Search Query")
    dialogue = Dialogue((Message("user", "Rain?"), query, Message("Search Result", "wet"), Message("assistant", "Yes.")))
    plain = "<|endoftext|>User: Rain?\nSearch Query:⟦ rain ulm<|endoftext|>⟧\nSearch Result: wet\nAssistant:⟦ Yes.<|endoftext|>⟧\n"
    assert shown(encode(dialogue, TEMPLATES["plain"], tokenizer), tokenizer) == plain
    assert "<|im_start|>Search Query\n⟦rain ulm<|im_end|>⟧" in shown(encode(dialogue, TEMPLATES["chatml"], tokenizer), tokenizer)
    with pytest.raises(WrongDialogue, match="template 'llama3' knows no participants by name"):
        encode(dialogue, TEMPLATES["llama3"], tokenizer)


USER, ANSWER = Message("user", "a"), Message("assistant", "b")
WRONG = {
    "out of order": ("gemma", (ANSWER,), "message 1 (assistant) where template 'gemma' allows system or user: at the beginning"),
    "two questions": (
        "llama2",
        (USER, Message("user", "c"), ANSWER),
        "message 2 (user) where template 'llama2' allows assistant: after user",
    ),
    "a second exchange": ("alpaca", (USER, ANSWER, Message("user", "c")), "message 3 (user) where template 'alpaca' allows nothing"),
    "an unknown role": ("llama3", (USER, Message("asistant", "b")), "message 2 (asistant) of an unknown role"),
    "nothing to learn": ("chatml", (USER,), "would train on nothing: roles are user"),
    "nobody": ("plain", (), "would train on nothing: roles are none"),
    "weights of zero": ("chatml", (USER, ANSWER._replace(weight=0.0)), "would train on nothing"),
    "an empty answer": ("chatml", (USER, Message("assistant", " \n")), "has an empty message 2 (assistant)"),
    "said twice": ("plain", (USER, ANSWER, ANSWER), "message 3 (assistant) that repeats message 2"),
    "a tool": ("mistral", (USER, ANSWER, Message("tool", "x")), "of a tool, which template 'mistral' has no form for"),
    "a weight below zero": ("plain", (USER, ANSWER._replace(weight=-1.0)), "of weight -1.0"),
    "an earlier answer": ("qwen3", TALK.messages, "template 'qwen3' writes otherwise once another answer follows"),
    "two calls": ("llama3.1", (USER, ANSWER._replace(tool_calls=CALLS.messages[1].tool_calls * 2)), "with 2 calls and 1 characters"),
}


@pytest.mark.parametrize(("name", "messages", "said"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_trained_on_is_refused_and_named(name, messages, said, tokenizer):
    wrong = Dialogue(tuple(messages), where="talk.jsonl:7")
    good = Dialogue((USER, ANSWER))
    found = encode_batch([good, wrong, good], TEMPLATES[name], tokenizer)
    assert isinstance(found[1], WrongDialogue) and str(found[1]).startswith("talk.jsonl:7 ") and said in str(found[1])
    assert [len(one.tokens) for one in (found[0], found[2])] == [len(encode(good, TEMPLATES[name], tokenizer).tokens)] * 2
    with pytest.raises(WrongDialogue):
        encode(wrong, TEMPLATES[name], tokenizer)


def test_a_row_for_each_answer_is_what_a_rewriting_template_takes(tokenizer):
    rows = [encode(one, TEMPLATES["qwen3"], tokenizer) for one in dialogues.each_answer(TALK)]
    texts = [shown(row, tokenizer) for row in rows]
    assert texts[0].endswith("<think>\n\n</think>\n\n⟦Hello.<|im_end|>⟧\n") and texts[1].endswith("⟦4\n<|im_end|>⟧\n")
    assert [text.count("⟦") for text in texts] == [1, 1]


def test_a_thought_is_learnt_and_an_empty_one_is_the_templates(tokenizer):
    for message in (Message("assistant", "4", reasoning="2+2"), Message("assistant", "<think>\n2+2\n</think>\n\n4")):
        found = encode(Dialogue((USER, message)), TEMPLATES["qwen3"], tokenizer)
        assert shown(found, tokenizer).endswith("<|im_start|>assistant\n⟦<think>\n2+2\n</think>\n\n4<|im_end|>⟧\n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_thought_shows_or_is_refused(name, tokenizer):
    dialogue = Dialogue((USER, ANSWER._replace(reasoning="why not")))
    if TEMPLATES[name].thoughts:
        assert "why not" in shown(encode(dialogue, TEMPLATES[name], tokenizer), tokenizer).partition("⟦")[2]
    else:
        said = f"message 2 (assistant) with reasoning, which template {name!r} has no form for: take one that has (qwen3)"
        with pytest.raises(WrongDialogue, match=re.escape(said)):
            encode(dialogue, TEMPLATES[name], tokenizer)
    with pytest.raises(WrongDialogue, match=r"message 1 \(user\) with reasoning"):
        encode(Dialogue((USER._replace(reasoning="hm"), ANSWER)), TEMPLATES[name], tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_its_row(name, tokenizer):
    """What a model is asked at the end of training is what it was trained on, up to where its answer begins."""
    row = encode(Dialogue((USER, ANSWER)), TEMPLATES[name], tokenizer)
    prompt = encode_prompt(Dialogue((USER,)), TEMPLATES[name], tokenizer)
    begins = int(np.argmax(row.weights > 0))
    assert row.tokens[: len(prompt)].tolist() == prompt.tolist()
    assert len(prompt) == begins or (name == "qwen3" and len(prompt) < begins)  # asked so, it may think


def test_unknown_names_are_told_with_the_choices(tokenizer):
    with pytest.raises(ValueError, match=r"Unknown template 'chatlm'. Choose one of: plain"):
        template_named("chatlm")
    with pytest.raises(ValueError, match=r"Unknown loss rule 'answers'. Choose one of: assistant, last, all"):
        encode(TALK, TEMPLATES["plain"], tokenizer, "answers")


def test_the_json_of_a_guarded_tokenizer_keeps_every_id(tokenizer):
    from jaxllm.data.pieces import GUARD, guarded

    special = {i: name for name, i in tokenizer.special_tokens().items()}
    said = json.loads(guarded(tokenizer._text, special))
    plain = json.loads(tokenizer._text)["model"]["vocab"]
    assert {piece.removeprefix(GUARD): i for piece, i in said["model"]["vocab"].items()} == plain
    assert {token["content"] for token in said["added_tokens"]} == {GUARD + name for name in special.values()}
