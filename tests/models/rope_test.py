import numpy as np
import pytest

from rljax.models.rope import LinearScaling, Llama3Scaling, frequencies

LLAMA = Llama3Scaling(32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def test_linear_scaling_divides_every_frequency():
    np.testing.assert_allclose(LinearScaling(8.0)(frequencies(100.0, 4)), [1 / 8, 0.1 / 8], rtol=1e-12)


def test_llama_scaling_keeps_high_frequencies_and_divides_low_ones():
    """Turns within 8192 tokens: 5 and 4 are kept, 1 and 0.5 are divided by 32; 2 has s = 1/3, 3 has s = 2/3."""
    turns = LLAMA(2 * np.pi / 8192 * np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5])) * 8192 / (2 * np.pi)
    expected = [5.0, 4.0, 3 * (2 / 3 + 1 / 96), 2 * (1 / 3 + 2 / 96), 1 / 32, 0.5 / 32]
    np.testing.assert_allclose(turns, expected, rtol=1e-12)


def test_llama_scaling_is_that_of_transformers():
    """Frequencies of Llama 3.2 1B by `_compute_llama3_parameters` of transformers 5.24, in float32."""
    theirs = [1.0, 0.1286874, 0.007292665, 0.003211446, 0.001290548, 0.0004295567, 9.708286e-05, 1.946164e-05,
              8.570256e-06, 9.418306e-08]  # fmt: skip
    found = LLAMA(frequencies(500_000.0, 64))[[0, 5, 12, 14, 15, 16, 17, 18, 20, 31]]
    np.testing.assert_allclose(found, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), "factor = 0.0: expected a positive number"),
        (
            lambda: Llama3Scaling(8.0, 4.0, 4.0, 8192),
            "high_freq_factor = 4.0: expected more than low_freq_factor = 4.0",
        ),
        (lambda: Llama3Scaling(8.0, 1.0, 4.0, 0), "original_max_position_embeddings = 0: expected a positive number"),
    ],
)
def test_a_scaling_out_of_range_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()
