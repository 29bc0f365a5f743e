"""SmolLM2 compared with `transformers`, if `make models/smollm2` has run (make test-hf)."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from rljax.models import load
from rljax.text import load_tokenizer
from tests.hf.tokenizer_test import SMOLLM2
from tests.models.huggingface.goldens import log_softmax
from tools import hf_fixtures

pytestmark = pytest.mark.skipif(not SMOLLM2.is_dir(), reason="models/smollm2 does not exist (make models/smollm2)")
TEXTS = (
    "Proof. Suppose that p divides n! + 1. Then p > n, since every number up to n divides n!. Therefore",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Il était une fois une princesse 🙂",
)
TOLERANCE = 1e-4  # in nats; `transformers` in float32 is up to 2e-5 from itself in float64


def test_log_probabilities_of_text():
    tokens = [np.int32(load_tokenizer(SMOLLM2).encode(text)) for text in TEXTS]
    ids, present = hf_fixtures.left_padded(tokens)
    found = np.asarray(log_softmax(*load(SMOLLM2), ids, present.astype(np.int32)))
    theirs = hf_fixtures.read(SMOLLM2)
    for compute in (hf_fixtures.log_probabilities, hf_fixtures.padded_log_probabilities):
        for row, expected, own in zip(found, compute(theirs, tokens), tokens, strict=True):
            at = np.arange(len(own) - 1), own[1:]
            np.testing.assert_allclose(row[-len(own) :][at], expected[at], rtol=0, atol=TOLERANCE)
            assert np.array_equal(row[-len(own) :].argmax(-1), expected.argmax(-1))
