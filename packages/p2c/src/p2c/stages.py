"""The losses of the stages: tag pre-training, cross-entropy, paraphrase distillation, RL."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from .association import AssociationModel, association_probability, swap_gate
from .captioner import Captions, Student, TagTransformerCaptioner
from .distributed import global_mean, part, world
from .metrics import CiderD
from .paraphrase import Paraphrase, Paraphraser
from .rewards import RewardSum, WordCosines, clip_score, sample_association
from .rl import SCSTLoss, kl_penalty
from .vocabulary import MASK, PAD, SEP, UNK


@dataclass
class Batch:
    """Images of one step: tags, region features, and the judge's vectors of the images."""

    tags: Int[Tensor, "batch tags"]
    regions: Float[Tensor, "batch regions features"]
    vectors: Float[Tensor, "batch dim"]
    keys: Sequence[Hashable] = ()

    def encode(self, captioner: Student) -> Any:
        """Return the captioner's memory of the images."""
        return captioner.encode(self.tags, self.regions)


def vivo_loss(
    captioner: TagTransformerCaptioner,
    tags: Int[Tensor, "batch tags"],
    regions: Float[Tensor, "batch regions features"],
    generator: torch.Generator,
    rate: float = 0.5,
) -> Float[Tensor, ""]:
    """Stage 0: predict masked tags from regions; tags are a set, so places are matched (VIVO).

    The Hungarian assignment is the published method's; the authors' code has plain cross-entropy.
    """
    there = tags != PAD
    whole = torch.rand((len(tags) * world()[1], tags.shape[1]), generator=generator)
    hide = there & (part(whole) < rate)
    first = there.float().argmax(1)
    alone = there.any(1) & ~hide.any(1)
    hide[alone, first[alone]] = True
    memory = captioner.encode(tags.masked_fill(hide, MASK), regions)
    logs = captioner.logits(memory.states[:, : tags.shape[1]]).log_softmax(-1)
    target = tags.clone()
    several = (hide.sum(1) > 1).nonzero()[:, 0].tolist()
    for row in several:
        places = hide[row].nonzero()[:, 0]
        cost = -logs[row, places][:, tags[row, places]].detach().numpy()
        _, order = linear_sum_assignment(cost)
        target[row, places] = tags[row, places][torch.from_numpy(order)]
    return global_mean(-logs[hide].gather(1, target[hide][:, None]).sum(), hide.sum())


def xe_loss(
    captioner: Student,
    memory: Any,
    ids: Int[Tensor, "batch length"],
    smoothing: float = 0.0,
    leave_out: Collection[int] = (),
) -> Float[Tensor, ""]:
    """Masked-token cross-entropy under the causal mask, at every place of every caption.

    The authors mask 15 % of the tokens; predicting each place at its own [MASK] in one pass has
    the same expectation with every earlier word visible, and no variance from the choice. Words of
    ``leave_out`` are not predicted.
    """
    logits = captioner.masked_logits(memory, ids[:, None])[:, 0]
    there = ids != PAD
    logs = logits.log_softmax(-1)
    loss = -logs.gather(-1, ids.clamp(min=SEP)[..., None])[..., 0]
    if smoothing:
        finite = torch.isfinite(logs)
        rest = -torch.where(finite, logs, torch.zeros_like(logs)).sum(-1) / finite.sum(-1)
        loss = (1 - smoothing) * loss + smoothing * rest
    counted = there & (ids != UNK)
    if leave_out:
        counted = counted & ~torch.isin(ids, torch.tensor(sorted(leave_out), device=ids.device))
    return global_mean(loss[counted].sum(), counted.sum())


def uncovered(
    line: Sequence[int], tags: Sequence[int], nouns: Collection[int]
) -> tuple[list[int], list[int]] | None:
    """Return tags that a caption does not name, and the places of nouns that are no tags.

    Returns None unless there is one of each.
    """
    missing = [t for t in tags if t > UNK and t not in line]
    places = [i for i, w in enumerate(line) if w in nouns and w not in tags]
    return (missing, places) if missing and places else None


