"""Any function that gives logits can be examined: a model with a joint, and one without."""

import numpy as np
from mlm_consistency import FunctionScorer, PairTable, Planner, Request, TableScorer, compat

V, MASK = 6, 6
rng = np.random.default_rng(0)
pull = rng.normal(size=(V, V))


def two_opinions(ids):
    """Position 0 believes in `pull`, position 1 in half of it: no joint has both conditionals."""
    logits = np.full((*ids.shape, V + 1), -np.inf)
    for row, (a, b) in enumerate(ids):
        logits[row, 0, :V] = pull[:, b] if b < V else pull.mean(axis=1)
        logits[row, 1, :V] = 0.5 * pull[a] if a < V else pull.mean(axis=0)
    return logits


def table_of(scorer):
    """Both conditional matrices, read one mask at a time."""
    tokens = tuple(range(V))
    requests = [Request((MASK, b), 0, tokens) for b in tokens]
    requests += [Request((a, MASK), 1, tokens) for a in tokens]
    found = [s.log_p for s in Planner(scorer).score(requests)]
    return PairTable(np.stack(found[:V], axis=1), np.stack(found[V:]))


for name, scorer in (
    ("exact predictor of a joint", TableScorer(pull)),
    ("two opinions", FunctionScorer(two_opinions, MASK, V + 1)),
):
    verdict = compat.test(table_of(scorer), tol=1e-9)
    print(f"{name}: compatible {bool(verdict)}, worst {abs(verdict.certificate.gap):.3g} nats")
