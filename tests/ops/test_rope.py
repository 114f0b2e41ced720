"""Rotary positions: each published scaling against its own formula, and what a rotation must keep."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.ops.rope import SCALINGS, apply_rope, rope_frequencies

DIM, THETA = 64, 10_000.0
PLAIN = np.array([1 / THETA ** (2 * i / DIM) for i in range(DIM // 2)])
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
DYNAMIC = {"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 2048}


def frequencies(scaling, **more):
    return rope_frequencies(DIM, theta=THETA, scaling=scaling, **more)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}])
def test_without_scaling_they_are_the_geometric_series(scaling):
    got, factor = frequencies(scaling)
    np.testing.assert_allclose(got, PLAIN, rtol=1e-6)
    assert factor == 1.0 and got.dtype == np.float32


def test_linear_divides_every_position():
    got, factor = frequencies({"type": "linear", "factor": 8.0})
    np.testing.assert_allclose(got, PLAIN / 8, rtol=1e-6)
    assert factor == 1.0


@pytest.mark.parametrize("length", [None, 1000, 2048, 6000])
def test_dynamic_ntk_raises_the_base_beyond_the_original_length(length):
    longer = max(length or 0, 2048) / 2048
    base = THETA * (4.0 * longer - 3.0) ** (DIM / (DIM - 2))
    got, _ = frequencies(DYNAMIC, sequence_length=length)
    np.testing.assert_allclose(got, [1 / base ** (2 * i / DIM) for i in range(DIM // 2)], rtol=1e-6)
    assert np.allclose(got, PLAIN, rtol=1e-6) == (longer == 1)


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    got, factor = frequencies(LLAMA3)
    for inv_freq, result in zip(PLAIN, got, strict=True):
        wavelength = 2 * math.pi / inv_freq
        if wavelength < 8192 / 4:
            expected = inv_freq
        elif wavelength > 8192 / 1:
            expected = inv_freq / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * inv_freq / 8 + smooth * inv_freq
        assert result == pytest.approx(expected, rel=1e-6)
    assert got[0] == pytest.approx(PLAIN[0]) and got[-1] == pytest.approx(PLAIN[-1] / 8) and factor == 1.0


def test_yarn_blends_by_the_number_of_turns():
    def correction(turns):  # YaRN, section 3.2, solved for the dim as in its released code
        return DIM * math.log(4096 / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = math.floor(correction(32)), math.ceil(correction(1))
    got, factor = frequencies(YARN)
    for i, (inv_freq, result) in enumerate(zip(PLAIN, got, strict=True)):
        ramp = min(max((i - low) / (high - low), 0), 1)
        assert result == pytest.approx(inv_freq / 4 * ramp + inv_freq * (1 - ramp), rel=1e-6)
    assert 0 < low < high < DIM // 2  # so that all three regions were there
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 0.707, "mscale_all_dim": 0.707}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1)),
    ],
)
def test_yarn_factor_can_be_given(more, expected):
    assert frequencies({**YARN, **more})[1] == pytest.approx(expected)


def test_it_is_a_rotation_in_the_complex_plane():
    rng = np.random.default_rng(0)
    x, positions = rng.normal(size=(2, 5, 3, 16)).astype(np.float32), rng.integers(0, 1000, (2, 5)).astype(np.int32)
    inv_freq, _ = rope_frequencies(16, theta=THETA)
    turned = (x[..., :8] + 1j * x[..., 8:]) * np.exp(1j * positions[..., None, None] * inv_freq)
    got = apply_rope(jnp.asarray(x), jnp.asarray(positions), inv_freq, 1.25)
    np.testing.assert_allclose(got, 1.25 * np.concatenate([turned.real, turned.imag], -1), atol=2e-4)


def test_partial_rotary_leaves_the_rest_and_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 16)), jnp.float32) for _ in range(2))
    inv_freq, factor = rope_frequencies(16, theta=THETA, partial=0.25)
    assert inv_freq.shape == (2,)

    def at(x, position):
        return apply_rope(x, jnp.full((1, 1), position, jnp.int32), inv_freq, factor)

    assert jnp.array_equal(at(q, 7)[..., 4:], q[..., 4:]) and not jnp.allclose(at(q, 7)[..., :4], q[..., :4])
    scores = [float(jnp.sum(at(q, a) * at(k, b))) for a, b in ((5, 2), (105, 102), (5, 3))]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) and abs(scores[0] - scores[2]) > 1e-3


def test_the_dtype_stays():
    x = jnp.ones((1, 2, 1, 8), jnp.bfloat16)
    assert apply_rope(x, jnp.zeros((1, 2), jnp.int32), *rope_frequencies(8)).dtype == jnp.bfloat16


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=rf"'ntk'.*{', '.join(SCALINGS)}"):
        frequencies({"rope_type": "ntk"})
    with pytest.raises(ValueError, match=r"'llama3' needs 'low_freq_factor'"):
        frequencies({k: v for k, v in LLAMA3.items() if k != "low_freq_factor"})
    with pytest.raises(ValueError, match=r"partial=0.2 of head_dim=16 rotates 3 dims"):
        rope_frequencies(16, partial=0.2)
