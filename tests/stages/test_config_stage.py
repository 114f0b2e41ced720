"""Config files, overrides, the one dial, and the sentence that answers each mistake."""

import pytest

from jaxllm.__main__ import main
from jaxllm.stages import config as configs
from jaxllm.stages import setup
from jaxllm.stages.config import KEYS
from jaxllm.stages.keys import ALIASES


def test_defaults_are_of_their_own_kind_and_every_key_is_explained():
    for key, spec in KEYS.items():
        assert spec.default is None or isinstance(spec.default, spec.kind), key
        assert spec.help and not spec.help.endswith("."), key
    assert set(configs.flatten(configs.as_dict(configs.resolve({})))) == set(KEYS)
    assert all(target in KEYS or target in configs.model_fields() for target in ALIASES.values())


def test_overrides_win_over_the_file_and_take_the_type_of_their_key():
    config = configs.resolve(
        {"steps": 5, "optimizer": {"learning_rate": 1}, "model": {"preset": "tiny"}},
        configs.parse_overrides(
            ["--config.steps=7", "--config.optimizer.mu_dtype", "bfloat16", "--config.model.window=none", "--config.log.tensorboard=false"]
        ),
    )
    assert (config.steps, config.optimizer.learning_rate, config.optimizer.mu_dtype) == (7, 1.0, "bfloat16")
    assert config.model.window is None and config.log.tensorboard is False and isinstance(config.optimizer.learning_rate, float)


def test_paths_and_tables_can_be_given_on_the_command_line():
    words = ["--config.data.train=a.txt,b/*.jsonl", "--config.data.tokenizer.kind=sentencepiece", "--config.data.tokenizer.vocab_size=512"]
    config = configs.resolve({}, configs.parse_overrides(words))
    assert [dict(entry) for entry in config.data.train] == [{"path": "a.txt"}, {"path": "b/*.jsonl"}]
    assert config.data.tokenizer.to_dict() == {"kind": "sentencepiece", "vocab_size": 512}
    config = configs.resolve({}, {"data.train": "[{'path': 'a', 'weight': 2}, {'path': 'b', 'weight': 1}]"})
    assert [dict(entry) for entry in config.data.train] == [{"path": "a", "weight": 2}, {"path": "b", "weight": 1}]


def test_the_one_dial_sets_shape_batch_steps_and_rate_and_yields_to_what_is_given():
    config = configs.resolve({"depth": 4, "sequence_length": 512, "data": {"tokenizer": {"kind": "bytes"}}})
    assert config.model.num_layers == 4 and config.model.width == 256
    assert config.steps * config.batch_size * 512 >= 20 * 3_000_000
    given = configs.resolve({"depth": 4, "batch_size": 2, "steps": 3, "model": {"width": 512}, "data": {"tokenizer": {"kind": "bytes"}}})
    assert (given.batch_size, given.steps, given.model.width) == (2, 3, 512)
    wider = configs.resolve(
        {"depth": 4, "batch_size": 2 * config.batch_size, "sequence_length": 512, "data": {"tokenizer": {"kind": "bytes"}}}
    )
    assert abs(wider.steps * wider.batch_size - config.steps * config.batch_size) < wider.batch_size  # the same tokens
    with pytest.raises(ValueError, match="depth needs the size of the vocabulary"):
        configs.resolve({"depth": 4, "data": {"tokenizer": {"kind": "tokenizer.json"}}})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stpes": 3}, "Unknown config key 'stpes'. Did you mean 'steps'?"),
        ({"optimizer": {"lr": 3}}, "Unknown config key 'optimizer.lr'. Did you mean 'optimizer.learning_rate'?"),
        ({"max_grad_norm": 3}, "Did you mean 'optimizer.clip_norm'?"),
        ({"learning_rate": 3}, "Did you mean 'optimizer.learning_rate'?"),
        ({"model": {"hidden_size": 3}}, "Did you mean 'model.width'?"),
        ({"depth": 4, "model": {"preset": "gpt2"}}, "depth=4 and model.preset='gpt2' both set the shape of the model. Give one"),
        ({"steps": "many"}, "steps='many' is not a whole number"),
        ({"steps": True}, "steps=True is not a whole number"),
        ({"optimizer": {"name": 3}}, "optimizer.name=3 is not a word"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_nearest_key(settings, sentence):
    with pytest.raises(ValueError) as error:
        configs.resolve(settings)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["--cofnig.steps=3", "steps=3", "--config.steps"])
def test_an_argument_of_another_form_is_refused(word):
    with pytest.raises(ValueError, match=r"argument|has no value"):
        configs.parse_overrides([word])


def test_a_missing_file_and_a_file_without_get_config(tmp_path):
    with pytest.raises(ValueError, match="No config file"):
        configs.load(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"it has no get_config\(\)"):
        configs.load(str(tmp_path / "empty.py"))


def test_what_a_resumed_run_may_change():
    old = configs.as_dict(configs.resolve({"steps": 5}))
    same = configs.as_dict(
        configs.resolve({"steps": 9, "microbatches": 2, "remat": "full", "parallel": {"tensor": 2}, "log": {"every": 1}})
    )
    other = configs.as_dict(configs.resolve({"steps": 5, "batch_size": 16, "optimizer": {"learning_rate": 1.0}}))
    assert configs.differences(old, same) == []
    assert configs.differences(old, other) == ["batch_size", "optimizer.learning_rate"]


def test_the_nearest_config_file_is_named():
    with pytest.raises(ValueError, match=r"Did you mean 'configs/pretrain/tiny_bytes.py'"):
        configs.load("configs/pretrain/tiny_bites.py", [])


def test_a_size_of_none_is_the_presets():
    config = configs.load("configs/pretrain/llama3_8b.py:tiny", ["--config.model.num_layers=None"])
    assert setup.model_config(config).num_layers == 2


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(args, overrides):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxllm.stages.report.main", interrupted)
    assert main(["report", "runs/none"]) == 1
    assert capsys.readouterr().err.strip() == "jaxllm: interrupted; run the same command again."
