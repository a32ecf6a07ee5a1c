"""The graph is alive: group tokens differ, groups are found untrained."""

import torch
from common import arguments, goal, write
from gptr.explain import model_group_distances, official_collapse
from gptr.gestalt.coarsen import mean_cosine_distance
from gptr.gestalt.graph import GestaltGraph
from gptr.model.gptr import GPTR
from gptr.scenes import law_auc
from gptr.synth.generate import generate
from gptr.train.trainer import Trainer


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps of the message model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = generate("mixed", 20, 48, size=128, objects=(3, 5), seed=3)
    images = [r.load() for r in data.records[:8]]
    groups = GestaltGraph().groups(images, 16)
    alone = {k: float(mean_cosine_distance(t).mean()) for k, (_, t) in groups.items()}
    torch.manual_seed(0)
    model = GPTR.from_config(
        "gptr-tiny",
        num_classes=20,
        mode="gptr",
        group_count=16,
        encoder_layers=2,
        laws=("similarity", "proximity", "smoothness"),
    )
    before = model_group_distances(model.eval(), images)
    Trainer(model, data, epochs=10**6, steps=options.steps, batch_size=8).fit()
    after = model_group_distances(model.eval(), images)
    official = official_collapse(images)
    bars = {"similarity": 0.95, "proximity": 0.95, "smoothness": 0.85}
    auc = {law: law_auc(law, scenes=20, seed=1) for law in bars}
    goals = [
        goal(
            f"group tokens, mean cosine distance, {name}",
            ">= 0.2 for each law",
            ", ".join(f"{k} {v:.2f}" for k, v in values.items()),
            min(values.values()) >= 0.2,
        )
        for name, values in (
            ("graph alone", alone),
            ("inside the model at initialisation", before),
            (f"inside the model after {options.steps} steps", after),
        )
    ]
    goals += [
        goal(
            f"same-group pairs outrank others, {law}",
            f"AUC >= {bar}",
            f"{auc[law]:.3f}",
            auc[law] >= bar,
        )
        for law, bar in bars.items()
    ]
    rows = [[law, official[law], alone[law], before[law], after[law], auc[law]] for law in bars]
    columns = [
        "law",
        "official graph",
        "ours alone",
        "in the model",
        "after training",
        "AUC untrained",
    ]
    tables = [
        {"title": "Mean cosine distance of group tokens; AUC", "columns": columns, "rows": rows}
    ]
    write(options.out, __file__, "Living graph", goals, tables)


if __name__ == "__main__":
    main()
