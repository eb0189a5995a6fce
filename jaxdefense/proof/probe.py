"""A linear probe: what a linear classifier, trained on a model's embeddings, tells apart.

Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML
2021, appendix A.3: multinomial logistic regression with an L2 penalty.
Parity: tests/test_gallery.py, the logits of L-BFGS in float64 on the same objective, 0.02.
"""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

logger = logging.getLogger(__name__)

# C = 0.316, the strength in the example of CLIP's repository.
WEIGHT_DECAY = 1 / 0.316
_MOST_STEPS = 1000
_TOLERANCE = 1e-4  # of every entry of the rescaled slope


def linear_probe(
    train_PE: np.ndarray,
    label_P: np.ndarray,
    test_QE: np.ndarray,
    num_classes: int,
    *,
    weight_decay: float = WEIGHT_DECAY,
) -> np.ndarray:
    """Train a linear classifier to convergence and return its logits.

    It minimises `sum of cross-entropies + weight_decay / 2 * |weights|^2`; the bias has no penalty.
    So `weight_decay` is 1 / C of scikit-learn. Radford et al. search C for each data set, which
    takes labels that nobody has to spare here. Embeddings have unit length, and those of a narrow
    cone hardly differ, so that a penalty of one size would weigh differently on every model.
    Therefore features are embeddings minus the mean of the training ones, all divided by one
    number: these have then a mean square of 1, as an average feature has after standardising.

    Args:
        train_PE: float [P, E], embeddings to train on.
        label_P: int [P], their classes, 0 to `num_classes` - 1.
        test_QE: float [Q, E], embeddings to classify.
        num_classes: of the classifier.
        weight_decay: > 0.

    Returns:
        f32 [Q, num_classes], logits; the same for the same inputs.

    Source: Böhning, Multinomial logistic regression algorithm, 1992, bounds the curvature. With
    this bound Nesterov's method needs no search for a step; O'Donoghue and Candès, Adaptive Restart
    for Accelerated Gradient Schemes, 2015, section 3.2, say when it loses its momentum.
    """
    assert weight_decay > 0, "without a penalty there may be no best classifier"
    mean_E = train_PE.mean(0, dtype=np.float64)
    train_PE, test_QE = train_PE - mean_E, test_QE - mean_E
    size = max(float(np.sqrt(np.square(train_PE).mean())), 1e-12)
    axes_ER, square_R = _axes(train_PE / size)
    # Along these axes, in these units, the objective curves by at most 1, so that it takes steps
    # of 1. The last axis is the bias.
    unit_R = 1 / np.sqrt(square_R / 2 + weight_decay)
    axes_ER = (axes_ER * unit_R / size).astype(np.float32)
    unit = np.sqrt(2 / len(train_PE))
    x_PR, x_QR = (
        np.pad(x.astype(np.float32) @ axes_ER, ((0, 0), (0, 1)), constant_values=unit)
        for x in (train_PE, test_QE)
    )
    decay_R = np.pad(weight_decay * unit_R**2, (0, 1)).astype(np.float32)
    label_P = label_P.astype(np.int32)
    w_RC, steps = jax.device_get(_solve(x_PR, label_P, decay_R, num_classes))
    if steps == _MOST_STEPS:
        logger.warning(f"a linear probe has not converged after {steps} steps")
    return x_QR @ w_RC


def _axes(x_PE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal axes [E, R] of all rows, and the sums of squares along each, [R].

    The best weights lie among these axes; R is the lesser of P and E. An axis along which the rows
    do not differ may be 0.
    """
    if len(x_PE) >= x_PE.shape[1]:
        square_R, axes_ER = np.linalg.eigh(x_PE.T @ x_PE)
        return axes_ER, np.maximum(square_R, 0)
    # This takes a fifth of the time of a singular value decomposition.
    square_R, u_PR = np.linalg.eigh(x_PE @ x_PE.T)
    differs_R = square_R > 1e-10 * square_R[-1]
    square_R = np.where(differs_R, square_R, 0)
    scale_R = np.sqrt(np.where(differs_R, square_R, np.inf))
    return x_PE.T @ (u_PR / scale_R), square_R


@partial(jax.jit, static_argnums=3)
def _solve(
    x_PR: jax.Array, label_P: jax.Array, decay_R: jax.Array, num_classes: int
) -> tuple[jax.Array, jax.Array]:
    """Return the best weights along each axis, f32 [R, classes], and the number of steps."""
    right_PC = jax.nn.one_hot(label_P, num_classes)
    multiply = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

    def slope(w_RC: jax.Array) -> jax.Array:
        error_PC = jax.nn.softmax(multiply(x_PR, w_RC)) - right_PC
        return multiply(x_PR.T, error_PC) + decay_R[:, None] * w_RC

    def step(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        w_RC, ahead_RC, age, num, _ = state
        slope_RC = slope(ahead_RC)
        new_RC = ahead_RC - slope_RC
        uphill = (slope_RC * (new_RC - w_RC)).sum() > 0
        age = jnp.where(uphill, 0.0, age + 1)
        ahead_RC = new_RC + age / (age + 3) * (new_RC - w_RC)
        return new_RC, ahead_RC, age, num + 1, jnp.abs(slope_RC).max()

    def goes_on(state: tuple[jax.Array, ...]) -> jax.Array:
        *_, num, steepest = state
        return (steepest > _TOLERANCE) & (num < _MOST_STEPS)

    start_RC = jnp.zeros((x_PR.shape[1], num_classes))
    state = (start_RC, start_RC, jnp.float32(0), jnp.int32(0), jnp.float32(jnp.inf))
    w_RC, _, _, num, _ = jax.lax.while_loop(goes_on, step, state)
    return w_RC, num
