"""Temperature, top-k and top-p: from logits to the logits of the distribution that is sampled."""

import jax
import jax.numpy as jnp


def filter_logits(logits: jax.Array, *, temperature: float, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """The log-probabilities of the filtered distribution.

    The order is Hugging Face's: temperature, then top-k, then top-p (Holtzman et al. 2020) on what is left. Ties at the border stay in.

    Args:
      logits: [..., V] float32.
      temperature: > 0; 1 changes nothing.
      top_k: keep the k likeliest tokens; 0 keeps all.
      top_p: keep the fewest of the likeliest tokens whose probability is at least this; 1 keeps all.

    Returns:
      [..., V] float32: normalised log-probabilities, -inf where a token was filtered out.
    """
    logits = logits.astype(jnp.float32) / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= smallest, logits, -jnp.inf)
    if top_p < 1.0:
        probs = jax.nn.softmax(logits, axis=-1)
        ordered = -jnp.sort(-probs, axis=-1)
        before = jnp.cumsum(ordered, axis=-1) - ordered  # the probability of all likelier tokens
        smallest = jnp.min(jnp.where(before < top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(probs >= smallest, logits, -jnp.inf)
    return jax.nn.log_softmax(logits, axis=-1)


def sample_token(log_probs: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws one token per row by the Gumbel trick.

    Args:
      log_probs: [B, V] float32, -inf where a token may not be drawn.
      keys: [B] PRNG keys, one per row, so that a row's draw does not depend on its neighbours.

    Returns:
      [B] int32.
    """
    noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[-1:], jnp.float32))(keys)
    return jnp.argmax(log_probs + noise, axis=-1).astype(jnp.int32)
