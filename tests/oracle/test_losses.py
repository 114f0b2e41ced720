"""Losses against TRL's own: its trainers' functions, called on arrays, with a model that hands back the log-probabilities it was given."""

import types
from unittest import mock

import numpy as np
import pytest

from jaxllm.losses import distill, kl, policy, preference, reward, unpaired
from jaxllm.losses.preference import Pairs
from jaxllm.rollouts import advantages

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch")
pytest.importorskip("trl")

B, T = 6, 8
rng = np.random.default_rng(11)
MASK = (np.arange(T) < rng.integers(2, T + 1, (2 * B, 1))).astype(np.int64)  # completions; what a trainer shifts off is put before
LOGP, REF = (np.where(MASK, -2 * rng.random((2 * B, T)) - 0.05, 0.0).astype(np.float32) for _ in range(2))
BETA = 0.3


def told(log_probs):
    """A model whose every forward pass has these log-probabilities of the completions' tokens."""
    log_probs = torch.tensor(log_probs)
    zeros = torch.zeros_like(log_probs)
    outputs = types.SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0, log_sum_sq_probs=zeros)
    return mock.MagicMock(return_value=outputs, training=False)


def trainer(**attributes):
    """What a trainer's loss reads of its trainer: options and an accelerator of one process."""
    one = mock.MagicMock(num_processes=1, device=torch.device("cpu"))
    for name in ("gather", "gather_for_metrics"):
        setattr(one, name, lambda x: x)
    one.reduce = lambda x, reduction: x
    metrics = mock.MagicMock()
    return mock.MagicMock(accelerator=one, _metrics=metrics, aux_loss_enabled=False, **attributes)


def before(array, value=0):
    """[.., T] -> [.., 1 + T]: with a token of the prompt before the completion."""
    return torch.cat([torch.full((len(array), 1), value, dtype=torch.int64), torch.tensor(array)], dim=1)


def sums(array):
    """The sums over tokens of the chosen and of the rejected."""
    return array[:B].sum(1), array[B:].sum(1)


PAIRS = Pairs(*sums(LOGP), *sums(REF), *sums(MASK.astype(np.float32)))
DPO = {
    "dpo": ("sigmoid", {}),
    "ipo": ("ipo", {}),
    "hinge": ("hinge", {}),
    "robust": ("robust", {"label_smoothing": 0.1}),
    "apo_zero": ("apo_zero", {}),
    "apo_down": ("apo_down", {}),
    "sppo": ("sppo_hard", {}),
    "nca": ("nca_pair", {}),
    "bco": ("bco_pair", {}),
    "exo": ("exo_pair", {"label_smoothing": 0.01}),
    "dpo mean": ("sigmoid_norm", {}),
}


