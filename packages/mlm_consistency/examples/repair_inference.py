"""Three answers to one question, and the joint that is nearest to all of them."""

import numpy as np
from mlm_consistency import ConsistencyEvaluator, ensemble_conditional, joints

evaluator = ConsistencyEvaluator("mini-bert")
text = "and the king of israel went up to the house of the lord ."
table = evaluator.pair(text, 3, 5, top_k=12).renormalised()
a, b = table.gold
answers = {
    "the model": table.log_a_given_b,
    "nearest joint": joints.ag(table).conditional(0),
    "pool of both": ensemble_conditional(table, 0, ("mlm", "ag")),
}
for name, log_p in answers.items():
    best = table.labels_a[int(np.argmax(log_p[:, b]))]
    print(f"{name}: p({table.labels_a[a]}) = {np.exp(log_p[a, b]):.3f}, prefers {best}")
