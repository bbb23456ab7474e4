"""L2-regularised logistic regression, exact and fast: all penalties of one training set.

The objective is scikit-learn's: the sum over cases of C times the log-loss, plus half the squared
norm of the weights. The intercept is not penalised. Everything is float64: in float32 the small
sets that these fits are for do not converge.

An L2 penalty keeps the weights in the span of the training rows, so with n rows and F > n features
there are only n unknowns. Two classes: Newton's method, on the n x n Gram matrix or on the F
features, whichever is cheaper. More classes: Newton's method whose steps come from conjugate
gradients in the principal axes of the training rows, where the Hessian is nearly diagonal.
Penalties are solved from the strongest to the weakest, each starting from the last two.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import linalg
from scipy.special import expit

from ..newton import MOST_STEPS, dual_path, enough_at, primal_path, share_of_step

MOST_PRODUCTS = 1000
"""Products with the Hessian per step, for more than two classes; usually about 10."""

DUAL_BELOW = 1.5
"""Rows per feature up to which the Gram matrix is the cheaper one: a step costs n^3 / 3
multiplications there, and n F^2 / 2 + F^3 / 6 with the features."""


def logistic_path(
    x: np.ndarray,
    target: np.ndarray,
    penalties: Sequence[float] | np.ndarray,
    out: np.ndarray,
    n_classes: int,
    weight: np.ndarray | None = None,
) -> np.ndarray:
    """Fit at every penalty and predict.

    Args:
        x: (n, F) training features.
        target: (n,) class of each row, in 0..n_classes-1.
        penalties: values of C, rising: from the strongest penalty to the weakest.
        out: (m, F) rows to predict.
        n_classes: K.
        weight: (n,) how often each row counts, not negative; None: once.

    Returns:
        (penalties, m, K) probabilities; classes absent from ``target`` get 0.
    """
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    kept = weight > 0
    x, target, weight = np.asarray(x, np.float64)[kept], target[kept].astype(int), weight[kept]
    # the intercept takes any shift up, and centred rows lose fewer digits in their Gram matrix
    center = x.mean(0)
    x, out = x - center, np.asarray(out, np.float64) - center
    values = np.zeros((len(penalties), len(out), n_classes))
    present, label = np.unique(target, return_inverse=True)
    if len(present) == 1:  # nothing to separate
        values[:, :, present[0]] = 1.0
    elif len(present) == 2:
        odds = _two_classes(x, label, penalties, out, weight)
        values[:, :, present[0]] = expit(-odds)
        values[:, :, present[1]] = expit(odds)
    else:
        values[:, :, present] = _many_classes(x, label, penalties, out, weight)
    return values


# --- two classes -----------------------------------------------------------------------------


def _two_classes(
    x: np.ndarray,
    label: np.ndarray,
    penalties: Sequence[float] | np.ndarray,
    out: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """(penalties, m) log-odds of label 1."""
    n, width = x.shape
    if n > DUAL_BELOW * width:
        return np.stack([out @ w[:-1] + w[-1] for w in primal_path(x, label, penalties, weight)])
    cross = out @ x.T
    fits = dual_path(x @ x.T, label, penalties, weight)
    return np.stack([cross @ a + intercept for a, intercept in fits])


# --- more classes ----------------------------------------------------------------------------
# Arrays have the classes first here, (K, n): BLAS multiplies short and wide twice as fast as tall.


def _many_classes(
    x: np.ndarray,
    label: np.ndarray,
    penalties: Sequence[float] | np.ndarray,
    out: np.ndarray,
    weight: np.ndarray,
) -> np.ndarray:
    """(penalties, m, K) probabilities."""
    z, out, size = _principal_axes(x, out)
    z = np.column_stack([z, np.ones(len(z))])
    out = np.column_stack([out, np.ones(len(out))])
    size = np.append(size, len(z))
    truth = np.eye(label.max() + 1)[:, label] * weight  # (K, n)
    w = np.zeros((len(truth), z.shape[1]))
    w[:, -1] = np.log(truth.sum(1))
    reach = float(np.einsum("ij,ij->i", x, x).max())
    last = w
    values = []
    for c in penalties:
        start, last = 2 * w - last, w  # as in ``dual_path``
        w = _newton_cg(z, c * truth, c * weight, size, start, enough_at(c, reach))
        values.append(_softmax(w @ out.T)[0].T)
    return np.stack(values)


def _principal_axes(x: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both in the principal axes of ``x``, and the squared length of each column of ``x`` there.

    Axes along which the rows differ by rounding errors alone are left out.
    """
    n, width = x.shape
    wide = n < width
    size, axes = linalg.eigh(x @ x.T if wide else x.T @ x, check_finite=False)
    kept = size > max(n, width) * np.finfo(float).eps * max(size[-1], 0)
    size, axes = size[kept], axes[:, kept]
    if wide:  # the axes are the left singular vectors
        return axes * np.sqrt(size), (out @ x.T) @ (axes / np.sqrt(size)), size
    return x @ axes, out @ axes, size


