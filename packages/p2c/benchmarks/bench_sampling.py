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

    def peer(sample: bool) -> torch.Tensor:
        more = {"num_return_sequences": 5, "top_k": 0} if sample else {}
        return model.generate(pixel_values=pixels, do_sample=sample, **more, **settings)[:, 1:]

    @torch.no_grad()
    def five() -> torch.Tensor:
        return captioner.generate(captioner.encode(pixels), 5, 12).ids.flatten(0, 1)

    same = torch.equal(ours(), peer(False)[:, : ours().shape[1]])
    for seed in range(20):
        torch.manual_seed(seed)
        mine = five()
        torch.manual_seed(seed)
        same = same and torch.equal(mine, peer(True)[:, : mine.shape[1]])
    times = interleaved({"transformers generate": lambda: peer(True), "p2c": five}, 9)
    value, words = ratio(times, "transformers generate", "p2c")
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
            "tokens of HFCaptioner (VisionEncoderDecoder) against transformers generate, one set "
            "of weights: greedy, and five samples of 16 images with 20 seeds",
            "identical",
            "identical" if same else "different",
            bool(same),
        ),
        goal(
            "five captions per image against transformers generate, one set of weights, two "
            "layers, width 96, 16 images, 12 tokens, encoder included",
            "at least 3 times faster",
            words,
            bool(value >= 3),
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