@pytest.mark.parametrize("name", DPO)
def test_pairs(name):
    from trl.trainer.dpo_trainer import DPOTrainer

    theirs, options = DPO[name]
    fake = trainer(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=[theirs], loss_weights=[1.0], beta=BETA,
        use_weighting=False, label_smoothing=options.get("label_smoothing", 0.0),
    )  # fmt: skip
    inputs = {"input_ids": before(MASK), "attention_mask": before(MASK, 1), "completion_mask": before(MASK)}
    inputs |= {"ref_chosen_logps": torch.tensor(PAIRS.reference_chosen), "ref_rejected_logps": torch.tensor(PAIRS.reference_rejected)}
    expected = float(DPOTrainer._compute_loss(fake, told(LOGP), inputs, False))
    more = {"reduction": "mean"} if name == "dpo mean" else {}
    found = preference.LOSSES[name.split()[0]].loss(PAIRS, beta=BETA, **options, **more)
    assert float(np.mean(found)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo"])
def test_pairs_without_a_reference(name):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    lengths = PAIRS.chosen_lengths, PAIRS.rejected_lengths
    means = [torch.tensor(total / length) for total, length in zip(PAIRS[:2], lengths, strict=True)]
    fake = trainer(beta=BETA, simpo_gamma=0.5, label_smoothing=0.0, alpha=0.0, loss_type="simpo" if name == "simpo" else "sigmoid")
    if name == "orpo":
        expected = -ORPOTrainer.odds_ratio_loss(fake, *means)[0]
    else:
        expected = CPOTrainer.cpo_loss(fake, *(means if name == "simpo" else map(torch.tensor, PAIRS[:2])))[0]
    options = {"gamma": 0.5} if name == "simpo" else {}
    np.testing.assert_allclose(preference.LOSSES[name].loss(PAIRS, beta=BETA, **options), expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name, theirs", [("kto", "kto"), ("apo_zero", "apo_zero_unpaired")])
def test_singles(name, theirs):
    from trl.trainer.kto_trainer import KTOTrainer

    good = rng.random(2 * B) < 0.5
    mismatched = (LOGP.sum(1) + 0.5).astype(np.float32)
    fake = trainer(
        loss_type=theirs, beta=BETA, calculate_KL=name == "kto", desirable_weight=1.2, undesirable_weight=0.8, precompute_ref_logps=True
    )
    fake._compute_kl_logps = lambda model, batch: torch.tensor(mismatched)
    inputs = {"label": torch.tensor(good), "ref_logps": torch.tensor(REF.sum(1)), "ref_KL_logps": torch.tensor(LOGP.sum(1))}
    inputs |= {"input_ids": before(MASK), "attention_mask": before(MASK, 1), "completion_mask": before(MASK)}
    found = KTOTrainer._compute_loss(fake, told(LOGP), inputs, False)
    expected = float(found[0] if isinstance(found, tuple) else found)
    baseline = unpaired.kto_baseline(mismatched, LOGP.sum(1), np.ones(2 * B))
    options = {"desirable_weight": 1.2, "undesirable_weight": 0.8} if name == "kto" else {}
    ours = np.asarray(unpaired.LOSSES[name](LOGP.sum(1) - REF.sum(1), good, baseline, beta=BETA, **options))
    ours = ours if options else ours * np.where(good, 1.2, 0.8)
    assert float(baseline) == pytest.approx(0.5, rel=1e-4)
    assert float(np.mean(ours)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("margin", [False, True])
def test_reward(margin):
    from trl.trainer.reward_trainer import RewardTrainer

    scores = rng.normal(size=2 * B).astype(np.float32)
    margins = rng.random(B).astype(np.float32)
    inputs = {"input_ids": before(MASK), "attention_mask": before(MASK, 1)} | ({"margin": torch.tensor(margins)} if margin else {})
    model = mock.MagicMock(return_value=types.SimpleNamespace(logits=torch.tensor(scores)[:, None]), training=False)
    fake = trainer(args=types.SimpleNamespace(center_rewards_coefficient=0.01))
    expected = float(RewardTrainer.compute_loss(fake, model, inputs))
    terms, _ = reward.bradley_terry(scores[:B], scores[B:], np.ones(B, np.float32), margins=margins if margin else 0.0, centering=0.01)
    assert float(sum(term.coefficient * term.sum for term in terms.values())) / B == pytest.approx(expected, rel=1e-5)


GRPO = {  # TRL's loss_type and level, our surrogate, level and denominator, options
    "grpo": ("grpo", "token", policy.clip, "token", {"over": "sequence"}, {"low": 0.2, "high": 0.28}),
    "dr_grpo": ("dr_grpo", "token", policy.clip, "token", {"over": "constant", "constant": 16.0}, {"low": 0.2, "high": 0.28}),
    "dapo": ("dapo", "token", policy.clip, "token", {"over": "token"}, {"low": 0.2, "high": 0.28}),
    "dual clip": ("dapo", "token", policy.clip, "token", {"over": "token"}, {"low": 0.2, "high": 0.28, "dual": 1.5}),
    "gspo": ("grpo", "sequence", policy.clip, "sequence", {"over": "sequence"}, {"low": 0.2, "high": 0.28}),
    "cispo": ("cispo", "token", policy.cispo, "token", {"over": "token"}, {"cap": 1.28}),
}


@pytest.mark.parametrize("name", GRPO)
def test_policies_and_their_gradients(name):
    """The loss with the corrected k3 in it, and its gradient with respect to every token's log-probability."""
    import jax
    from trl.trainer.grpo_trainer import GRPOTrainer

    theirs, their_level, surrogate, level, denominator, options = GRPO[name]
    old = np.where(MASK, LOGP + 0.4 * rng.normal(size=LOGP.shape), 0).astype(np.float32)
    scores = rng.normal(size=2 * B).astype(np.float32)
    new = torch.tensor(LOGP, requires_grad=True)
    corrected = their_level == "token"
    fake = trainer(
        loss_type=theirs,
        importance_sampling_level=their_level,
        beta=0.1,
        epsilon_low=0.2,
        epsilon_high=1.28 if theirs == "cispo" else 0.28,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        max_completion_length=16,
        _entropy_bonus_enabled=False,
        args=types.SimpleNamespace(delta=options.get("dual"), use_bias_correction_kl=corrected),
    )
    fake.model = mock.MagicMock(training=False)
    fake._get_per_token_logps_and_entropies = lambda *args, **kwargs: (new, torch.zeros_like(new), None)
    inputs = {"prompt_ids": torch.zeros(2 * B, 1), "prompt_mask": torch.ones(2 * B, 1), "completion_ids": torch.tensor(MASK)}
    inputs |= {"completion_mask": torch.tensor(MASK), "advantages": torch.tensor(scores), "num_items_in_batch": torch.tensor(MASK.sum())}
    inputs |= {"old_per_token_logps": torch.tensor(old), "ref_per_token_logps": torch.tensor(REF)}
    expected = GRPOTrainer._compute_loss(fake, fake.model, inputs)
    expected.backward()

    weights, shares = policy.token_weights(MASK, **denominator)

    def loss(log_probs):
        terms, _ = policy.policy(log_probs, scores[:, None], weights, surrogate, old=old, level=level, **options)
        terms |= kl.kl_term(log_probs, REF, weights, coefficient=0.1, corrected=corrected, old=old)[0]
        return sum(term.coefficient * term.sum for term in terms.values()) / shares.sum()

    value, grad = jax.value_and_grad(loss)(LOGP)
    assert float(value) == pytest.approx(float(expected.detach()), rel=2e-5, abs=1e-6)
    np.testing.assert_allclose(grad, new.grad.numpy(), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_divergences_of_students(beta):
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher = (torch.tensor(rng.normal(size=(3, 4, 9)).astype(np.float32)) for _ in range(2))
    labels = torch.tensor([[1, 1, -100, -100], [1, 1, 1, 1], [1, -100, -100, -100]])
    expected = float(GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta))
    ours = distill.jsd if 0 < beta < 1 else distill.forward_kl if beta == 0 else distill.reverse_kl
    options = {"beta": beta} if ours is distill.jsd else {}
    weights = (labels.numpy() != -100).astype(np.float32)
    log_probs = [x.log_softmax(-1).numpy() for x in (student, teacher)]
    terms, _ = distill.distill(*log_probs, weights, ours, **options)
    assert float(terms["distill"].sum / weights.sum()) == pytest.approx(expected, rel=1e-5)


def test_deviation_of_a_group_is_torchs():
    """The defaults of group_relative are TRL's: torch's own deviation (ddof=1), eps 1e-4."""
    scores = rng.normal(size=(3, 4)).astype(np.float32)
    grouped = torch.tensor(scores)
    expected = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    np.testing.assert_allclose(advantages.group_relative(scores.ravel(), np.repeat(np.arange(3), 4)), expected.ravel(), rtol=2e-5)
