"""The fast solver against scikit-learn's plain one, on the sets that break solvers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tomoprobe.benchmark.probes._logistic import logistic_path

PATH = 10.0 ** np.arange(-6, 4)


def made(
    n_classes: int, n: int, width: int, how: str = "random", seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, classes and 20 rows to predict; ``how`` says what is wrong with them."""
    rng = np.random.default_rng([seed, n_classes, n, width])
    y = np.arange(n) % n_classes
    means = rng.normal(size=(n_classes, width)) * (20 if how == "separable" else 0.5)
    x = rng.normal(size=(n, width)) + means[y]
    out = rng.normal(size=(20, width)) + means[np.arange(20) % n_classes]
    if how == "collinear":
        mix = rng.normal(size=(3, width))
        x, out = x[:, :3] @ mix, out[:, :3] @ mix
    if how == "duplicated":
        x[n // 2 :], y[n // 2 :] = x[: n - n // 2], y[: n - n // 2]
    if how == "contradictory":
        x[n // 2 :] = x[: n - n // 2]
    return x, y, out


def plain(x: np.ndarray, y: np.ndarray, out: np.ndarray, c: float) -> np.ndarray:
    """scikit-learn by Cholesky: its L-BFGS stops 1e-3 away from the optimum where C = 1000."""
    model = LogisticRegression(C=c, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    return model.fit(x, y).predict_proba(out)


SHAPES = [(2, 22, 60), (2, 60, 45), (2, 200, 12), (3, 24, 60), (3, 44, 44), (3, 200, 12)]
"""Classes, rows, features: fewer and more rows than features, by either of the two methods."""


@pytest.mark.parametrize(("n_classes", "n", "width"), [*SHAPES, (11, 55, 20)])
@pytest.mark.parametrize("how", ["random", "collinear", "duplicated", "contradictory", "separable"])
def test_it_is_scikit_learns_regression(n_classes: int, n: int, width: int, how: str) -> None:
    x, y, out = made(n_classes, n, width, how)
    values = logistic_path(x, y, PATH, out, n_classes)
    wanted = np.stack([plain(x, y, out, c) for c in PATH[::3]])
    np.testing.assert_allclose(values[::3], wanted, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_lbfgs_agrees_where_it_converges(n_classes: int) -> None:
    x, y, out = made(n_classes, 60, 100)
    values = logistic_path(x, y, [1e-3, 1.0], out, n_classes)
    for c, mine in zip([1e-3, 1.0], values, strict=True):
        model = LogisticRegression(C=c, tol=1e-9, max_iter=100_000).fit(x, y)
        np.testing.assert_allclose(mine, model.predict_proba(out), atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("width", [5, 90])
def test_a_weight_is_a_number_of_copies(n_classes: int, width: int) -> None:
    x, y, out = made(n_classes, 40, width)
    weight = np.random.default_rng(0).integers(0, 4, 40)
    rows = np.repeat(np.arange(40), weight)
    np.testing.assert_allclose(
        logistic_path(x, y, PATH, out, n_classes, weight),
        logistic_path(x[rows], y[rows], PATH, out, n_classes),
        atol=2e-6,
    )


@pytest.mark.parametrize("n_classes", [2, 6])
@pytest.mark.parametrize("width", [8, 200])
def test_a_penalty_alone_gives_what_it_gives_in_a_path(n_classes: int, width: int) -> None:
    x, y, out = made(n_classes, 36, width, "separable")
    path = logistic_path(x, y, PATH, out, n_classes)
    alone = [logistic_path(x, y, [c], out, n_classes)[0] for c in PATH]
    np.testing.assert_allclose(path, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_class_that_no_row_has_gets_nothing(n_classes: int) -> None:
    x, y, out = made(n_classes, 30, 50)
    few = logistic_path(x, y, [1.0], out, n_classes)
    more = logistic_path(x, 2 * y + 1, [1.0], out, 2 * n_classes + 1)
    np.testing.assert_array_equal(more[..., 1::2], few)
    assert not more[..., ::2].any()
    one = logistic_path(x, np.full(30, 2), PATH, out, 4)
    np.testing.assert_array_equal(one, np.broadcast_to([0, 0, 1, 0], one.shape))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("width", [4, 80])
def test_rows_that_say_nothing_give_the_prior(n_classes: int, width: int) -> None:
    y = np.array([0] * 10 + [1] * 5 + [n_classes - 1] * 5)
    values = logistic_path(np.zeros((20, width)), y, PATH, np.zeros((3, width)), n_classes)
    share = np.bincount(y) / 20
    np.testing.assert_allclose(values, np.broadcast_to(share, values.shape), atol=1e-9)


def test_one_row_per_class_is_enough() -> None:
    x, y, out = made(3, 3, 40)
    values = logistic_path(x, y, PATH, out, 3)
    np.testing.assert_allclose(values, [plain(x, y, out, c) for c in PATH], atol=1e-5)
