"""L2 logistic regressions of two classes by Newton's method, many of them at once or in a row.

The objective is scikit-learn's: C times the log-loss summed over cases, plus half the squared norm
of the weights; the intercept is not penalised. For the many small fits of ``simulation`` all
models advance together (``fold_models``); for the protocols one training set is fitted at many
penalties, from the strongest to the weakest (``dual_path``, ``primal_path``).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import linalg
from scipy.special import expit, log_expit

TOLERANCE = 1e-6
"""Of the weights in ``fit_narrow``."""

MOST_STEPS = 50
"""Per penalty. Separable classes at C = 1000 take up to 25 from nothing, about 3 along a path."""

LONGEST = 5.0
"""A step of ``fit_narrow`` changes no log-odds by more: longer ones can overshoot where classes
are separable."""

ACCURACY = 1e-5
"""Of the log-odds along a path: a bound on their error at the largest training row. What is seen is
about 2e-7 in the probabilities."""


def fit_narrow(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """All folds at once, for few features.

    Args:
        x: (M, n, F) standardised per fold model.
        y: (n,) 0 or 1.
        train: (M, n) 1 for training patients, else 0.
        c: inverse penalty in scikit-learn's convention; the intercept is not penalised.

    Returns:
        (M, F) weights and (M,) intercepts.
    """
    models, n, width = x.shape
    x = np.concatenate([x, np.ones((models, n, 1))], axis=2)
    penalty = np.append(np.full(width, 1 / c), 0.0)
    w = np.zeros((models, width + 1))
    diagonal = np.arange(width + 1)
    for _ in range(MOST_STEPS):
        p = expit((x @ w[..., None])[..., 0])
        gradient = ((train * (p - y))[:, None] @ x)[:, 0] + penalty * w
        hessian = (x * (train * p * (1 - p))[..., None]).transpose(0, 2, 1) @ x
        hessian[:, diagonal, diagonal] += penalty
        step = np.linalg.solve(hessian, gradient[..., None])
        furthest = np.abs(x @ step).max(1)  # (M, 1)
        step = step[..., 0] / np.maximum(1, furthest / LONGEST)
        w -= step
        if np.abs(step).max() < TOLERANCE:
            break
    return w[:, :-1], w[:, -1]


def fit_wide(x: np.ndarray, y: np.ndarray, c: float) -> tuple[np.ndarray, float]:
    """One model in the span of its training patients, for more features than those.

    Args:
        x: (n, F) standardised training features.
        y: (n,) 0 or 1.
        c: as above.

    Returns:
        (F,) weights, and the intercept.
    """
    a, intercept = next(dual_path(x @ x.T, y, [c], np.ones(len(y))))
    return x.T @ a, intercept


def fold_models(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """(M, F) weights and (M,) intercepts for features as they are.

    The standardisation by each fold's training patients is folded in. Arguments as above, but
    ``x`` is (n, F).
    """
    size = train.sum(1, keepdims=True)
    mean = train @ x / size
    sd = np.sqrt(train @ (x * x) / size - mean**2)
    if x.shape[1] < len(x):
        w, intercept = fit_narrow((x - mean[:, None]) / sd[:, None], y, train, c)
    else:
        rows = [t > 0 for t in train]
        fits = [fit_wide((x[r] - m) / s, y[r], c) for r, m, s in zip(rows, mean, sd, strict=True)]
        w = np.stack([weights for weights, _ in fits])
        intercept = np.array([b for _, b in fits])
    w = w / sd
    return w, intercept - (w * mean).sum(1)


# --- a path of penalties, exactly ------------------------------------------------------------


def enough_at(c: float, reach: float) -> float:
    """What a fit may leave of the objective, C times the log-loss plus half the squared norm.

    An error e of the weights costs at least e^2 / 2 and moves a row's log-odds by up to e times its
    norm; an error of the intercept costs about C times its square and moves them by itself.

    Args:
        c: the penalty's C.
        reach: the largest squared norm of a training row.
    """
    return ACCURACY**2 * min(c, 1 / max(reach, 1e-30))


def share_of_step(furthest: float, change: Callable[[float], float], decrement: float) -> float:
    """The share of a Newton step to take.

    All of it where no log-odds change by more than 1: the objective then falls by at least 0.28 of
    the squared Newton decrement (Bach, Self-concordant analysis for logistic regression,
    Electronic Journal of Statistics 4 (2010), proposition 1). Else Armijo's rule by halving.

    Args:
        furthest: the largest change of log-odds.
        change: of the objective when a share of the step is taken.
        decrement: squared Newton decrement.
    """
    length = 1.0
    while length * furthest > 1 and change(length) > -0.1 * length * decrement:
        length /= 2
    return length


def dual_path(
    gram: np.ndarray, label: np.ndarray, penalties: Sequence[float] | np.ndarray, weight: np.ndarray
) -> Iterator[tuple[np.ndarray, float]]:
    """Newton's method on the Gram matrix, for two classes.

    The matrices are those of Rasmussen & Williams, Gaussian Processes for Machine Learning (2006),
    algorithm 3.1, here with an intercept that is not penalised, and solved for the residual of the
    optimality condition, a = C weight (label - p), so that rounding does not accumulate.

    Args:
        gram: (n, n) inner products of the training rows.
        label: (n,) 0 or 1.
        penalties: values of C, rising.
        weight: (n,) positive.

    Yields:
        ((n,) a, intercept) per penalty; the weights are the sum of a_i x_i.
    """
    # the bare routines: on a few rows the checks of cho_factor cost more than its work
    potrf, potrs = linalg.get_lapack_funcs(("potrf", "potrs"), dtype=np.float64)
    n = len(gram)
    sign = np.where(label == 1, 1.0, -1.0)
    share = np.average(label, weights=weight)
    reach = float(gram.diagonal().max())
    a, b = np.zeros(n), float(np.log(share / (1 - share)))
    last_a, last_b = a, b
    for c in penalties:
        mass = c * weight
        # on along the path: separable classes drift apart by as much with every factor of C
        a, b, last_a, last_b = 2 * a - last_a, 2 * b - last_b, a, b
        for _ in range(MOST_STEPS):
            inner = gram @ a
            f = inner + b
            missed = expit(-sign * f)
            curvature = mass * missed * (1 - missed)
            residual = mass * sign * missed - a
            root = np.sqrt(curvature)
            inside = root[:, None] * gram
            inside *= root
            inside.flat[:: n + 1] += 1
            both = np.stack([root * (gram @ residual), root], axis=1)
            factor, _ = potrf(inside, lower=1, overwrite_a=1)  # at least the identity: no failure
            both = potrs(factor, both, lower=1)[0] * root[:, None]
            u, v = residual - both[:, 0], both[:, 1]
            step_b = float((a.sum() + u.sum()) / v.sum())
            step_a = u - step_b * v
            step_inner = gram @ step_a
            step = step_inner + step_b
            along, across = float(a @ step_inner), float(step_a @ step_inner)
            decrement = float(curvature @ step**2) + across
            furthest = float(np.abs(step).max())
            change = _change_of_two(sign, mass, f, step, along, across)
            length = share_of_step(furthest, change, decrement)
            a, b = a + length * step_a, b + length * step_b
            if decrement * min(1.0, furthest**2) < enough_at(c, reach):
                break
        yield a, b


def primal_path(
    x: np.ndarray, label: np.ndarray, penalties: Sequence[float] | np.ndarray, weight: np.ndarray
) -> Iterator[np.ndarray]:
    """Newton's method on the features, for two classes.

    Args:
        x: (n, F) training rows.
        label: (n,) 0 or 1.
        penalties: values of C, rising.
        weight: (n,) positive.

    Yields:
        (F + 1,) weights, the intercept last, per penalty.
    """
    (syrk,) = linalg.get_blas_funcs(("syrk",), dtype=np.float64)
    z = np.column_stack([x, np.ones(len(x))])
    sign = np.where(label == 1, 1.0, -1.0)
    share = np.average(label, weights=weight)
    reach = float(np.einsum("ij,ij->i", x, x).max())
    ridge = np.ones(z.shape[1])
    ridge[-1] = 0
    w = np.zeros(z.shape[1])
    w[-1] = np.log(share / (1 - share))
    last = w
    for c in penalties:
        mass = c * weight
        w, last = 2 * w - last, w  # as in ``dual_path``
        for _ in range(MOST_STEPS):
            f = z @ w
            missed = expit(-sign * f)
            gradient = ridge * w - z.T @ (mass * sign * missed)
            rows = z * np.sqrt(mass * missed * (1 - missed))[:, None]
            # one triangle of the product, for half its cost
            hessian = syrk(1.0, rows.T, lower=1)
            hessian.T.flat[:: len(w) + 1] += ridge
            factor = linalg.cho_factor(hessian, lower=True, overwrite_a=True, check_finite=False)
            step_w = -linalg.cho_solve(factor, gradient, check_finite=False)
            step = z @ step_w
            along, across = float(w @ (ridge * step_w)), float(step_w @ (ridge * step_w))
            decrement = -float(gradient @ step_w)
            furthest = float(np.abs(step).max())
            change = _change_of_two(sign, mass, f, step, along, across)
            w = w + step_w * share_of_step(furthest, change, decrement)
            if decrement * min(1.0, furthest**2) < enough_at(c, reach):
                break
        yield w


def _change_of_two(
    sign: np.ndarray,
    mass: np.ndarray,
    f: np.ndarray,
    step: np.ndarray,
    along: float,
    across: float,
) -> Callable[[float], float]:
    """The objective after a share of a step, less the objective before."""

    def change(t: float) -> float:
        gained = mass @ (log_expit(sign * (f + t * step)) - log_expit(sign * f))
        return t * along + t * t / 2 * across - float(gained)

    return change
