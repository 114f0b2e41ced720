"""What holds for every loss: no split of the batch changes it, masked places are never read, gradients are finite at the extremes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.losses import distill, importance, kl, policy, preference, reward, unpaired, value, verdicts
from jaxllm.losses.preference import Pairs
from jaxllm.rollouts import methods

B, T, K, V = 8, 6, 4, 7
ROWS = np.array([1, 0, 1, 2, 1, 0.5, 0, 1], np.float32)


def pairs_of(batch):
    return Pairs(*(batch[name] for name in Pairs._fields))


def paired(name):
    row = preference.LOSSES[name]
    return (
        lambda b: preference.preference(pairs_of(b), b["weights"], row, nll=0.3, nll_over="token"),
        lambda b: preference.preference_totals(b["weights"], b["chosen_lengths"]),
        ("chosen", "rejected"),
    )


def single(name):
    return (
        lambda b: unpaired.unpaired(b["chosen"], b["reference_chosen"], b["flags"], 0.7, b["weights"], unpaired.LOSSES[name]),
        lambda b: unpaired.unpaired_totals(b["weights"], b["flags"]),
        ("chosen",),
    )


def compared(ties):
    return (
        lambda b: reward.bradley_terry(b["chosen"], b["rejected"], b["weights"], margins=0.2, tied=b["flags"], ties=ties, centering=0.01),
        lambda b: reward.pair_totals(b["weights"], b["flags"]),
        ("chosen", "rejected"),
    )


def surrogate(name):
    method = methods.METHODS[name]

    def loss(b):
        function, options = policy.SURROGATES[method.surrogate], method.options
        factors, shares = importance.importance_weights(b["old"], b["reference"], b["weights"] != 0)
        terms, report = policy.policy(
            b["log_probs"], b["advantages"], b["weights"], function, old=b["old"], level=method.level, importance=factors, **options
        )
        more = kl.kl_term(b["log_probs"], b["reference"], b["weights"], coefficient=0.1, corrected=True, old=b["old"])[0]
        return terms | more | kl.entropy_term(-b["log_probs"], b["weights"], coefficient=0.01)[0], report | shares

    def totals(b):
        return policy.policy_totals(b["weights"], b["shares"]) | importance.importance_totals(b["weights"])

    return loss, totals, ("log_probs",)


def critic(clip):
    return (
        lambda b: value.value_loss(b["log_probs"], b["old"], b["advantages"], b["weights"], clip=clip),
        lambda b: value.value_totals(b["weights"], b["shares"]),
        ("log_probs",),
    )


def log_softmax(logits):
    """With NaN where the logits are NaN, whose gradient here is 0: the loss alone is tested."""
    return jax.nn.log_softmax(jnp.nan_to_num(logits)) + jnp.where(jnp.isnan(logits), jnp.nan, 0.0)


def student(name, tail=None):
    def loss(b):
        ours, theirs = log_softmax(b["logits"]), log_softmax(b["teacher"])
        if tail:
            top, indices = jax.lax.top_k(theirs, 3)
            ours, theirs = distill.likeliest(ours, top, indices, tail=tail)
        return distill.distill(ours, theirs, b["weights"], distill.DIVERGENCES[name])

    return loss, lambda b: distill.distill_totals(b["weights"]), ("logits",)


VERDICTS = {
    "rating": lambda b: verdicts.rating(b["log_probs"], b["old"], b["weights"]),
    "binary": lambda b: verdicts.binary(b["log_probs"], jax.nn.sigmoid(b["old"]), b["weights"]),
    "multiclass": lambda b: verdicts.multiclass(b["logits"], b["labels"], b["weights"]),
}
ROW_CASES = {f"pairs {name}": paired(name) for name in preference.LOSSES}
ROW_CASES |= {f"single {name}": single(name) for name in unpaired.LOSSES} | {f"ties {name}": compared(name) for name in reward.TIES}
ROW_CASES["ranking"] = (
    lambda b: reward.ranking(b["scores"], b["ranks"], b["weights"], centering=0.01),
    lambda b: reward.ranking_totals(b["ranks"], b["weights"]),
    ("scores",),
)
ROW_CASES["pick best"] = (
    lambda b: reward.pick_best(b["scores"], jnp.argmin(b["ranks"], axis=1), b["ranks"] >= -9, b["weights"]),
    lambda b: verdicts.totals(b["weights"]),
    ("scores",),
)
TOKEN_CASES = {f"policy {name}": surrogate(name) for name in ("grpo", "dr_grpo", "gspo_token", "cispo", "rloo")}
TOKEN_CASES |= {f"value clip={clip}": critic(clip) for clip in (None, 0.2)}
TOKEN_CASES |= {f"distill {name}": student(name) for name in distill.DIVERGENCES}
TOKEN_CASES["distill likeliest"] = student("forward_kl", "rest")
for name, loss in VERDICTS.items():
    TOKEN_CASES[name] = (loss, lambda b: verdicts.totals(b["weights"]), ("logits" if name == "multiclass" else "log_probs",))
CASES = ROW_CASES | TOKEN_CASES


@functools.cache
def drawn(name):
    """A batch with every array that the case may read."""
    rng = np.random.default_rng(len(name))
    if name in ROW_CASES:
        batch = {field: -4 * rng.random(B) - 0.1 for field in Pairs._fields[:4]}
        batch |= {field: rng.integers(1, T, B).astype(float) for field in Pairs._fields[4:]}
        batch |= {"scores": rng.normal(size=(B, K)), "weights": ROWS}
        batch = {key: array.astype(np.float32) for key, array in batch.items()}
        return batch | {"flags": rng.random(B) < 0.5, "ranks": np.array([rng.permutation([0, 1, 1, -1]) for _ in range(B)])}
    mask = rng.random((B, T)) < 0.7
    mask[1] = False
    over, constant = {"policy grpo": ("sequence", 1.0), "policy dr_grpo": ("constant", 9.0)}.get(name, ("token", 1.0))
    weights, shares = map(np.asarray, policy.token_weights(mask, over=over, constant=constant))
    batch = {key: (rng.normal(size=(B, T)) - 2) for key in ("log_probs", "old", "reference", "advantages")}
    batch |= {key: rng.normal(size=(B, T, V)) for key in ("logits", "teacher")} | {"weights": weights, "shares": shares}
    return {key: array.astype(np.float32) for key, array in batch.items()} | {"labels": rng.integers(0, V, (B, T))}


@functools.cache
def compiled(name):
    loss, totals, _ = CASES[name]

    def sums(batch):
        terms, report = loss(batch)
        return {key: term.sum for key, term in terms.items()} | report

    def objective(arrays, batch):
        terms, report = loss(batch | arrays)
        known = totals(batch)
        assert set(terms) | set(report) <= set(known), "a name without a total"
        shares = {key: term.sum for key, term in terms.items()} | report
        return sum(term.coefficient * term.sum / known[key] for key, term in terms.items()), shares

    return jax.jit(jax.value_and_grad(objective, has_aux=True)), sums  # the latter op by op: those are compiled once for all losses


def evaluate(name, batch):
    (total, sums), grads = compiled(name)[0]({key: batch[key] for key in CASES[name][2]}, batch)
    return total, sums, grads


@pytest.mark.parametrize("name", CASES)
def test_no_split_of_the_batch_changes_it(name):
    batch = drawn(name)
    _, whole, _ = evaluate(name, batch)
    parts = [compiled(name)[1]({key: array[i::4] for key, array in batch.items()}) for i in range(4)]
    for key, expected in whole.items():
        np.testing.assert_allclose(sum(part[key] for part in parts), expected, rtol=2e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_masked_places_are_not_read_and_have_no_gradient(name):
    batch = drawn(name)
    masked = batch["weights"] == 0

    def poison(array):
        fits = array.dtype == np.float32 and array.shape[: masked.ndim] == masked.shape
        return np.where(masked.reshape(masked.shape + (1,) * (array.ndim - masked.ndim)), np.float32(np.nan), array) if fits else array

    total, _, grads = evaluate(name, batch)
    dirty, _, dirty_grads = evaluate(name, {key: array if key == "weights" else poison(array) for key, array in batch.items()})
    assert float(dirty) == float(total) and np.isfinite(total)
    for key, grad in dirty_grads.items():
        np.testing.assert_array_equal(grad, grads[key])
        assert not np.any(np.asarray(grad)[masked]) and np.any(np.asarray(grad))


@pytest.mark.parametrize("name", CASES)
def test_finite_at_the_extremes(name):
    batch = dict(drawn(name))
    signs = np.random.default_rng(0)
    for key in CASES[name][2]:
        batch[key] = batch[key] + signs.choice([-1e4, 1e4], batch[key].shape).astype(np.float32)
    total, sums, grads = evaluate(name, batch)
    assert np.isfinite(total) and all(np.isfinite(grad).all() for grad in grads.values())
    assert all(np.isfinite(x) for x in sums.values())