def _softmax(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(K, n) log-odds -> (K, n) probabilities and (n,) log of the sum of exponentials."""
    top = f.max(0)
    p = np.exp(f - top)
    total = p.sum(0)
    p /= total
    return p, top + np.log(total)


def _newton_cg(
    z: np.ndarray,
    truth: np.ndarray,
    mass: np.ndarray,
    size: np.ndarray,
    w: np.ndarray,
    enough: float,
) -> np.ndarray:
    """Newton's method for the softmax, its steps by preconditioned conjugate gradients.

    Args:
        z: (n, R) rows in their principal axes, the last column being ones.
        truth: (K, n) C times the weight of each row, in the row of its class.
        mass: (n,) C times the weight.
        size: (R,) squared lengths of the columns of ``z``.
        w: (K, R) where to start.
        enough: what may be left to gain.

    Returns:
        (K, R) weights.
    """
    columns = np.ascontiguousarray(z.T)
    ridge = np.ones(len(size))
    ridge[-1] = 0
    f = w @ columns
    p = _softmax(f)[0]
    for _ in range(MOST_STEPS):
        weighted = p * mass
        gradient = (weighted - truth) @ z + ridge * w
        # the Hessian's diagonal if all cases were as uncertain as they are on average
        uncertainty = np.einsum("kn,kn->k", weighted, 1 - p) / len(z)
        scale = 1 / (ridge + np.maximum(uncertainty, 1e-30)[:, None] * size)

        def product(
            v: np.ndarray, p: np.ndarray = p, weighted: np.ndarray = weighted
        ) -> np.ndarray:
            a = v @ columns
            a -= np.einsum("kn,kn->n", p, a)
            a *= weighted
            return a @ z + ridge * v

        step_w, left = _conjugate_gradients(product, -gradient, scale, enough)
        decrement = -float(np.vdot(gradient, step_w))
        step = step_w @ columns
        ridged = ridge * step_w
        along, across = float(np.vdot(w, ridged)), float(np.vdot(step_w, ridged))
        along -= float(np.vdot(truth, step))
        change = _change_of_many(mass, f, step, along, across)
        furthest = float(np.ptp(step, axis=0).max())
        length = share_of_step(furthest, change, decrement)
        w = w + length * step_w
        f = f + length * step
        if decrement * min(1.0, furthest**2) + left < enough:
            break
        p = _softmax(f)[0]
    return w


def _change_of_many(
    mass: np.ndarray, f: np.ndarray, step: np.ndarray, along: float, across: float
) -> Callable[[float], float]:
    """The objective after a share of a step, less the objective before."""

    def change(t: float) -> float:
        lost = mass @ (_softmax(f + t * step)[1] - _softmax(f)[1])
        return t * along + t * t / 2 * across + float(lost)

    return change


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    wanted: np.ndarray,
    scale: np.ndarray,
    enough: float,
) -> tuple[np.ndarray, float]:
    """An x whose product is nearly ``wanted``, and about what half the error could still gain."""
    x = np.zeros_like(wanted)
    direction = scale * wanted
    now = float(np.vdot(wanted, direction))
    # so accurate that the error of the step is no larger than that of Newton's method itself
    enough = max(now * min(0.1, now), enough / 4)
    for _ in range(MOST_PRODUCTS):
        if now <= enough:
            break
        image = product(direction)
        length = now / float(np.vdot(direction, image))
        x += length * direction
        wanted = wanted - length * image
        scaled = scale * wanted
        before, now = now, float(np.vdot(wanted, scaled))
        direction *= now / before
        direction += scaled
    return x, now
