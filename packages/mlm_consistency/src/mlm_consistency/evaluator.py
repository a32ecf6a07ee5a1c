"""From a model and sentences to pair tables, metrics and a report."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, ProbeError, require
from .metrics import pair_metrics
from .planner import Planner
from .probes import (
    PairProbe,
    ProbeSet,
    Vocabulary,
    keeps_segmentation,
    mark_pair,
    pair_probes,
    parse_marked,
    single_token,
)
from .result import ConsistencyReport, summarise
from .scorers import MaskedScorer, Request, Scores, load
from .tables import CubeTable, PairTable, normalise


@dataclass(frozen=True)
class EvaluatorConfig:
    """Settings of a measurement.

    Parameters
    ----------
    top_k : int
        Candidates per position, gold included.
    candidates : "words" or "all"
        Whole alphabetic words only, or any token that is not special.
    floor_pairs : int
        Probes that are scored again for the noise floor.
    seed : int
        Choice of probes, bootstrap.
    """

    top_k: int = 32
    candidates: str = "words"
    floor_pairs: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.top_k >= 2, "top_k", self.top_k, "at least 2")
        require(self.candidates in ("words", "all"), "candidates", self.candidates,
                "'words' or 'all'")  # fmt: skip
        require(self.floor_pairs >= 0, "floor_pairs", self.floor_pairs, "0 or more")


class ConsistencyEvaluator:
    """Measures how consistent the conditionals of a masked language model are.

    Parameters
    ----------
    model : str, transformers model or Scorer
        ``"mini-bert"``, a folder, a Hugging Face id, a loaded model, or any scorer.
    tokenizer : Hugging Face tokenizer, optional
        Needed unless `model` is a name.
    config : EvaluatorConfig, optional
    cache : path, optional
        Folder in which scores are kept; an interrupted run continues there.
    budget_bytes : int
        Memory for one batch.

    Examples
    --------
    >>> evaluator = ConsistencyEvaluator("mini-bert")
    >>> table = evaluator.pair("and the [1] of the [2] came upon him .", top_k=4)
    >>> table.shape
    (4, 4)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        config: EvaluatorConfig | None = None,
        cache: str | Path | None = None,
        budget_bytes: int = 2**28,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        self.name = model if isinstance(model, str) else type(model).__name__
        if isinstance(model, str):
            scorer, found = load(model)
            tokenizer = tokenizer or found
        elif hasattr(model, "logits") and hasattr(model, "fingerprint"):
            scorer = model
        else:
            mask = getattr(tokenizer, "mask_token_id", None)
            if mask is None:
                raise InputError(
                    "tokenizer has no mask token: allowed are masked language models; T5 and BART"
                    " go through EnsembleOfConditionals"
                )
            scorer = MaskedScorer(model, mask)
        self.scorer = scorer
        self.tokenizer = tokenizer
        self.config = config or EvaluatorConfig()
        self._say = progress or (lambda text: None)
        self.planner = Planner(scorer, budget_bytes, cache=cache)
        self._vocabulary: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """Token classes of the tokenizer."""
        if self.tokenizer is None:
            raise InputError("tokenizer = None: allowed is the model's tokenizer")
        if self._vocabulary is None:
            self._vocabulary = Vocabulary(self.tokenizer)
        return self._vocabulary

    def pair(
        self,
        text: str,
        i: int | None = None,
        j: int | None = None,
        top_k: int | None = None,
        words: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> PairTable:
        """Table of two positions of one sentence.

        Parameters
        ----------
        text : str
            A sentence, with `i` and `j` given; or one with ``[1]`` and ``[2]`` in it.
        i, j : int, optional
            Token positions, special tokens counted.
        top_k : int, optional
            Candidates per position.
        words : pair of sequences of str, optional
            The candidates themselves; each must be one token.

        Returns
        -------
        PairTable
            Log-probabilities over the whole vocabulary, restricted to the candidates.

        Raises
        ------
        ProbeError
            A candidate splits, the text is too long, a marker is missing.
        """
        marked = i is None or j is None
        if marked:
            ids, i, j = parse_marked(text, self.tokenizer)
        else:
            ids = tuple(self.tokenizer(text, truncation=False)["input_ids"])
        assert i is not None
        assert j is not None
        require(0 <= i < len(ids) and 0 <= j < len(ids) and i != j, "i, j", (i, j),
                f"two different positions below {len(ids)}")  # fmt: skip
        shown = text if marked else mark_pair(self.tokenizer, ids, i, j)
        probe = PairProbe(f"text:{i}-{j}", ids, i, j, shown)
        sets = None
        if words is not None:
            sets = [
                (
                    [single_token(self.tokenizer, w) for w in words[0]],
                    [single_token(self.tokenizer, w) for w in words[1]],
                )
            ]
        tables, skipped = self._tables([probe], top_k or self.config.top_k, sets, gold=not marked)
        if not tables:
            raise ProbeError(
                f"text = {text!r}: {next(iter(skipped))}; allowed is a place with two or more"
                " candidates that keep the other tokens; use candidates='all'"
            )
        return replace(tables[0], gold=None) if marked else tables[0]

    def _tables(
        self,
        probes: Sequence[PairProbe],
        top_k: int,
        sets: Sequence[tuple[list[int], list[int]]] | None = None,
        gold: bool = True,
        planner: Planner | None = None,
    ) -> tuple[list[PairTable], Counter[str]]:
        planner = planner or self.planner
        skipped: Counter[str] = Counter()
        if sets is None:
            chosen = self._candidates(probes, top_k, gold, planner)
        else:
            chosen = list(sets)
        usable = [(p, c) for p, c in zip(probes, chosen) if min(len(c[0]), len(c[1])) >= 2]
        if len(usable) < len(probes):
            skipped["too few candidates that keep the other tokens"] = len(probes) - len(usable)
        requests: list[Request] = []
        for probe, (first, second) in usable:
            requests += self._requests(probe, first, second)
        scores = planner.score(requests)
        tables, at = [], 0
        for probe, (first, second) in usable:
            count = len(first) + len(second) + 2
            tables.append(self._assemble(probe, first, second, scores[at : at + count]))
            at += count
        return tables, skipped

    def _with(self, ids: tuple[int, ...], changes: dict[int, int]) -> tuple[int, ...]:
        row = list(ids)
        for at, token in changes.items():
            row[at] = int(token)
        return tuple(row)

    def _candidates(
        self, probes: Sequence[PairProbe], top_k: int, gold: bool, planner: Planner
    ) -> list[tuple[list[int], list[int]]]:
        """Gold first, then half from the one-mask and half from the both-masked pattern."""
        mask, top = self.scorer.mask_id, 4 * top_k + 16
        requests = []
        for p in probes:
            both = self._with(p.ids, {p.i: mask, p.j: mask})
            one_i = self._with(p.ids, {p.i: mask}) if gold else both
            one_j = self._with(p.ids, {p.j: mask}) if gold else both
            for ids, at in ((one_i, p.i), (both, p.i), (one_j, p.j), (both, p.j)):
                requests.append(Request(ids, at, top=top))
        scores = planner.score(requests)
        found = []
        for n, p in enumerate(probes):
            sides = []
            for side, at in enumerate((p.i, p.j)):
                one, both_masked = scores[4 * n + 2 * side], scores[4 * n + 2 * side + 1]
                sides.append(self._choose(p.ids, at, one, both_masked, top_k, gold))
            found.append((sides[0], sides[1]))
        return found

    def _choose(
        self, ids: tuple[int, ...], at: int, one: Scores, both: Scores, top_k: int, gold: bool
    ) -> list[int]:
        vocabulary = self.vocabulary
        allowed = vocabulary.content if self.config.candidates == "words" else None

        def usable(token: int) -> bool:
            if token == ids[at] or token >= len(vocabulary.tokens) or token in vocabulary.special:
                return False
            return allowed is None or bool(allowed[token])

        lists = [[int(t) for t in s.ids if usable(int(t))] for s in (one, both)]
        order = [t for pair in zip(*lists) for t in pair]
        order = list(dict.fromkeys(order + lists[0] + lists[1]))
        order = order[: 2 * top_k + 8]
        if order:
            base = ids if gold else self._with(ids, {at: order[0]})
            keeps = keeps_segmentation(self.tokenizer, base, at, order)
            order = [t for t, good in zip(order, keeps) if good]
        start = [ids[at]] if gold else []
        return [*start, *order[: top_k - len(start)]]

    def _requests(self, p: PairProbe, first: list[int], second: list[int]) -> list[Request]:
        mask = self.scorer.mask_id
        a, b = tuple(first), tuple(second)
        both = self._with(p.ids, {p.i: mask, p.j: mask})
        out = [Request(both, p.i, a), Request(both, p.j, b)]
        out += [Request(self._with(p.ids, {p.i: mask, p.j: t}), p.i, a) for t in b]
        out += [Request(self._with(p.ids, {p.i: t, p.j: mask}), p.j, b) for t in a]
        return out

    def _assemble(
        self, p: PairProbe, first: list[int], second: list[int], scores: Sequence[Scores]
    ) -> PairTable:
        columns, rows = scores[2 : 2 + len(second)], scores[2 + len(second) :]
        names = self.vocabulary
        return PairTable(
            np.stack([s.log_p for s in columns], axis=1),
            np.stack([s.log_p for s in rows]),
            scores[0].log_p,
            scores[1].log_p,
            np.asarray([s.log_z for s in columns]),
            np.asarray([s.log_z for s in rows]),
            tuple(names.word(t) for t in first),
            tuple(names.word(t) for t in second),
            (0, 0),
            p.text,
            {"id": p.id, "length": len(p.ids), "i": p.i, "j": p.j, "ids_a": first, "ids_b": second},
        )

    def cube(self, text: str, positions: Sequence[int], candidates: Sequence[int]) -> CubeTable:
        """Unary conditionals of k positions over one candidate set, all V^k cells.

        Parameters
        ----------
        text : str
        positions : k token positions, special tokens counted
        candidates : token ids (for an antibody model, the twenty amino acids)

        Returns
        -------
        CubeTable
            Renormalised over the candidates.
        """
        ids = tuple(self.tokenizer(text, truncation=False)["input_ids"])
        k, v = len(positions), len(candidates)
        require(2 <= k <= 4, "positions", k, "2 to 4 positions")
        requests = []
        context = np.indices((v,) * (k - 1)).reshape(k - 1, -1).T
        for axis, at in enumerate(positions):
            others = [p for a, p in enumerate(positions) if a != axis]
            for values in context:
                changes = {p: candidates[x] for p, x in zip(others, values)}
                row = self._with(ids, {**changes, at: self.scorer.mask_id})
                requests.append(Request(row, at, tuple(candidates)))
        scores = self.planner.score(requests)
        arrays, size = [], len(context)
        for axis in range(k):
            block = np.stack([s.log_p for s in scores[axis * size : (axis + 1) * size]])
            array = block.reshape(*(v,) * (k - 1), v)
            arrays.append(normalise(np.moveaxis(array, -1, axis), axis))
        names = tuple(tuple(self.vocabulary.word(t) for t in candidates) for _ in positions)
        return CubeTable(tuple(arrays), names)

    def probes(self, texts: Sequence[str], pairs: int, **settings: Any) -> ProbeSet:
        """Choose probes from sentences (`probes.pair_probes`)."""
        settings = {"seed": self.config.seed, "max_length": self.scorer.max_length, **settings}
        return pair_probes(texts, self.tokenizer, pairs, **settings)

    def tables(self, probes: Sequence[PairProbe]) -> list[PairTable]:
        """Tables of probes; those without enough candidates are missing."""
        return self._tables(probes, self.config.top_k)[0]

    def measure(
        self, texts: Sequence[str] | ProbeSet, pairs: int = 200, quality: bool = True
    ) -> ConsistencyReport:
        """Measure a model on a corpus.

        Parameters
        ----------
        texts : sequence of str, or ProbeSet
        pairs : int
            Probes wanted from the texts.
        quality : bool
            Also build and score the joints.

        Returns
        -------
        ConsistencyReport
            One row per probe, medians with bootstrap intervals, skip counts, the noise floor.

        Raises
        ------
        ProbeError
            No probe could be made; names the reasons and their counts.
        """
        found = texts if isinstance(texts, ProbeSet) else self.probes(texts, pairs)
        skipped = Counter(found.skipped)
        if not found.probes:
            raise ProbeError(
                f"corpus gives no probe of {found.sentences} sentences ({dict(skipped)}): allowed"
                " are sentences with two neighbouring content words"
            )
        self._say(f"{len(found.probes)} probes")
        tables, more = self._tables(found.probes, self.config.top_k)
        skipped += more
        if not tables:
            raise ProbeError(f"corpus gives no table ({dict(skipped)}): try candidates='all'")
        rows, kept = [], []
        for n, table in enumerate(tables):
            if not (np.isfinite(table.log_a_given_b).all()
                    and np.isfinite(table.log_b_given_a).all()):  # fmt: skip
                skipped["zero support"] += 1
                continue
            kept.append(table)
            about = {k: table.info[k] for k in ("id", "length", "i", "j")}
            rows.append({**about, "text": table.text, **pair_metrics(table, quality)})
            if n % 20 == 0:
                self._say(f"metrics of probe {n + 1} of {len(tables)}")
        if not rows:
            raise ProbeError(f"corpus gives no table with positive support ({dict(skipped)})")
        self._say("noise floor")
        floor = self._noise_floor(found.probes, tables)
        settings = {
            "model": self.name,
            "fingerprint": self.scorer.fingerprint,
            "top_k": self.config.top_k,
            "candidates": self.config.candidates,
            "seed": self.config.seed,
            "sentences": found.sentences,
        }
        summary = summarise(rows, floor, self.config.seed)
        return ConsistencyReport(rows, summary, dict(skipped), floor, settings, kept)

    def _noise_floor(
        self, probes: Sequence[PairProbe], tables: Sequence[PairTable]
    ) -> dict[str, Any]:
        """Score some probes again more exactly and see how much the gaps move.

        Models with parameters are run as a float64 copy; other scorers in other batches.
        """
        count = min(self.config.floor_pairs, len(tables))
        if count == 0:
            return {"how": "not measured", "n": 0}
        by_id = {p.id: p for p in probes}
        chosen = list(tables[:count])
        model = getattr(self.scorer, "model", None)
        if model is not None and hasattr(model, "parameters"):
            exact: Any = MaskedScorer(
                copy.deepcopy(model).double(),
                self.scorer.mask_id,
                self.scorer.max_length,
                getattr(self.scorer, "shift", 0),
            )
            how = "a float64 copy of the model"
            planner = Planner(exact, self.planner.budget_bytes, cache=self.planner.cache)
        else:
            how = "batches of another size"
            planner = Planner(self.scorer, self.planner.budget_bytes, 3, self.planner.cache)
        sets = [(list(t.info["ids_a"]), list(t.info["ids_b"])) for t in chosen]
        again, _ = self._tables([by_id[t.info["id"]] for t in chosen], 0, sets, planner=planner)
        gamma, path = [], []
        for table, other in zip(chosen, again):
            with np.errstate(invalid="ignore"):
                d = (table.log_a_given_b - table.log_b_given_a) - (
                    other.log_a_given_b - other.log_b_given_a
                )
            gamma.append(np.abs(d - d[:1] - d[:, :1] + d[0, 0])[1:, 1:].ravel())
            move = [x - y for x, y in zip(table.need_margins(), other.need_margins())]
            path.append(np.abs(move[0][:, None] - move[1] - d).ravel())
        gammas, paths = np.concatenate(gamma), np.concatenate(path)
        return {
            "how": how,
            "n": count,
            "gamma_median": float(np.median(gammas)),
            "gamma_p95": float(np.quantile(gammas, 0.95)),
            "path_median": float(np.median(paths)),
            "path_p95": float(np.quantile(paths, 0.95)),
        }

    def __repr__(self) -> str:
        return f"ConsistencyEvaluator({self.name!r}, vocabulary {self.scorer.vocab_size})"


__all__ = ["ConsistencyEvaluator", "EvaluatorConfig"]
