"""Five captions per image: shared memory and cache against `generate` of transformers."""

from __future__ import annotations

import itertools

import torch
from _common import goal, interleaved, options, ratio, write
from p2c import HFCaptioner, SCSTLoss, TagTransformerCaptioner
from p2c.vocabulary import PAD, SEP
from transformers import BertConfig, BertLMHeadModel, ViTConfig, ViTModel
from transformers import VisionEncoderDecoderModel as Ved


def rl_gap() -> float:
    """Return the largest gap between the gradient of SCSTLoss and exact enumeration."""
    torch.manual_seed(0)
    net = TagTransformerCaptioner(torch.randn(8, 8), 3, 1, 2, 3).double()
    lines = [
        [*body, SEP][:3] if n < 3 else list(body)
        for n in range(4)
        for body in itertools.product((5, 6, 7), repeat=n)
    ]
    ids = torch.tensor([line + [PAD] * (3 - len(line)) for line in lines])
    tags, regions = torch.tensor([[5, 6]]), torch.randn(1, 2, 3).double()
    rewards = torch.rand(len(ids), dtype=torch.float64)

    def logs() -> torch.Tensor:
        return net.log_prob(net.encode(tags, regions), ids[None])[0]

    def grads() -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    (-(logs().sum(-1).exp() * rewards).sum()).backward()
    want = grads().clone()
    net.zero_grad()
    line = logs()
    p, there, base = line.sum(-1).exp().detach(), ids != PAD, torch.tensor([0.4]).double()
    sum(
        p[k]
        * SCSTLoss()(line[None, k : k + 1], there[None, k : k + 1], rewards[None, k : k + 1], base)
        for k in range(len(ids))
    ).backward()  # type: ignore[union-attr]
    return float((grads() - want).abs().max())


def main() -> None:
    out = options("bench_sampling", __doc__ or "").out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2}
    model = Ved(
        encoder=ViTModel(ViTConfig(**small, num_attention_heads=4, image_size=48, patch_size=8)),
        decoder=BertLMHeadModel(
            BertConfig(
                **small, num_attention_heads=4, vocab_size=1000, is_decoder=True,
                add_cross_attention=True,
            )
        ),
    ).eval()  # fmt: skip
    captioner = HFCaptioner(model, 1, 2, 0)
    pixels = torch.rand(16, 3, 48, 48)
    settings = {
        "decoder_start_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 12,
        "num_beams": 1,
    }  # fmt: skip

    @torch.no_grad()
    def ours() -> torch.Tensor:
        return captioner.generate(captioner.encode(pixels), 1, 12, greedy=True).ids[:, 0]

    with torch.no_grad():
        theirs = model.generate(pixel_values=pixels, do_sample=False, **settings)[:, 1:]
    same = bool(torch.equal(ours(), theirs[:, : ours().shape[1]]))
    net = TagTransformerCaptioner(torch.randn(1000, 96), 70, 2, 4, 12)
    tags, regions = torch.randint(5, 1000, (16, 2)), torch.randn(16, 34, 70)
    times = interleaved(
        {
            "transformers generate": lambda: model.generate(
                pixel_values=pixels, do_sample=True, num_return_sequences=5, top_k=0, **settings
            ),
            "p2c tag transformer": lambda: net.generate(net.encode(tags, regions), 5),
        },
        7,
    )
    value, words = ratio(times, "transformers generate", "p2c tag transformer")
    gap = rl_gap()
    many = TagTransformerCaptioner(torch.randn(105, 96), 70, 2, 4, 10)
    labels, features = torch.randint(5, 105, (1000, 2)), torch.randn(1000, 2, 70)
    thousand = interleaved({"all": lambda: many.generate(many.encode(labels, features))}, 3)["all"]
    goals = [
        goal(
            "SCST gradient, sum of log-probabilities, against enumeration of 40 outcomes (float64)",
            "at most 1e-5",
            f"{gap:.1e}",
            gap <= 1e-5,
        ),
        goal(
            "greedy tokens of HFCaptioner (VisionEncoderDecoder) against transformers generate",
            "identical",
            "identical" if same else "different",
            same,
        ),
        goal(
            "five captions per image against transformers generate, two layers, width 96",
            "at least 3 times faster",
            words,
            bool(value >= 3),
            "two models of one size, not one set of weights; the peer's encoder is a ViT of "
            "37 tokens, ours reads 36 tags and regions; 12 tokens each",
        ),
        goal(
            "1000 images captioned, small model (two layers, width 96, random weights)",
            "at most 20 s",
            f"{sorted(thousand)[1]:.2f} s ({min(thousand):.2f} to {max(thousand):.2f}), one thread",
            sorted(thousand)[1] <= 20,
            "features given",
        ),
    ]
    rows = [[k, sorted(v)[len(v) // 2], min(v), max(v)] for k, v in times.items()]
    table = {"title": "Seconds", "columns": ["who", "median", "min", "max"], "rows": rows}
    write(out, "bench_sampling", "Sampling and policy gradient", goals, [table])


if __name__ == "__main__":
    main()
