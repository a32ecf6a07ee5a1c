"""One configuration for all stages, read strictly from YAML."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from .errors import InputError, require

# settings that nothing before stage 2, and nothing before stage 1, depends on
STAGE2_SETTINGS = frozenset(
    ("stage2_steps", "stage2_lr", "rl_batch", "samples", "baseline", "normalize", "association",
     "clipscore", "coverage", "repetition", "cider", "kl", "explore", "distil", "vectors")
)  # fmt: skip
STAGE1_SETTINGS = STAGE2_SETTINGS | frozenset(
    ("stage1_steps", "stage1_lr", "stage1_batch", "margin", "precision", "proposals", "choose",
     "policy", "average", "xe_weight", "xe_verbs", "anchor", "ground", "language_model")
)  # fmt: skip


def relevant_settings(config: Mapping[str, Any], begun: Collection[str]) -> dict[str, Any]:
    """Return the settings that stages which have begun depend on."""
    free = {"checkpoint_every"}
    if "stage 2" not in begun:
        free |= STAGE2_SETTINGS
        if "stage 1" not in begun:
            free |= STAGE1_SETTINGS
    return {k: v for k, v in config.items() if k not in free}


@dataclass(frozen=True)
class PipelineConfig:
    """Everything that a run depends on.

    Attributes
    ----------
    seed : int
        Of data, initial weights, batches and samples.
    paired, unpaired, judged, corpus, test : int
        Scenes with captions; scenes with tags only; scenes of the judge's own stream (the evaluator
        has another of this size); sentences of the language model; test scenes.
    dim, layers, max_length : int
        Of the captioner.
    lm_steps, judge_steps, vivo_steps, xe_steps, stage1_steps, stage2_steps : int
        Optimiser steps.
    lr, stage1_lr, stage2_lr : float
        Learning rates: pre-training and XE (cosine), stage 1, stage 2 (constant).
    batch, stage1_batch, rl_batch : int
        Scenes per step; unpaired scenes per step in stages 1 and 2 (as many captioned ones). The
        gate needs a large one: in a small batch a caption that fits has A near 1 and none to gain.
    margin : float
        Of the swap gate.
    precision : float
        If above 0: the margin is the smallest that reaches this share of true verbs among accepted
        paraphrases of validation scenes, and ``margin`` is not used.
    proposals : int
        Paraphrases per caption, of which the judge's favourite is gated (1 in the authors' code).
    negatives : bool
        Train judge and evaluator also on captions with one word swapped (see `WordSwaps`).
    ground : bool
        Put unnamed tags into captions before they are paraphrased, where the judge agrees.
    anchor : float
        Weight of the KL divergence to the captioner before stage 1 where nothing is rewritten.
    distil : float
        Weight of stage 1's distillation beside the rewards of stage 2.
    choose : "argmax", "sample" or "top"
        How the language model's words are taken: the best, drawn, or the best ``proposals`` ones.
    policy : "verb", "non-noun" or "all"
        Words that may be rewritten.
    average : "masked" or "accepted"
        What the distillation loss is divided by: all masked places, as in the authors' code, or the
        accepted ones.
    xe_weight : float
        Weight of XE on captioned scenes beside the distillation (1 in the authors' code).
    xe_verbs : bool
        Whether that XE also teaches the generic verb (so in the authors' code), which is what the
        distillation is there to replace.
    samples : int
        Captions per image in stage 2.
    baseline, normalize
        Of the policy gradient.
    association, clipscore, coverage, repetition, cider, kl : float
        Weights of the reward terms and of the KL penalty to the stage 1 captioner.
    vectors : str
        Text file of GloVe vectors for coverage and repetition; those of the language model if "".
    explore : int
        How many of the samples are the greedy caption with an uncovered tag put in.
    keep_vivo : float
        Weight of the tag loss that goes on beside XE, so that XE does not undo it.
    captioner : "native" or "hf:NAME"
        The tag transformer, or a BLIP, GIT or VisionEncoderDecoder model: a folder, or a name that
        transformers downloads. Such a model reads whole pictures and no tags: VIVO and the arms
        without it are left out, and all its weights are trained.
    language_model : "native", "none" or "hf:NAME"
        Proposes paraphrases: the one trained here, nothing, or a masked language model or T5.
    judge : "native", "plain" or "hf:NAME"
        Association model: trained here, the same without swapped words, or a CLIP model.
    detector : "noisy", "trained" or "truth"
        Where tags come from: the true ones with losses and confusions, a `RegionDetector` trained
        on the unpaired scenes, or the true ones (an ablation: at test time they give it away).
    recall, confusion : float
        Of the noisy detector.
    detector_steps : int
        Optimiser steps of the trained one.
    unseen_style : bool
        Also caption the test scenes drawn with Noto Color Emoji, where the system has it.
    ablations : bool
        Also train XE without tags, and XE with tags without VIVO.
    checkpoint_every : int
        Steps between checkpoints; 0 for none within a stage.
    """

    seed: int = 0
    paired: int = 2500
    unpaired: int = 2500
    judged: int = 5000
    corpus: int = 5000
    test: int = 300
    dim: int = 96
    layers: int = 2
    max_length: int = 10
    lm_steps: int = 300
    judge_steps: int = 280
    vivo_steps: int = 240
    xe_steps: int = 200
    stage1_steps: int = 36
    stage2_steps: int = 40
    lr: float = 3e-3
    stage1_lr: float = 5e-4
    stage2_lr: float = 4e-4
    batch: int = 80
    stage1_batch: int = 128
    rl_batch: int = 48
    margin: float = 0.1
    precision: float = 0.0
    proposals: int = 2
    negatives: bool = True
    ground: bool = True
    anchor: float = 1.0
    distil: float = 0.3
    choose: Literal["argmax", "sample", "top"] = "top"
    policy: Literal["verb", "non-noun", "all"] = "verb"
    average: Literal["masked", "accepted"] = "accepted"
    xe_weight: float = 1.0
    xe_verbs: bool = False
    samples: int = 5
    baseline: Literal["greedy", "loo", "group"] = "greedy"
    normalize: Literal["sum", "mean"] = "sum"
    association: float = 1.0
    coverage: float = 1.0
    clipscore: float = 0.0
    repetition: float = 1.0
    cider: float = 0.02
    kl: float = 0.0
    explore: int = 2
    keep_vivo: float = 0.5
    vectors: str = ""
    captioner: str = "native"
    language_model: str = "native"
    judge: str = "native"
    detector: Literal["noisy", "trained", "truth"] = "noisy"
    recall: float = 0.9
    confusion: float = 0.05
    detector_steps: int = 200
    unseen_style: bool = False
    ablations: bool = True
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in (
            "paired",
            "unpaired",
            "judged",
            "corpus",
            "test",
            "batch",
            "samples",
            "proposals",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lr", "stage1_lr", "stage2_lr"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("stage1_batch", "rl_batch"):
            allowed = "at least 2: one image has A = 1"
            require(getattr(self, name) >= 2, name, getattr(self, name), allowed)
        require(0 <= self.precision < 1, "precision", self.precision, "0 to below 1")
        require(self.max_length >= 8, "max_length", self.max_length, "at least 8")
        require(0 <= self.explore <= self.samples, "explore", self.explore, "0 to samples")
        require(
            self.choose in ("argmax", "sample", "top"),
            "choose",
            self.choose,
            "argmax, sample or top",
        )
        require(
            self.policy in ("verb", "non-noun", "all"), "policy", self.policy, "verb, non-noun, all"
        )
        require(
            self.baseline in ("greedy", "loo", "group"),
            "baseline",
            self.baseline,
            "greedy, loo, group",
        )
        require(
            self.detector in ("noisy", "trained", "truth"),
            "detector",
            self.detector,
            "noisy, trained or truth",
        )
        require(
            self.average in ("masked", "accepted"), "average", self.average, "masked or accepted"
        )
        require(self.normalize in ("sum", "mean"), "normalize", self.normalize, "sum or mean")
        for name, known in (
            ("captioner", ("native",)),
            ("language_model", ("native", "none")),
            ("judge", ("native", "plain")),
        ):
            value = getattr(self, name)
            good = value in known or (value.startswith("hf:") and len(value) > 3)
            require(good, name, value, " or ".join(known) + " or hf:NAME of a model")

    @property
    def noise(self) -> dict[str, Any]:
        """Recall and confusion of the tags that scenes come with (the truth unless "noisy")."""
        noisy = self.detector == "noisy"
        return {
            "recall": self.recall if noisy else 1.0,
            "confusion": self.confusion if noisy else 0.0,
        }

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PipelineConfig:
        """Return a preset: ``tiny``, ``small``, or ``tiny`` with the rewards of a source.

        ``paper-text`` weighs object coverage 1, as the paper's text has both terms;
        ``official-script`` weighs it 0, takes argmax words and mean log-probabilities, as the
        authors' shipped script does.
        """
        presets: dict[str, dict[str, Any]] = {
            "tiny": {},
            "small": {
                "paired": 5000,
                "unpaired": 4000,
                "judged": 8000,
                "corpus": 8000,
                "test": 500,
                "lm_steps": 400,
                "judge_steps": 500,
                "vivo_steps": 500,
                "xe_steps": 400,
                "stage1_steps": 70,
                "stage1_batch": 160,
                "stage2_steps": 50,
                "unseen_style": True,
                "checkpoint_every": 100,
            },
            "paper-text": {"coverage": 1.0, "cider": 1.0},
            "official-script": {
                "coverage": 0.0,
                "explore": 0,
                "cider": 1.0,
                "choose": "argmax",
                "proposals": 1,
                "ground": False,
                "distil": 0.0,
                "anchor": 0.0,
                "xe_verbs": True,
                "average": "masked",
                "normalize": "mean",
            },
        }
        require(name in presets, "preset", name, "one of " + ", ".join(presets))
        return cls.from_dict({**presets[name], **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PipelineConfig:
        """Build from plain values; unknown keys and wrong types are refused.

        Examples
        --------
        >>> PipelineConfig.from_dict({"seeed": 1})
        Traceback (most recent call last):
            ...
        p2c.errors.InputError: config: unknown key 'seeed'; did you mean seed?
        """
        import difflib

        known = {f.name: f for f in fields(cls)}
        for key, value in values.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InputError(f"config: unknown key {key!r}{hint}")
            default = known[key].default
            kind: Any = (int, float) if isinstance(default, float) else type(default)
            good = isinstance(value, kind) and isinstance(value, bool) == isinstance(default, bool)
            require(good, f"config: {key}", value, f"a {type(default).__name__}")
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path) -> PipelineConfig:
        """Read a YAML mapping; ``preset: tiny`` may stand first."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"config = {str(path)!r}: allowed is a readable YAML file; {error.strerror}"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())[:120]
            raise InputError(f"config = {str(path)!r}: allowed is YAML; {text}") from None
        values = {} if values is None else values
        good = isinstance(values, dict) and all(isinstance(key, str) for key in values)
        require(good, "config", str(path), "a mapping of settings, by name")
        return cls.preset(str(values.pop("preset", "tiny")), **values)

    def with_(self, **changes: Any) -> PipelineConfig:
        """Return a copy with other values."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
