"""Patching, statistics, auto-encoder and fine-tuning."""

import copy

import numpy as np
import pytest
import torch
from vitcod import (
    AEConfig,
    AttentionStats,
    InputError,
    Recipe,
    SparsityPlan,
    VisionTransformer,
    accuracy,
    collect_attention,
    finetune,
    fold_autoencoder,
    patch,
    polarize,
    prune,
    unpatch,
)
from vitcod.adapters import attention_modules, logits
from vitcod.autoencoder import HeadCodec
from vitcod.patching import autoencoder_loss


def foreign_models():
    import timm
    from transformers import DeiTConfig, DeiTForImageClassification, ViTConfig
    from transformers import ViTForImageClassification as Vit

    small = {"image_size": 32, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"hidden_size": 32, "intermediate_size": 64}
    return {
        "timm": timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
        ),
        "timm qk-norm": timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, qk_norm=True
        ),
        "hf vit": Vit(ViTConfig(**small)),
        "hf deit": DeiTForImageClassification(DeiTConfig(**small)),
    }


@pytest.mark.parametrize("name", ["timm", "timm qk-norm", "hf vit", "hf deit"])
def test_other_libraries(name):
    network = foreign_models()[name].eval()
    x = torch.randn(2, 3, 32, 32)
    stats = collect_attention(network, [x])
    assert stats.special_tokens == (2 if "deit" in name else 1)
    dense = logits(network, x)
    full = SparsityPlan.from_masks([np.ones(m.shape, bool) for m in stats.maps])
    assert torch.allclose(logits(patch(network, full), x), dense, atol=1e-5)
    unpatch(network)
    patch(network, polarize(prune(stats, sparsity=0.5)))
    assert (logits(network, x) - dense).abs().max() > 1e-6
    logits(network, x).sum().backward()
    unpatch(network)
    assert torch.equal(logits(network, x), dense)


def test_timm_checkpoint_loads_into_own_model():
    import timm

    arguments = {"depth": 2, "mlp_ratio": 2.0}
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, num_heads=2, num_classes=5, **arguments
    ).eval()
    ours = VisionTransformer(image=32, patch=8, classes=5, dim=32, heads=2, **arguments).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_maps_are_means_of_softmax(model, images):
    stats = collect_attention(model, images.split(4))
    seen = []
    hook = model.blocks[1].attn.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    model(images)
    hook.remove()
    qkv = model.blocks[1].attn.qkv(seen[0]).double().view(6, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    expected = torch.softmax(qkv[0] @ qkv[1].transpose(-1, -2) / 8**0.5, -1).mean(0)
    assert np.allclose(stats.maps[1], expected.detach().numpy(), atol=1e-6)
    assert stats.images == 6
    assert collect_attention(model, images.split(4), max_images=5).images == 5


def test_output_scores_are_the_definition(model, images):
    stats = collect_attention(model, [images], output_scores=True)
    seen = []
    hook = model.blocks[0].attn.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    model(images)
    hook.remove()
    q, k, v = model.blocks[0].attn.qkv(seen[0]).double().view(6, 17, 3, 4, 8).permute(2, 0, 3, 1, 4)
    a = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
    distance = ((v[:, :, None] - (a @ v)[:, :, :, None]) ** 2).sum(-1)
    expected = (a**2 * distance).mean(0).detach().numpy()
    assert np.allclose(stats.output_scores[0], expected, rtol=1e-3, atol=1e-7)
    assert prune(stats, sparsity=0.5, method="output").sparsity == pytest.approx(0.5, abs=2e-3)


def test_nan_in_the_model_is_named(model, images):
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="layer 1, head 0"):
        collect_attention(model, [images])


def test_statistics_file(model, images, tmp_path):
    stats = collect_attention(model, [images], output_scores=True)
    again = AttentionStats.load(stats.save(tmp_path / "s.safetensors"))
    assert again.checksum() == stats.checksum()
    assert again.images == 6
    assert np.array_equal(again.q_moments[1], stats.q_moments[1])
    with pytest.raises(InputError, match="holds no attention statistics"):
        AttentionStats.load(prune(stats, sparsity=0.5).save(tmp_path / "p.safetensors"))


