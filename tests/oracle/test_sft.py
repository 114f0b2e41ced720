"""Instruction tuning against TRL's SFTTrainer: the same weights, rows and order give the same losses and gradient norms, step by step."""

import jax
import numpy as np
import pytest

from jaxllm.data.example_rows import ExampleReader
from jaxllm.data.examples import Example, write_examples
from jaxllm.interop import huggingface, places
from jaxllm.interop.folders import open_folder
from jaxllm.models.model import Model
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import inputs, programs, setup, sft, tuning
from jaxllm.stages.config import resolve
from jaxllm.training import state as states
from tests.interop import made
from tests.interop.test_tokenizer_files import byte_level

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")

NAME, STEPS, B, T = "tiny_llama3", 8, 4, 48
RATE, DECAY, CLIP = 3e-3, 0.1, 0.5
CONFIG = {
    "steps": STEPS,
    "batch_size": B,
    "sequence_length": T,
    "data": {"packing": "padded"},
    "optimizer": {"learning_rate": RATE, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": DECAY, "clip_norm": CLIP},
    "schedule": {"name": "linear", "final": 0.0},
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Twelve examples of many lengths, the first part of each a prompt: with four in a batch, the third epoch begins in step 7."""
    draw = np.random.default_rng(5)

    def one(length):
        weights = (np.arange(length) >= max(1, length // 3)).astype(np.float32)
        return Example(draw.integers(0, 300, length, np.int32), weights, np.zeros(length, np.int16), ("user",))

    rows = [one(int(length)) for length in draw.integers(4, T + 1, 12)]
    return write_examples(tmp_path_factory.mktemp("sft") / "examples", rows, vocab_size=300, fingerprint="test")


def theirs(folder, examples, order, path):
    """Losses and gradient norms of TRL, which is given the examples in our order."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [examples.example(index) for index in order]
    data = Dataset.from_list(
        [{"input_ids": row.tokens.tolist(), "completion_mask": (row.weights > 0).astype(int).tolist()} for row in rows]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|end|>", pad_token="<|begin|>")
    options = SFTConfig(
        output_dir=str(path), use_cpu=True, bf16=False, max_steps=STEPS, per_device_train_batch_size=B, max_length=T,
        train_sampling_strategy="sequential", completion_only_loss=True, packing=False, gradient_checkpointing=False,
        learning_rate=RATE, adam_beta1=0.9, adam_beta2=0.95, adam_epsilon=1e-8, weight_decay=DECAY, max_grad_norm=CLIP,
        lr_scheduler_type="linear", optim="adamw_torch",
        logging_steps=1, logging_first_step=True, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    trainer = SFTTrainer(model=model, args=options, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    # its log rounds, and what is logged of a step is its loss alone
    return [line["loss"] for line in logged], [line["grad_norm"] for line in logged]


def ours(folder, examples):
    """The same of our update, and the order in which our reader goes through the examples."""
    config, opened = resolve(CONFIG), open_folder(folder)
    family, shape = places.read_config(opened)
    model, mesh = Model(shape), make_mesh(devices=jax.devices()[:1])
    tuned = tuning.make(config, model)
    optimizer = setup.optimizer(config, tuned.axes())
    reader = ExampleReader({"rows": examples}, sequence_length=T, batch_size=B, seed=0, mode="padded", buckets=(T,))
    place, losses, norms = inputs.placement(config, mesh), [], []
    with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
        state = states.from_params(huggingface.load(opened, family, model, mesh), optimizer, mesh, tuned.axes())
        update = jax.jit(programs.make_update(config, tuned, sft.RECIPE.objective(config, model), optimizer))
        for step in range(STEPS):
            state, report = update(state, {}, place(reader.rows(step), np.arange(B)))
            losses.append(float(report["loss"]))
            norms.append(float(report["grad_norm"]))
    return losses, norms, [placed.example for step in range(STEPS) for row in range(B) for placed in reader.place(step, row)]


def test_the_losses_are_those_of_trl(examples, tmp_path, record_property):
    folder = made.folder(NAME, tmp_path / "model")
    losses, norms, order = ours(folder, examples)
    assert len(order) == STEPS * B
    expected, expected_norms = theirs(folder, examples, order, tmp_path / "out")
    record_property("max_difference", float(np.abs(np.subtract(losses, expected)).max()))
    assert expected[-1] < expected[0] - 0.5 and max(expected_norms) > CLIP  # it moves, and gradients are clipped
    np.testing.assert_allclose(losses, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-3)
