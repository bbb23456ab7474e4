import pytest
from hypothesis import given
from hypothesis import strategies as st

from tomoprobe.leaderboard.printing import interval_text, score_text, with_interval


@given(
    st.sampled_from(["auroc", "r2", "mae"]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_an_interval_never_claims_certainty_and_never_shrinks(metric, a, b):
    low, high = sorted((a, b))
    text = interval_text(metric, (low + high) / 2, low, high)
    if text:
        printed = [float(x.replace("−", "-").replace(",", "")) for x in text[1:-1].split(", ")]
        assert printed[0] < printed[1]
        assert printed[0] <= low + 1e-9
        assert printed[1] >= high - 1e-9
    else:
        assert high - low < 1e-5


@pytest.mark.parametrize(
    ("metric", "numbers", "text"),
    [
        ("auroc", (1.0, 0.9312, 0.99991), "1.000 [0.931, 1.000]"),
        ("auroc", (1.0, 1.0, 1.0), "1.000"),
        ("auroc", (0.99971, 0.99, 0.9999), "0.9997 [0.990, 1.000]"),
        ("r2", (-0.12, -0.3, 0.05), "−0.120 [−0.300, 0.050]"),
        ("mae", (312.4, 290.2, 340.9), "312 mm3 [290, 341]"),
        ("mae", (0.01234, 0.0111, 0.0139), "0.0123 mm3 [0.0111, 0.0139]"),
        ("mae", (15.0, None, None), "15.0 mm3"),
        ("auroc", (None, None, None), "–"),
    ],
)
def test_a_score_prints_with_as_many_digits_as_its_interval_supports(metric, numbers, text):
    assert with_interval(metric, *numbers, unit="mm3") == text


def test_a_score_that_is_not_perfect_does_not_print_as_perfect():
    assert score_text("auroc", 0.9999, 0.9, 1.0) == "0.9999"
    assert score_text("auroc", 1.0, 0.9, 1.0) == "1.000"