def test_plan_and_model_must_match(model, images):
    plan = prune(collect_attention(model, [images]), sparsity=0.5)
    other = VisionTransformer(image=8, patch=2, channels=1, dim=32, depth=3, heads=4)
    with pytest.raises(InputError, match="plan has 2 layers and the model 3"):
        patch(other, plan)
    other = VisionTransformer(image=8, patch=2, channels=1, dim=32, depth=2, heads=2)
    with pytest.raises(InputError, match="plan has 4 heads in layer 0"):
        patch(other, plan)
    patch(model, plan)
    with pytest.raises(InputError, match="patched already"):
        patch(model, plan)
    with pytest.raises(InputError, match=r"plan made for 17 .* got 26.*resize"):
        model.blocks[0](torch.zeros(1, 26, 32))
    unpatch(model)
    with pytest.raises(InputError, match="not patched"):
        unpatch(model)
    with pytest.raises(InputError, match="no attention layer that vitcod knows"):
        attention_modules(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="gave no image"):
        collect_attention(model, [])


def test_codec_reaches_the_eckart_young_bound():
    x = torch.randn(3, 6, 50, 16, dtype=torch.float64)
    x[:, 3] = x[:, 0] - 0.1 * x[:, 1]
    moment = torch.einsum("bhnd,bgnd->hg", x, x).numpy() / (3 * 50 * 16)
    values = np.linalg.eigvalsh(moment)
    for small in (1, 3, 5, 6):
        codec = HeadCodec(6, small).double()
        lost = codec.initialise(moment)
        error = ((codec(x) - x) ** 2).sum().item() / (3 * 50 * 16)
        assert error == pytest.approx(values[: 6 - small].sum(), abs=1e-9)
        assert lost == pytest.approx(values[: 6 - small].sum() / values.sum(), abs=1e-9)


def test_autoencoder_folds_exactly_and_unpatches(model, images):
    dense = model(images)
    stats = collect_attention(model, [images])
    plan = prune(stats, sparsity=0.5)
    patch(model, plan, AEConfig(0.5, stats=stats))
    with torch.no_grad():
        for block in model.blocks:  # biases as after training
            block.attn.vitcod_autoencoder.q.encoder.bias.normal_()
            block.attn.vitcod_autoencoder.k.decoder.bias.normal_()
    before = model(images)
    counts = fold_autoencoder(model)
    assert torch.allclose(model(images), before, atol=1e-5)
    assert counts["after"] < counts["before"]
    assert model.blocks[0].attn.qkv.out_features == (2 + 2 + 4) * 8
    with pytest.raises(InputError, match="already folded"):
        fold_autoencoder(model)
    unpatch(model)
    assert torch.equal(model(images), dense)


def test_folding_saves_at_deit_base_size():
    network = VisionTransformer(image=32, patch=16, dim=768, depth=1, heads=12)
    patch(network, None, AEConfig(0.5, init="random"))
    assert fold_autoencoder(network)["ratio"] < 0.6


def test_full_ratio_changes_nothing(model, images):
    dense = model(images)
    stats = collect_attention(model, [images])
    patch(model, None, AEConfig(1.0, stats=stats))
    assert torch.allclose(model(images), dense, atol=1e-5)


def test_official_loss_is_a_norm_over_the_batch(model, images):
    stats = collect_attention(model, [images])
    patch(model, None, AEConfig(0.5, stats=stats))
    model(images)
    one = autoencoder_loss(model).item()
    each = autoencoder_loss(model, per_element=True).item()
    model(torch.cat([images, images]))
    assert autoencoder_loss(model).item() == pytest.approx(2**0.5 * one, rel=1e-4)
    assert autoencoder_loss(model, per_element=True).item() == pytest.approx(each, rel=1e-4)


