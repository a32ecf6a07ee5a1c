"""Unmodified architectures. Oracle: the same model trained by plain PyTorch, every bit."""

import elixir
import pytest
import torch
from common import HARDWARE, assert_same, elixir_steps, plain_steps

pytestmark = pytest.mark.peer
IDS = torch.randint(0, 99, (2, 12), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
TEXT = {
    "gpt2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "opt": {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "word_embed_proj_dim": 32,
    },
    "llama": SMALL | {"num_key_value_heads": 2},
    "mistral": SMALL | {"num_key_value_heads": 2},
    "qwen2": SMALL | {"num_key_value_heads": 2},
    "phi": SMALL,
    "gpt_neox": SMALL,
    "bloom": {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mixtral": SMALL | {"num_key_value_heads": 2, "num_local_experts": 4},
    "gemma": SMALL | {"num_key_value_heads": 2, "head_dim": 8},
    "bert": SMALL,
    "roberta": SMALL | {"max_position_embeddings": 64},
    "electra": SMALL | {"embedding_size": 32},
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
}
TIMM = [
    "vit_tiny_patch16_224",
    "resnet18",
    "convnext_atto",
    "mixer_s32_224",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "deit_tiny_patch16_224",
    "regnetx_002",
]
VISION = ["resnet18", "vgg11", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5", "alexnet"]


def text_model(name):
    import transformers

    masked = name in ("bert", "roberta", "electra", "distilbert")
    config = transformers.AutoConfig.for_model(name, **TEXT[name])
    for key in vars(config):
        if "dropout" in key or key in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            setattr(config, key, 0.0)
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForCausalLM
    config.pad_token_id = 0

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = auto.from_config(config)

        def forward(self, ids):
            return self.net(input_ids=ids, labels=ids).loss

    return Loss()


def check(make, batch):
    torch.manual_seed(0)
    expected = plain_steps(make(), [batch] * 2, lr=1e-3)
    torch.manual_seed(0)
    model = make()
    plan = elixir.plan(model, batch, device_budget="4GiB", hardware=HARDWARE, recompute="none")
    plan = plan._replan(device_budget=int(plan.least_budget * 1.1))
    assert plan.cache_bytes < sum(c.bytes for c in plan.chunks)
    assert_same(expected, elixir_steps(model, [batch] * 2, plan, lr=1e-3))


@pytest.mark.parametrize("name", TEXT)
def test_transformers(name):
    pytest.importorskip("transformers")
    check(lambda: text_model(name), IDS)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    size = 224 if "224" in name or "mixer" in name else 64
    check(
        lambda: timm.create_model(name, num_classes=5),
        torch.nn.functional.interpolate(IMAGE, size=size),
    )


@pytest.mark.parametrize("name", VISION)
def test_torchvision(name):
    torchvision = pytest.importorskip("torchvision")

    def make():
        model = torchvision.models.get_model(name, num_classes=5)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    check(make, IMAGE)
