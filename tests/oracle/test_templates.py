"""Ids and masks of dialogues against transformers: published templates, those that trl carries and others by hand, in its own engine."""

import pathlib

import numpy as np
import pytest

from jaxllm.data.chat import encode, encode_prompt
from jaxllm.data.dialogues import Dialogue, Message
from jaxllm.data.jinja_templates import as_dict, jinja_template
from jaxllm.data.templates import TEMPLATES
from jaxllm.data.tokenizer_kinds import JsonTokenizer
from tests.data.golden_templates import ASK, CALLS, TALK
from tests.data.test_chat import level
from tests.data.test_jinja_templates import CHATML

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")
trl = pytest.importorskip("trl")

PUBLISHED = pathlib.Path(trl.__file__).parent / "chat_templates"
EOT = "<|endoftext|>"
ALTERNATE = "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    + ALTERNATE
    + "{% set content = m['content'] %}"
    "{% if loop.first and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] + '\\n\\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{{ bos_token }}{% for m in rest %}" + ALTERNATE + ""
    "{% if m['role'] == 'user' %}{{ ' [INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
STOCK = {  # ours -> the published text
    "chatml": CHATML,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "zephyr": ZEPHYR,
    **{ours: theirs + ".jinja" for ours, theirs in {"llama3": "llama3", "llama3.1": "llama3_1", "qwen2.5": "qwen2_5"}.items()},
    "qwen3": "qwen3.jinja",
    "qwen3-direct": "qwen3.jinja",
    "gemma": "gemma3.jinja",
}
SINGLE = Dialogue(TALK.messages[1:3])
HARD = Dialogue(
    (
        Message("user", "  Ünï 😀 \n\n don't\t12345?"),
        Message("assistant", "\n\nوالله  x = 1\n"),
        Message("user", "ok\n"),
        Message("assistant", " - yes\n- no \n\n"),
    )
)
THOUGHT = Dialogue(
    (Message("user", "2+2?"), Message("assistant", "4", reasoning="\nadd\n"), Message("user", "so?"), Message("assistant", "4!"))
)
DIALOGUES = {"talk": TALK, "single": SINGLE, "hard": HARD, "input": ASK, "thought": THOUGHT}
CALLED = ("llama3.1", "qwen2.5", "qwen3", "qwen3-direct")
CASES = [
    (name, key)
    for name in STOCK
    for key in (*DIALOGUES, *(["calls"] if name in CALLED else []))
    if key != "thought" or TEMPLATES[name].thoughts
]


def text_of(name):
    return (PUBLISHED / name).read_text() if name.endswith(".jinja") else name


@pytest.fixture(scope="module")
def both():
    model = level()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=model, bos_token=EOT, eos_token=EOT)
    return JsonTokenizer(level().to_str()), theirs


def reference(theirs, text, dialogue, asks=False, **more):
    messages = [as_dict(message) for message in dialogue.messages]
    more |= {"tools": list(dialogue.tools) or None, "date_string": "26 Jul 2024"}
    return theirs.apply_chat_template(messages, chat_template=text, add_generation_prompt=asks, return_dict=True, **more)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_stock_template_gives_the_ids_of_the_published_one(name, key, both):
    ours, theirs = both
    dialogue, text = {**DIALOGUES, "calls": CALLS}[key], text_of(STOCK[name])
    expected = reference(theirs, text, dialogue)["input_ids"]
    found = encode(dialogue, TEMPLATES[name], ours, "last")
    assert found.tokens.tolist() == expected
    own = encode(dialogue, jinja_template(text, ours), ours, "last")
    assert own.tokens.tolist() == expected
    assert np.array_equal(own.weights, found.weights)  # found by rendering, or known by construction: the same


@pytest.mark.parametrize("name", STOCK)
def test_a_prompt_gives_the_ids_of_the_published_one(name, both):
    ours, theirs = both
    dialogue, text = Dialogue(TALK.messages[:-1]), text_of(STOCK[name])
    more = {"enable_thinking": False} if name == "qwen3-direct" else {}
    expected = reference(theirs, text, dialogue, True, **more)["input_ids"]
    assert encode_prompt(dialogue, TEMPLATES[name], ours).tolist() == expected
    if not more:
        assert encode_prompt(dialogue, jinja_template(text, ours), ours).tolist() == expected


MARKED = {"llama3_training": "llama3", "gemma3_training": "gemma", "qwen2_5_training": "qwen2.5"}


@pytest.mark.parametrize("marked", [*MARKED, "phi3_training"])
def test_what_is_trained_on_is_what_trl_marks_without_the_templates_line_ends(marked, both):
    """trl's own training templates put {% generation %} round an answer; some of them train on the line end behind the end token too."""
    ours, theirs = both
    text = (PUBLISHED / f"{marked}.jinja").read_text()
    said = reference(theirs, text, HARD, return_assistant_tokens_mask=True)
    marks = np.asarray(said["assistant_masks"], bool)
    for template in [*([TEMPLATES[MARKED[marked]]] if marked in MARKED else []), jinja_template(text, ours)]:
        found = encode(HARD, template, ours)
        assert found.tokens.tolist() == said["input_ids"]
        mine = found.weights > 0
        if marked == "llama3_training":
            assert np.array_equal(mine, marks)
        extra = {theirs.decode([i]) for i in found.tokens[marks & ~mine].tolist()}
        assert not (mine & ~marks).any() and extra <= {"\n"}, extra


def test_templates_of_others_work_or_are_refused_but_never_train_on_nothing_or_on_everything(both):
    """Every template that trl carries, on a talk of two answers: the mask is the answers' words, or the row is refused."""
    ours, _ = both
    worked, refused = [], []
    for path in sorted(PUBLISHED.glob("*.jinja")):
        template = jinja_template(path.read_text(), ours, path.stem)
        try:
            found = encode(Dialogue(TALK.messages[1:]), template, ours)
        except ValueError as error:
            assert path.stem in str(error)
            refused.append(path.stem)
            continue
        said = ours.decode(found.tokens[found.weights > 0])
        assert "Hello." in said and "4" in said and "Hi there" not in said and "2+2" not in said, (path.stem, said)
        worked.append(path.stem)
    assert len(worked) > len(refused) and "qwen3" in refused and {"llama3", "phi3", "qwen2_5"} <= set(worked)