def test_autoencoder_settings():
    # compressed heads as in the authors' code: 12->6, 6->3, 3->2
    assert [AEConfig(0.5, "random").compressed(h) for h in (12, 6, 3)] == [6, 3, 2]
    assert AEConfig(0.667, "random").compressed(3) == 2
    for arguments, message in (
        ({"ratio": 0}, "ratio=0"),
        ({"init": "zeros"}, "init='zeros'"),
        ({}, "needs stats"),
    ):
        with pytest.raises(InputError, match=message):
            AEConfig(**arguments)


def test_fine_tuning_learns_and_repeats(model):
    x = torch.rand(128, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()
    stats = collect_attention(model, [x])
    recipe = Recipe.cpu(6, 3e-3)
    losses = []
    for _ in range(2):
        pruned = patch(copy.deepcopy(model), prune(stats, sparsity=0.7))
        losses.append(finetune(pruned, x, y, recipe, seed=1))
    assert losses[0] == losses[1]
    assert np.mean(losses[0][-2:]) < np.mean(losses[0][:2])
    assert accuracy(pruned, x, y) > 0.5
    taught = patch(copy.deepcopy(model), prune(stats, sparsity=0.7))
    soft = Recipe(epochs=1, batch=64, learning_rate=1e-3, distillation=1.0)
    finetune(taught, x, y, soft, teacher=model)
    with pytest.raises(InputError, match="needs a teacher"):
        finetune(model, x, y, soft)
    with pytest.raises(InputError, match="labels 3"):
        finetune(model, x, y[:3])
    assert Recipe().learning_rate == 1e-5  # the authors' second stage
    assert Recipe.autoencoder().final_learning_rate == 5e-6


def test_attention_mask_and_dropout_are_refused(model, images):
    import timm

    plan = prune(collect_attention(model, [images]), sparsity=0.5)
    patch(model, plan)
    with pytest.raises(InputError, match="attn_mask"):
        model.blocks[0].attn(torch.zeros(1, 17, 32), attn_mask=torch.zeros(17, 17))
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, embed_dim=32, depth=2, num_heads=4, attn_drop_rate=0.1
    )
    with pytest.raises(InputError, match="dropout"):
        patch(network, plan)


def levit(seed=0):
    import timm

    torch.manual_seed(seed)
    model = timm.create_model("levit_128s", num_classes=10).eval()
    for module in model.modules():  # fresh biases are zero, and so are the last norms' scales
        if hasattr(module, "attention_biases"):
            torch.nn.init.normal_(module.attention_biases)
        if hasattr(module, "bn") and (module.bn.weight == 0).all():
            torch.nn.init.ones_(module.bn.weight)
    return model


def test_levit_with_biases_and_fewer_queries_than_keys(monkeypatch):
    model = levit()
    images = torch.rand(2, 3, 224, 224)
    stats = collect_attention(model, [images])
    shapes = [m.shape for m in stats.maps]
    assert stats.special_tokens == 0
    assert (8, 49, 196) in shapes
    assert all(np.allclose(m.sum(-1), 1, atol=1e-5) for m in stats.maps)
    with torch.no_grad():
        dense = model.forward_features(images)
        size = float(dense.abs().max())
        everything = SparsityPlan.from_masks([np.ones(s, bool) for s in shapes])
        patch(model, everything)
        assert torch.allclose(model.forward_features(images), dense, atol=1e-4 * size)
        unpatch(model)
        plan = polarize(prune(stats, sparsity=0.7))
        assert abs(plan.sparsity - 0.7) < 1e-3
        patch(model, plan)
        sparse = model.forward_features(images)
        unpatch(model)
        # timm's own attention, with -inf added where the plan keeps nothing
        for (_, module), layer in zip(attention_modules(model), plan, strict=True):
            masked = module.get_attention_biases(images.device).masked_fill(
                ~torch.from_numpy(layer.keep.copy()), -torch.inf
            )
            monkeypatch.setattr(module, "get_attention_biases", lambda _, m=masked: m)
        assert torch.allclose(model.forward_features(images), sparse, atol=1e-4 * size)
        assert not torch.allclose(sparse, dense, atol=0.01 * size)