@dataclass
class Distillation:
    """Stage 1: rewrite greedy captions with a language model, keep what the judge prefers.

    Parameters
    ----------
    paraphraser : Paraphraser
        Proposes.
    judge : AssociationModel
        Accepts by `swap_gate`.
    margin : float
        Of the gate.
    average : "masked" or "accepted"
        Denominator of the loss: all masked places (as the authors have it), or accepted ones.
    proposals : int
        Paraphrases asked for per caption (1 in the authors' code); the one of highest A is gated.
    nouns : set of int
        If given, captions are grounded before they are paraphrased: a tag that they do not name
        takes the place of a noun that is no tag, where that raises A (see `ground`). Ours; the
        verb of a thing that is not there cannot be right.
    anchor : Student, optional
        A frozen captioner whose distribution is kept where nothing is rewritten, by a KL divergence
        of weight ``anchor_weight``: distillation of one word otherwise blurs the objects.
    """

    paraphraser: Paraphraser
    judge: AssociationModel
    margin: float = 0.1
    average: str = "masked"
    proposals: int = 1
    nouns: frozenset[int] = frozenset()
    anchor: Student | None = None
    anchor_weight: float = 1.0
    proposed: int = 0
    accepted: int = 0
    without_verb: int = 0

    @torch.no_grad()
    def ground(
        self, greedy: Int[Tensor, "batch length"], batch: Batch
    ) -> Int[Tensor, "batch length"]:
        """Put unnamed tags in the places of nouns that are no tags, wherever the judge agrees."""
        if not self.nouns:
            return greedy
        scale = self.judge.scale
        for _ in range(batch.tags.shape[1]):
            text = self.judge.encode_text(greedy)
            best, least = greedy, association_probability(batch.vectors, text, scale)
            for which in range(2):  # the first or the last of the places
                other = greedy.clone()
                for row, (line, tags) in enumerate(zip(greedy.tolist(), batch.tags.tolist())):
                    if found := uncovered(line, tags, self.nouns):
                        missing, places = found
                        other[row, places[-which]] = missing[0]
                new = self.judge.encode_text(other)
                after = association_probability(batch.vectors, text, scale, swapped=new)
                best = torch.where((after > least)[:, None], other, best)
                least = torch.maximum(after, least)
            greedy = best
        return greedy

    def propose(
        self, greedy: Int[Tensor, "batch length"], batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
        """Return masked captions, paraphrases, accepted teacher words, A before and A after."""
        found = self.paraphraser.propose(greedy, generator)
        if found is None and world()[1] > 1:  # other processes wait for this one's captions
            found = Paraphrase(greedy, greedy, torch.zeros_like(greedy))
        if found is None:
            self.without_verb += len(greedy)
            return None
        with torch.no_grad():
            text = self.judge.encode_text(greedy)
            before = association_probability(batch.vectors, text, self.judge.scale)

            def judged(ids: Tensor) -> Tensor:
                new = self.judge.encode_text(ids)
                return association_probability(batch.vectors, text, self.judge.scale, swapped=new)

            after = judged(found.ids)
            for rank in range(1, self.proposals):
                other = self.paraphraser.propose(greedy, generator, rank) or found
                score = judged(other.ids)
                better = score > after
                after = torch.where(better, score, after)
                for name in ("masked", "ids", "teacher"):
                    kept = torch.where(better[:, None], getattr(other, name), getattr(found, name))
                    setattr(found, name, kept)
        changed = (found.teacher != PAD).any(1)
        keep = swap_gate(before, after, self.margin) & changed
        self.proposed += int(changed.sum())
        self.accepted += int(keep.sum())
        self.without_verb += int((~changed).sum())
        teacher = found.teacher * keep[:, None]
        return found.masked, found.ids, teacher, before, after

    def loss(
        self, captioner: Student, batch: Batch, generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Return the cross-entropy of accepted words at their places; 0 if there is none.

        With an ``anchor``, its distribution is kept at all other places (see `_drift`).
        """
        memory = batch.encode(captioner)
        greedy = self.ground(captioner.generate(memory, greedy=True).ids[:, 0], batch)
        found = self.propose(greedy, batch, generator)
        if found is None:
            return torch.zeros((), device=batch.regions.device)
        masked, ids, teacher, _, _ = found
        logs = captioner.masked_logits(memory, masked[:, None])[:, 0].log_softmax(-1)
        keep = teacher != PAD
        count = keep.sum() if self.average == "accepted" else (masked == MASK).sum()
        total = global_mean(F.nll_loss(logs[keep], teacher[keep], reduction="sum"), count)
        if self.anchor is not None:
            said = torch.where(keep.any(1, keepdim=True), ids, greedy)
            total = total + self.anchor_weight * self._drift(captioner, batch, memory, said, masked)
        return total

    def _drift(
        self,
        captioner: Student,
        batch: Batch,
        memory: Any,
        said: Int[Tensor, "batch length"],
        masked: Int[Tensor, "batch length"],
    ) -> Float[Tensor, ""]:
        """Return KL(anchor || captioner) at the words that are not rewritten.

        The anchor reads the caption as it would have worded it, the captioner reads the paraphrase:
        whatever verb was said, the objects that follow are to stay.
        """
        assert self.anchor is not None
        hidden = masked == MASK
        with torch.no_grad():
            seen = batch.encode(self.anchor)
            own = self.anchor.masked_logits(seen, said[:, None])[:, 0].argmax(-1)
            old = self.anchor.masked_logits(seen, torch.where(hidden, own, said)[:, None])
        places = (said != PAD) & ~hidden
        before = old[:, 0][places].log_softmax(-1)
        now = captioner.masked_logits(memory, said[:, None])[:, 0][places].log_softmax(-1)
        finite = torch.isfinite(now)
        gap = before.exp() * torch.where(finite, before - now, torch.zeros_like(now))
        return global_mean(gap.nan_to_num(0.0).sum(), places.sum())


@dataclass
class SelfParaphrase:
    """Stage 2: the captioner's own samples, rewarded against its greedy captions.

    Parameters
    ----------
    judge : AssociationModel
        Of the association term.
    cosines : WordCosines
        Of the coverage and repetition terms.
    cider : CiderD
        With the references of the captioned images, over word numbers.
    weights : mapping
        Of "association", "clipscore", "coverage", "repetition", "cider"; a term of
        weight 0 is not computed.
    scst : SCSTLoss
        Gradient estimator.
    samples, explore : int
        Samples per image; how many of them are the greedy caption with an uncovered tag.
    nouns : set of int
        Words whose place a tag may take in a seeded sample.
    kl : float
        Weight of the KL penalty to ``reference``.
    """

    judge: AssociationModel
    cosines: WordCosines
    cider: CiderD
    weights: Mapping[str, float]
    scst: SCSTLoss
    samples: int = 5
    explore: int = 0
    nouns: frozenset[int] = frozenset()
    kl: float = 0.0
    reference: Student | None = None
    log: RewardSum = field(init=False)

    def __post_init__(self) -> None:
        """Make the sum of the terms."""
        self.log = RewardSum(self.weights)

    def terms(
        self, ids: Int[Tensor, "batch samples length"], batch: Batch, paired: bool
    ) -> dict[str, Float[Tensor, "batch samples"]]:
        """Return every reward term of captions of one half-batch."""
        found: dict[str, Tensor] = {}
        words = [[[w for w in line if w > UNK] for line in image] for image in ids.tolist()]
        if self.weights.get("association"):
            found["association"] = sample_association(self.judge, batch.vectors, ids)
        if self.weights.get("clipscore"):
            found["clipscore"] = clip_score(self.judge, batch.vectors, ids)
        if paired:
            rows = [
                [[*line, SEP] for line in image] for image in words
            ]  # the end token is part of the n-grams
            found["cider"] = torch.tensor(
                [
                    [self.cider.score(k, line) for line in image]
                    for k, image in zip(batch.keys, rows)
                ],
                dtype=torch.float32,
            )
            return found
        if self.weights.get("coverage"):
            tags = [[t for t in row if t > UNK] for row in batch.tags.tolist()]
            found["coverage"] = torch.tensor(
                [[self.cosines.coverage(t, line) for line in im] for t, im in zip(tags, words)]
            )
        if self.weights.get("repetition"):
            found["repetition"] = torch.tensor(
                [[self.cosines.repetition(line) for line in image] for image in words]
            )
        return found

    def _seeds(
        self, greedy: Int[Tensor, "batch length"], batch: Batch, generator: torch.Generator
    ) -> Int[Tensor, "batch samples length"] | None:
        """Return greedy captions with an uncovered tag in the place of a noun that is no tag.

        Sampling never finds a word whose probability is next to nothing; the judge says whether the
        seeded caption is better, and only then it is learnt.
        """
        if not self.explore:
            return None
        forced = torch.zeros(len(greedy), self.samples, greedy.shape[1], dtype=torch.long)
        draws = torch.rand(len(greedy), self.samples, generator=generator).tolist()
        for row, (line, tags) in enumerate(zip(greedy.tolist(), batch.tags.tolist())):
            found = uncovered(line, tags, self.nouns)
            for k in range(self.explore if found else 0):
                missing, places = found or ([], [])
                seeded = list(line)
                seeded[places[int(draws[row][k] * len(places))]] = missing[k % len(missing)]
                forced[row, k] = torch.tensor(seeded)
        return forced

    def half(
        self,
        captioner: Student,
        batch: Batch,
        paired: bool,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return the loss of one half-batch: unpaired images, or captioned ones."""
        memory = batch.encode(captioner)
        greedy = captioner.generate(memory, greedy=True).ids
        forced = None if paired else self._seeds(greedy[:, 0], batch, generator)
        drawn: Captions = captioner.generate(
            memory, self.samples, generator=generator, forced=forced
        )
        rewards = self.log(self.terms(drawn.ids, batch, paired))
        with torch.no_grad():
            base = RewardSum(self.weights)(self.terms(greedy, batch, paired))[:, 0]
        logs = captioner.log_prob(memory, drawn.ids)
        there = drawn.ids != PAD
        if forced is not None:  # a seeded caption is a demonstration: it may only be encouraged
            seeded = (forced != PAD).any(-1)
            rewards = torch.where(seeded, torch.maximum(rewards, base[:, None]), rewards)
        loss = self.scst(logs, there, rewards, base)
        if self.kl and self.reference is not None:
            with torch.no_grad():
                old = self.reference.log_prob(batch.encode(self.reference), drawn.ids)
            loss = loss + self.kl * kl_penalty(logs, old)
        return loss
