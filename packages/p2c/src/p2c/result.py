"""What a run of the pipeline leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .captioner import TagTransformerCaptioner
from .config import PipelineConfig
from .hf_named import HFStudent
from .scenes import Scenes


@dataclass
class Accepted:
    """A paraphrase that the gate judged: images, both captions, A before and after."""

    scene: int
    before: str
    after: str
    a_before: float
    a_after: float
    accepted: bool
    true_verb: str


@dataclass
class PipelineResult:
    """What a run leaves.

    Attributes
    ----------
    captions : dict
        Arm ("no tags", "XE", "VIVO + XE", "stage 1", "stage 2") to one greedy caption per scene.
    test, unseen : Scenes
        The test scenes, and the same ones in a style that nothing was trained on (None without it).
    unseen_captions : dict
        As ``captions``, of those.
    captioner : TagTransformerCaptioner or HFStudent
        After the last stage.
    evaluator_hits : dict
        Arm to 0/1 per scene: does the evaluator retrieve the scene from its caption?
    judge_scores, evaluator_scores : dict
        Arm to the association of each scene with its caption, by the judge and by the evaluator.
    paraphrases : list of Accepted
        What stage 1 proposed for some unpaired scenes before it trained.
    margin : float
        Of the gate, as configured or calibrated.
    sweep : list
        Margin, accepted paraphrases and their precision on the validation scenes, if calibrated.
    curves : dict
        Stage to losses; "rewards" to the terms of every half-batch.
    seconds, processor_seconds : dict
        Stage to seconds by the clock, and of the processor.
    """

    config: PipelineConfig
    captions: dict[str, list[str]] = field(default_factory=dict)
    test: Scenes | None = None
    unseen: Scenes | None = None
    unseen_captions: dict[str, list[str]] = field(default_factory=dict)
    captioner: TagTransformerCaptioner | HFStudent | None = None
    evaluator_hits: dict[str, list[float]] = field(default_factory=dict)
    judge_scores: dict[str, list[float]] = field(default_factory=dict)
    evaluator_scores: dict[str, list[float]] = field(default_factory=dict)
    paraphrases: list[Accepted] = field(default_factory=list)
    margin: float = 0.1
    sweep: list[list[float]] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    processor_seconds: dict[str, float] = field(default_factory=dict)
