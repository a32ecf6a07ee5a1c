"""All stages in order, from one configuration, with checkpoints that resume bit for bit."""

from __future__ import annotations

import copy
import math
import time
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .association import SmallAssociation
from .calibration import calibrate_margin, sweep_margins
from .captioner import Student, TagTransformerCaptioner
from .config import PipelineConfig, relevant_settings
from .detector import RegionDetector
from .distributed import average_gradients, everywhere, part, world
from .errors import NotFiniteError, require
from .files import load_tensors, save_tensors
from .formats import read_glove
from .hf_named import HFJudge, HFStudent, load_captioner, load_judge, load_paraphraser
from .metrics import CiderD
from .negatives import WordSwaps
from .paraphrase import MaskedLMParaphraser, Paraphraser, SmallMaskedLM, lexicon_tagger
from .result import Accepted, PipelineResult
from .rewards import WordCosines
from .rl import SCSTLoss
from .scenes import (
    RegionFeaturizer,
    Scenes,
    check_held_out,
    make_corpus,
    make_scenes,
    unseen_font,
)
from .stages import Batch, Distillation, SelfParaphrase, vivo_loss, xe_loss
from .vocabulary import PAD, SEP, UNK
from .world import GENERIC, NAMES, RICH_VERBS, SWAPPABLE, SYNONYMS, THINGS, world_vocabulary

Say = Callable[[str], None]
Net = TagTransformerCaptioner | HFStudent
FEATURES = 64 + 6
JUDGE_WIDTH = 24
MARGINS = [round(0.02 * k, 2) for k in range(31)]


# what `train` calls a stage -> the last module that it trains
STAGES = {
    "lm": "LM",
    "judge": "evaluator",
    "vivo": "VIVO",
    "xe": "VIVO + XE",
    "stage1": "stage 1",
    "stage2": "stage 2",
}


class _Reached(Exception):  # noqa: N818 (no error: the wanted stage is done)
    pass


