"""Repair a model that came as a file, with a handful of clean images."""

import backdoor_ft as bft
from backdoor_ft.ckpt import load_model

model = load_model(bft.models.build("cnn", 1, 10, 8), "victim/model.safetensors")
clean, test = bft.data.digits()
val, _ = test.split(200)
result = bft.repair(model, clean, val=val, method="auto", max_acc_drop=0.01, budget="60s")
print(result)
for note in result.notes:
    print(note)