class Pipeline:
    """Language model, judge, evaluator, tag pre-training, XE, stage 1 and stage 2.

    Parameters
    ----------
    config : PipelineConfig
        Everything the run depends on.
    """

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.vocabulary = world_vocabulary()
        self.nouns = [*NAMES, *(s for names in SYNONYMS.values() for s in names)]
        self.state: dict[str, Any] = {}
        self.checkpoint: Path | None = None
        self.until = ""
        self.detector: RegionDetector | None = None
        self.judge: SmallAssociation | HFJudge
        self.evaluator: SmallAssociation

    @classmethod
    def from_yaml(cls, path: str | Path) -> Pipeline:
        """Build from a YAML file (see `PipelineConfig`)."""
        return cls(PipelineConfig.from_yaml(path))

    # ---- data ----------------------------------------------------------------------------

    def _prepare(self) -> None:
        c = self.config
        noise = c.noise
        self.paired = make_scenes(c.paired, c.seed * 10 + 1, references=3, **noise)
        check_held_out([r for refs in self.paired.references for r in refs])
        mix = (0.3, 0.4, 0.3)
        self.unpaired = make_scenes(c.unpaired, c.seed * 10 + 2, mix, **noise)
        drawn: dict[str, Any] = {"rich": 0.7, "references": 5, **noise}
        self.test = make_scenes(c.test, c.seed * 10 + 3, mix, **drawn)
        self.scenes = {"paired": self.paired, "unpaired": self.unpaired, "test": self.test}
        font = unseen_font() if c.unseen_style else None
        if font is not None:
            self.scenes["unseen"] = make_scenes(
                c.test, c.seed * 10 + 3, mix, font=str(font), **drawn
            )
        self.featurizer = RegionFeaturizer.fit(self.unpaired.crops)
        self.data = {name: (self._tags(s.tags), self._seen(s)) for name, s in self.scenes.items()}
        length = c.max_length
        self.refs = torch.stack(
            [self.vocabulary.encode_all(r, length) for r in self.paired.references]
        )
        self.corpus = self.vocabulary.encode_all(make_corpus(c.corpus, c.seed), length + 2)

    def _seen(self, scenes: Scenes) -> Tensor:
        """Return what the captioner sees: features of the regions, or whole pictures."""
        return self.featurizer(scenes) if self.config.captioner == "native" else scenes.images

    def _tags(self, tags: list[list[str]]) -> Tensor:
        rows = [[self.vocabulary.index[t] for t in row] for row in tags]
        return torch.tensor([row + [PAD] * (2 - len(row)) for row in rows])

    # ---- training loop -------------------------------------------------------------------

    def _generator(self, stage: str, step: int) -> torch.Generator:
        """Random numbers that depend on seed, stage and step only: a resumed step is the same."""
        number = zlib.crc32(f"{self.config.seed}/{stage}/{step}".encode())
        return torch.Generator().manual_seed(number)

    def _init(self, stage: str) -> None:
        torch.manual_seed(zlib.crc32(f"{self.config.seed}/init/{stage}".encode()))

    def _train(
        self,
        stage: str,
        net: nn.Module,
        steps: int,
        lr: float,
        loss_of: Callable[[torch.Generator], Tensor] | None,
        say: Say,
        *,
        cosine: bool = True,
    ) -> None:
        """Train a module, or take it from the checkpoint; abort after 20 losses not finite."""
        done = self.state.setdefault("done", {})
        curve: list[float] = []
        if stage in done:
            net.load_state_dict(done[stage]["net"])
            self._stop_after(stage)
            return
        assert loss_of is not None
        begin, processor = time.perf_counter(), time.process_time()
        parameters = [p for p in net.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0.01)
        start, bad = 0, 0
        if self.state.get("stage") == stage:
            net.load_state_dict(self.state["net"])
            optimizer.load_state_dict(self.state["optimizer"])
            start, curve = self.state["step"], list(self.state["curve"])
        every = self.config.checkpoint_every
        for step in range(start, steps):
            fraction = step / max(1, steps)
            scale = 0.5 * (1 + math.cos(math.pi * fraction)) if cosine else 1.0
            for group in optimizer.param_groups:
                group["lr"] = lr * scale * min(1.0, (step + 1) / 20)
            loss = loss_of(self._generator(stage, step))
            if not everywhere(bool(torch.isfinite(loss))):
                bad += 1
                if bad >= 20:
                    raise NotFiniteError(f"{stage}: 20 losses were not finite; lower lr = {lr}")
                continue
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
                average_gradients(parameters)
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            curve.append(float(loss.detach()))
            if step % 20 == 0:
                say(f"{stage}: step {step} of {steps}, loss {curve[-1]:.3f}")
            if every and (step + 1) % every == 0 and step + 1 < steps:
                self.state |= {
                    "stage": stage,
                    "net": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                    "curve": curve,
                }
                self._save()
        done[stage] = {
            "net": copy.deepcopy(net.state_dict()),
            "curve": curve,
            "seconds": time.perf_counter() - begin,
            "processor_seconds": time.process_time() - processor,
        }
        for key in ("stage", "net", "optimizer", "step", "curve"):
            self.state.pop(key, None)
        self._save()
        self._stop_after(stage)

    def _stop_after(self, stage: str) -> None:
        if stage == self.until:
            raise _Reached

    def _save(self) -> None:
        if self.checkpoint is not None and world()[0] == 0:
            config = self.config.with_(checkpoint_every=0).as_dict()
            save_tensors(self.checkpoint, {**self.state, "config": config})

    def _pick(self, count: int, size: int, g: torch.Generator) -> Tensor:
        return torch.randperm(count, generator=g)[:size]

    # ---- the run -------------------------------------------------------------------------

    def train(
        self, stage: str, out: str | Path, *, resume: bool = False, say: Say = lambda _: None
    ) -> None:
        """Train up to a stage and leave the checkpoint, from which `run` and later calls go on.

        Parameters
        ----------
        stage : "lm", "judge", "vivo", "xe", "stage1" or "stage2"
            The last one to train; what it builds on is trained too, or taken from the checkpoint.
        out, resume, say
            As of `run`.
        """
        require(stage in STAGES, "stage", stage, "one of " + ", ".join(STAGES))
        self.until = STAGES[stage]
        try:
            self.run(out, resume=resume, say=say)
        except _Reached:
            return
        finally:
            self.until = ""

    def run(
        self, out: str | Path | None = None, *, resume: bool = False, say: Say = lambda _: None
    ) -> PipelineResult:
        """Train every stage and caption the test scenes after each.

        Parameters
        ----------
        out : path, optional
            Folder of the checkpoint.
        resume : bool
            Go on from the checkpoint in ``out``; the result is the same, bit for bit.
        say : callable
            Takes progress lines.
        """
        c = self.config
        self.state = {}
        if out is not None:
            self.checkpoint = Path(out) / "checkpoint.pt"
        if resume:
            require(self.checkpoint is not None, "out", None, "the folder of the checkpoint")
            assert self.checkpoint is not None
            self.state = load_tensors(self.checkpoint)
            before = PipelineConfig().as_dict() | dict(self.state.pop("config", {}))
            begun = {*self.state.get("done", {}), self.state.get("stage", "")}
            require(
                relevant_settings(before, begun) == relevant_settings(c.as_dict(), begun),
                "checkpoint",
                str(self.checkpoint),
                "one of the same configuration, as far as it was trained",
            )
        self._load_named()
        say("rendering scenes")
        begin = time.perf_counter()
        self._prepare()
        if c.detector == "trained":
            self._detect(say)
        seconds = {"scenes": time.perf_counter() - begin}
        self._scorers(say)
        result = PipelineResult(c, test=self.test, unseen=self.scenes.get("unseen"))
        self.result = result

        tagged = c.captioner == "native"  # the others read no tags
        if c.ablations and tagged:
            blind = self._captioner()
            self._xe("XE, no tags", blind, say, tags=False)
            self._record("no tags", blind, tags=False)
            plain = self._captioner()
            self._xe("XE", plain, say)
            self._record("XE", plain)
        net = self._captioner()

        def vivo(g: torch.Generator) -> Tensor:
            return self._vivo_batch(net, g)

        if tagged:
            self._train("VIVO", net, c.vivo_steps, c.lr, vivo, say)
        self._xe("VIVO + XE", net, say, vivo=tagged and c.keep_vivo > 0)
        self._record("VIVO + XE", net)
        self._stage1(net, say)
        self._record("stage 1", net)
        self._stage2(net, say)
        self._record("stage 2", net)
        result.captioner = net
        for stage, kept in self.state["done"].items():
            result.curves[stage] = kept["curve"]
            seconds[stage] = kept["seconds"]
            result.processor_seconds[stage] = kept["processor_seconds"]
        result.curves["rewards"] = self.state.get("rewards", [])
        result.seconds = seconds
        return result

    def _load_named(self) -> None:
        """Load what the configuration names, before anything is trained."""
        c = self.config
        tagger = lexicon_tagger({*RICH_VERBS, GENERIC}, self.nouns)
        self.paraphrases = load_paraphraser(
            c.language_model, self.vocabulary, tagger, c.policy, c.choose
        )
        self.hf_judge = load_judge(c.judge, self.vocabulary)
        if c.captioner != "native":
            self._captioner()
        self.glove = read_glove(c.vectors, self.vocabulary.words) if c.vectors else None

    def _detect(self, say: Say) -> None:
        """Train the detector on the unpaired scenes' regions; its tags replace the true ones."""
        c = self.config
        self._init("detector")
        self.detector = net = RegionDetector([t.word for t in THINGS])
        number = {word: k for k, word in enumerate(net.labels)}
        events = self.unpaired.events
        truth = torch.tensor([[number[e.first.word], number[e.second.word]] for e in events])

        def loss(g: torch.Generator) -> Tensor:
            index = self._pick(c.unpaired, c.batch, g)
            return net.loss(self.unpaired.crops[index].flatten(0, 1), truth[index].flatten())

        self._train("detector", net, c.detector_steps, c.lr, loss, say)
        for name, scenes in self.scenes.items():
            scenes.tags = net.detect(scenes.crops)
            self.data[name] = (self._tags(scenes.tags), self.data[name][1])

    def _scorers(self, say: Say) -> None:
        """Train the language model, the judge, and the evaluator that no stage uses."""
        c, words = self.config, len(self.vocabulary)
        self._init("LM")
        self.lm = SmallMaskedLM(words, c.max_length + 2, c.dim)

        def lm(g: torch.Generator) -> Tensor:
            return self.lm.loss(self.corpus[self._pick(c.corpus, c.batch, g)], g)

        self._train("LM", self.lm, c.lm_steps, c.lr, lm, say)
        for name, offset, style, layers, width in (
            ("judge", 4, 0, 1, JUDGE_WIDTH),
            ("evaluator", 5, 1, 0, 16),
        ):
            if name == "judge" and self.hf_judge is not None:
                self.judge = self.hf_judge
                continue
            self._init(name)
            net = SmallAssociation(words, c.max_length + 2, c.dim, width, layers)
            if name == "judge":
                self.judge = net
            else:
                self.evaluator = net
            loss = None
            if name not in self.state.get("done", {}):
                hard = c.negatives and not (name == "judge" and c.judge == "plain")
                loss = self._contrast(net, c.seed * 10 + offset, style, hard)
            self._train(name, net, c.judge_steps, 1.5e-3, loss, say)
        with torch.no_grad():
            self.vectors = {
                "paired": self.judge.encode_image(self.paired.images),
                "unpaired": self.judge.encode_image(self.unpaired.images),
            }

    def _contrast(
        self, net: SmallAssociation, seed: int, style: int, hard: bool
    ) -> Callable[[torch.Generator], Tensor]:
        """Return the contrastive loss over a stream of scenes of its own."""
        c = self.config
        stream = make_scenes(c.judged, seed, (0.55, 0.35, 0.1), rich=0.75, style=style)
        texts = [refs[0] for refs in stream.references]
        ids = self.vocabulary.encode_all(texts, c.max_length + 2)
        swaps = WordSwaps(self.vocabulary, SWAPPABLE, keep=(GENERIC,))

        def loss(g: torch.Generator) -> Tensor:
            index = self._pick(c.judged, c.batch, g)
            wrong = swaps(ids[index], g) if hard else None
            return net.loss(stream.images[index], ids[index], wrong)

        return loss

    def word_vectors(self) -> Tensor:
        """Return the language model's word vectors, centred, of length 1."""
        words = self.lm.words.weight.detach()
        return nn.functional.normalize(words - words.mean(0), dim=-1)

    def _captioner(self) -> Net:
        self._init("captioner")
        c = self.config
        if c.captioner != "native":
            return load_captioner(c.captioner, self.vocabulary, c.max_length)
        return TagTransformerCaptioner(2 * self.word_vectors(), FEATURES, c.layers, 4, c.max_length)

    def _batch(self, name: str, index: Tensor) -> Batch:
        tags, regions = self.data[name]
        return Batch(tags[index], regions[index], self.vectors[name][index], index.tolist())

    def _vivo_batch(self, net: Net, g: torch.Generator) -> Tensor:
        tags, regions = self.data["unpaired"]
        index = part(self._pick(self.config.unpaired, self.config.batch, g))
        assert isinstance(net, TagTransformerCaptioner)
        return vivo_loss(net, tags[index], regions[index], g)

    def _xe_batch(
        self,
        net: Net,
        g: torch.Generator,
        size: int,
        *,
        tags: bool = True,
        leave_out: Collection[int] = (),
    ) -> Tensor:
        index = self._pick(self.config.paired, size, g)
        known, regions = self.data["paired"]
        seen = known[index] if tags else torch.zeros_like(known[index])
        which = part(torch.randint(self.refs.shape[1], (len(index),), generator=g))
        index, seen = part(index), part(seen)
        memory = net.encode(seen, regions[index])
        return xe_loss(net, memory, self.refs[index, which], leave_out=leave_out)

    def _xe(
        self,
        stage: str,
        net: Net,
        say: Say,
        *,
        tags: bool = True,
        vivo: bool = False,
    ) -> None:
        c = self.config

        def loss(g: torch.Generator) -> Tensor:
            total = self._xe_batch(net, g, c.batch, tags=tags)
            return total + c.keep_vivo * self._vivo_batch(net, g) if vivo else total

        self._train(stage, net, c.xe_steps, c.lr, loss, say)

    def paraphraser(self) -> Paraphraser:
        """Return the proposer of stage 1."""
        if self.paraphrases is not None:
            return self.paraphrases
        tagger = lexicon_tagger({*RICH_VERBS, GENERIC}, self.nouns)
        c = self.config
        return MaskedLMParaphraser(
            self.lm, self.vocabulary, tagger, policy=c.policy, choose=c.choose
        )

    def _distillation(self, net: Net) -> Distillation:
        c = self.config
        anchor = copy.deepcopy(net).requires_grad_(False) if c.anchor else None
        return Distillation(
            self.paraphraser(),
            self.judge,
            c.margin,
            c.average,
            c.proposals,
            self._noun_numbers() if c.ground else frozenset(),
            anchor,
            c.anchor,
        )

    def _noun_numbers(self) -> frozenset[int]:
        return frozenset(self.vocabulary.index[n] for n in self.nouns)

    def _stage1(self, net: Net, say: Say) -> None:
        c = self.config
        distil = self._distillation(net)
        if "stage 1" not in self.state["done"] and self.state.get("stage") != "stage 1":
            if c.precision:
                self.state["margin"] = self._calibrated(net, distil)
                distil.margin = self.state["margin"]
            self.state["proposals"] = [vars(a) for a in self._proposals(net, distil)]
        distil.margin = self.state.get("margin", c.margin)
        self.result.margin, self.result.sweep = distil.margin, self.state.get("sweep", [])
        self.result.paraphrases = [Accepted(**a) for a in self.state.get("proposals", [])]

        generic = () if c.xe_verbs else (self.vocabulary.index[GENERIC],)

        def loss(g: torch.Generator) -> Tensor:
            index = part(self._pick(c.unpaired, c.stage1_batch, g))
            taught = self._xe_batch(net, g, c.stage1_batch, leave_out=generic)
            teach = distil.loss(net, self._batch("unpaired", index), g)
            return (teach + c.xe_weight * taught) / 2

        self._train("stage 1", net, c.stage1_steps, c.stage1_lr, loss, say, cosine=False)

    def _proposals(self, net: Net, distil: Distillation, name: str = "unpaired") -> list[Accepted]:
        """Ask for paraphrases of some scenes, for the report or to calibrate the gate."""
        found: list[Accepted] = []
        size, scenes = self.config.stage1_batch, self.scenes[name]
        for start in range(0, min(480, len(scenes) - size + 1), size):
            index = torch.arange(start, start + size)
            batch = self._batch(name, index)
            greedy = distil.ground(net.generate(batch.encode(net), greedy=True).ids[:, 0], batch)
            made = distil.propose(greedy, batch, self._generator(f"proposals {name}", start))
            if made is None:
                continue
            masked, ids, teacher, before, after = made
            for row, scene in enumerate(index.tolist()):
                if bool((masked[row] != greedy[row]).any()):
                    found.append(
                        Accepted(
                            scene,
                            self.vocabulary.decode(greedy[row].tolist()),
                            self.vocabulary.decode(ids[row].tolist()),
                            float(before[row]),
                            float(after[row]),
                            bool((teacher[row] != PAD).any()),
                            scenes.events[scene].verb,
                        )
                    )
        return found

    def _calibrated(self, net: Net, distil: Distillation) -> float:
        """Return the margin that reaches the wanted precision on scenes of their own stream."""
        c = self.config
        scenes = make_scenes(480, c.seed * 10 + 6, (0.3, 0.4, 0.3), **c.noise)
        if self.detector is not None:
            scenes.tags = self.detector.detect(scenes.crops)
        self.scenes["validation"] = scenes
        self.data["validation"] = (self._tags(scenes.tags), self._seen(scenes))
        with torch.no_grad():
            self.vectors["validation"] = self.judge.encode_image(scenes.images)
        asked = self._proposals(net, distil, "validation")
        gains = np.array([a.a_after - a.a_before for a in asked])
        right = np.array([a.true_verb in a.after.split() for a in asked], dtype=bool)
        points = sweep_margins(gains, right, MARGINS)
        self.state["sweep"] = [[p.margin, p.accepted, p.precision] for p in points]
        return calibrate_margin(points, c.precision)

    def _stage2(self, net: Net, say: Say) -> None:
        c = self.config
        words = [
            [[w for w in line if w > UNK] + [SEP] for line in image] for image in self.refs.tolist()
        ]
        names = ("association", "clipscore", "coverage", "repetition", "cider")
        vectors = self.word_vectors() if self.glove is None else torch.from_numpy(self.glove)
        stage = SelfParaphrase(
            self.judge,
            WordCosines(vectors),
            CiderD(dict(enumerate(words))),
            {name: float(getattr(c, name)) for name in names},
            SCSTLoss(c.baseline, c.normalize),
            c.samples,
            c.explore,
            self._noun_numbers(),
            c.kl,
            copy.deepcopy(net).requires_grad_(False) if c.kl else None,
        )
        distil = self._distillation(net)
        distil.margin = self.state.get("margin", c.margin)

        def loss(g: torch.Generator) -> Tensor:
            free = self._batch("unpaired", part(self._pick(c.unpaired, c.rl_batch, g)))
            taught = self._batch("paired", part(self._pick(c.paired, c.rl_batch, g)))
            if world()[1] > 1:  # each process draws samples of its own
                g.manual_seed(g.initial_seed() + world()[0])
            total = stage.half(net, free, False, g)
            if c.cider or c.association or c.clipscore:
                total = total + stage.half(net, taught, True, g)
            if c.distil:
                total = total + 2 * c.distil * distil.loss(net, free, g)
            self.state.setdefault("rewards", []).extend(stage.log.log)
            stage.log.log.clear()
            return total / 2

        self._train("stage 2", net, c.stage2_steps, c.stage2_lr, loss, say, cosine=False)

    def _greedy(self, net: Student, name: str, tags: bool) -> Tensor:
        known, regions = self.data[name]
        memory = net.encode(known if tags else torch.zeros_like(known), regions)
        return net.generate(memory, greedy=True).ids[:, 0]

    @torch.no_grad()
    def _record(self, arm: str, net: Net, *, tags: bool = True) -> None:
        """Caption the test scenes greedily and let both association models look at them."""
        ids = self._greedy(net, "test", tags)
        r = self.result
        r.captions[arm] = self.vocabulary.decode_all(ids)
        if "unseen" in self.data:
            r.unseen_captions[arm] = self.vocabulary.decode_all(self._greedy(net, "unseen", tags))
        for model, scores in (
            (self.judge, r.judge_scores),
            (self.evaluator, r.evaluator_scores),
        ):
            text = model.encode_text(ids)
            cosine = text @ model.encode_image(self.test.images).T
            scores[arm] = cosine.diagonal().tolist()
            if model is self.evaluator:
                hits = cosine.argmax(1) == torch.arange(len(ids))
                r.evaluator_hits[arm] = hits.double().tolist()
