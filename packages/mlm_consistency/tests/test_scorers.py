"""One contract for every architecture, planner, cache, faults."""

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import transformers
from mlm_consistency import (
    FunctionScorer,
    InputError,
    MaskedScorer,
    Planner,
    ProbeError,
    Request,
    ScoreError,
    TableScorer,
)
from scipy.special import logsumexp

V = 61
SMALL = {
    "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "bert": ("BertConfig", "BertForMaskedLM", {}),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", {}),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaForMaskedLM", {}),
    "camembert": ("CamembertConfig", "CamembertForMaskedLM", {}),
    "distilbert": ("DistilBertConfig", "DistilBertForMaskedLM",
                   {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}),
    "albert": ("AlbertConfig", "AlbertForMaskedLM", {"embedding_size": 8}),
    "electra": ("ElectraConfig", "ElectraForMaskedLM", {"embedding_size": 16}),
    "deberta-v2": ("DebertaV2Config", "DebertaV2ForMaskedLM",
                   {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "mpnet": ("MPNetConfig", "MPNetForMaskedLM", {}),
    "modernbert": ("ModernBertConfig", "ModernBertForMaskedLM",
                   {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}),
    "esm": ("EsmConfig", "EsmForMaskedLM",
            {"mask_token_id": V - 1, "position_embedding_type": "rotary", "token_dropout": False}),
    "convbert": ("ConvBertConfig", "ConvBertForMaskedLM",
                 {"embedding_size": 16, "conv_kernel_size": 3, "head_ratio": 1}),
    "roformer": ("RoFormerConfig", "RoFormerForMaskedLM", {"embedding_size": 16}),
}  # fmt: skip


def tiny(family):
    config, model, extra = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**SMALL, **extra}))
    for parameter in made.parameters():  # initial weights give almost uniform answers
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def requests_of(rng, lengths, mask):
    out = []
    for n in lengths:
        ids = rng.integers(5, V - 1, n)
        at = int(rng.integers(1, n - 1))
        ids[at] = mask
        out.append(Request(tuple(int(i) for i in ids), at, tuple(range(5, 25))))
    return out


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_passes_one_contract(family, rng):
    model = tiny(family)
    scorer = MaskedScorer(model, V - 1)
    assert scorer.head_only_where_needed
    requests = requests_of(rng, [6, 9, 9, 12, 6], V - 1)
    found = Planner(scorer).score(requests)
    for request, scores in zip(requests, found):
        with torch.no_grad():
            ids = torch.tensor([request.ids])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        expected = torch.log_softmax(logits[0, request.position].double(), -1)
        assert np.allclose(scores.log_p, expected[list(request.candidates)].numpy(), atol=2e-5)
    # batch size, order and duplicates change nothing
    again = Planner(scorer, max_batch=1).score([*reversed(requests), requests[0]])
    for one, two in zip(found, [*again[:5]][::-1]):
        assert np.allclose(one.log_p, two.log_p, atol=1e-5)
    assert np.allclose(again[5].log_p, found[0].log_p, atol=1e-5)


def test_inputs_with_two_places_are_repeated_and_rotary_queries_left_alone(rng):
    """The last layer asks with the wanted places alone only where that changes no logit."""
    scorer = MaskedScorer(tiny("bert"), V - 1)
    assert scorer._site[0] == "query"
    assert MaskedScorer(tiny("roformer"), V - 1)._site[0] == "late"  # positions inside attention
    requests = requests_of(rng, [9] * 8, V - 1)
    for extra in (1, 7):  # few inputs with two places are run twice; with many, the layer is whole
        more = [Request(r.ids, 4, r.candidates) for r in requests[:extra]]
        found = Planner(scorer).score([*requests, *more])
        alone = Planner(scorer, max_batch=1).score([*requests, *more])
        whole = Planner(MaskedScorer(scorer.model, V - 1, late=False)).score([*requests, *more])
        for one, two, three in zip(found, alone, whole):
            assert np.allclose(one.log_p, two.log_p, atol=1e-5)
            assert np.allclose(one.log_p, three.log_p, atol=1e-5)


def test_a_masked_diffusion_model_and_a_shifted_one(rng):
    """A bidirectional any-order denoiser without special tokens; Dream predicts one place later."""
    table = rng.normal(size=(8, 12))

    class Config:
        vocab_size = 12
        max_position_embeddings = 16

    class Denoiser(torch.nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(table))
            self.config, self.shift = Config(), shift

        def forward(self, input_ids):
            seen = (input_ids * (input_ids != 11)).sum(1, keepdim=True)
            logits = self.weight[: input_ids.shape[1]] + 0.1 * seen[..., None]
            logits = torch.roll(logits, -self.shift, dims=1)
            return transformers.modeling_outputs.MaskedLMOutput(logits=logits)

    ids = (1, 11, 3, 11, 2)
    plain = Planner(MaskedScorer(Denoiser(0), 11)).score([Request(ids, 3)])[0]
    moved = Planner(MaskedScorer(Denoiser(1), 11, shift=-1)).score([Request(ids, 3)])[0]
    assert np.allclose(plain.log_p, moved.log_p)
    assert np.allclose(plain.log_p, table[3] - logsumexp(table[3]))


def test_table_scorer_is_the_exact_predictor(rng):
    joint = rng.normal(size=(3, 3, 3))
    scorer = TableScorer(joint)
    p = np.exp(joint - logsumexp(joint))
    found = Planner(scorer).score([Request((3, 1, 3), 0), Request((2, 1, 3), 2)])
    assert np.allclose(np.exp(found[0].log_p[:3]), p[:, 1].sum(-1) / p[:, 1].sum())
    assert np.allclose(np.exp(found[1].log_p[:3]), p[2, 1] / p[2, 1].sum())


def test_bayes_optimal_predictor_of_a_markov_chain_is_consistent_at_every_level(rng):
    from mlm_consistency import PairTable, compat, metrics

    start, step = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4), 4)
    joint = np.einsum("a,ab,bc,cd->abcd", start, step, step, step)
    planner = Planner(TableScorer(np.log(joint)))
    for i, j in itertools.combinations(range(4), 2):
        base = [0, 1, 2, 3]

        def ids(changes, base=base):
            return tuple(changes.get(n, v) for n, v in enumerate(base))

        values = (0, 1, 2, 3)
        requests = [Request(ids({i: 4, j: 4}), at, values) for at in (i, j)]
        requests += [Request(ids({i: 4, j: b}), i, values) for b in values]
        requests += [Request(ids({i: a, j: 4}), j, values) for a in values]
        s = [x.log_p for x in planner.score(requests)]
        table = PairTable(np.stack(s[2:6], 1), np.stack(s[6:]), s[0], s[1], gold=(base[i], base[j]))
        found = metrics.pair_metrics(table)
        assert abs(compat.worst_quadruple(table).gap) <= 1e-10
        for name in ("p_path_median", "m_tv_i", "m_tv_j", "u_gibbs_tv"):
            assert abs(found[name]) <= 1e-10


def function_scorer(rng, calls=None, fail_above=None):
    weight = rng.normal(size=(20, 20))

    def function(ids):
        if calls is not None:
            calls.append(len(ids))
        if fail_above and len(ids) > fail_above:
            raise RuntimeError("CUDA out of memory: tried to allocate")
        return weight[ids] + weight[ids].mean(1, keepdims=True)

    return FunctionScorer(function, 19, 20, 16)


def test_equal_inputs_run_once_and_memory_faults_halve_the_batch(rng):
    calls = []
    scorer = function_scorer(rng, calls, fail_above=4)
    requests = [Request((1, 19, n % 7), 1, (3, 4)) for n in range(40)]
    planner = Planner(scorer, max_batch=64)
    found = planner.score(requests)
    assert planner.statistics.sequences == 7
    assert planner.statistics.halvings == 1
    assert max(c for c in calls if c <= 4) <= 4
    assert np.array_equal(found[0].log_p, found[7].log_p)
    tight = Planner(scorer, budget_bytes=1)
    tight.score(requests)
    assert tight.statistics.batches == 7
    with pytest.raises(RuntimeError, match="out of memory"):
        Planner(function_scorer(rng, fail_above=0.5)).score(requests)


def test_other_errors_are_not_taken_for_memory_faults(rng):
    def function(ids):
        raise RuntimeError("a fault of the model")

    with pytest.raises(RuntimeError, match="a fault of the model"):
        Planner(FunctionScorer(function, 3, 4)).score([Request((1, 3), 1)] * 2)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_logits_that_are_no_distribution_are_refused(value):
    scorer = FunctionScorer(lambda ids: np.full((*ids.shape, 4), value), 3, 4)
    with pytest.raises(ScoreError, match="request 0"):
        Planner(scorer).score([Request((1, 3), 1, (0,))])


def test_minus_infinity_in_some_tokens_is_allowed():
    def function(ids):
        out = np.zeros((*ids.shape, 4))
        out[..., 2] = -np.inf
        return out

    found = Planner(FunctionScorer(function, 3, 4)).score([Request((1, 3), 1)])[0]
    assert np.isneginf(found.log_p[2])
    assert found.log_p[0] == pytest.approx(-np.log(3))


def test_long_inputs_are_refused_never_truncated(rng):
    with pytest.raises(ProbeError, match="17 tokens: allowed are 16"):
        Planner(function_scorer(rng)).score([Request((1,) * 17, 3, (2,))])
    with pytest.raises(InputError, match="mask_id"):
        MaskedScorer(tiny("bert"), V)


def test_bad_function_shape_is_named():
    with pytest.raises(InputError, match="returned shape"):
        Planner(FunctionScorer(lambda ids: np.zeros((1, 2)), 3, 4)).score([Request((1, 3), 1)])


def test_cache_answers_without_the_model_and_bit_for_bit(rng, tmp_path):
    calls = []
    scorer = function_scorer(rng, calls)
    requests = [Request((1, 19, n), 1, (3, 4)) for n in range(15)]
    first = Planner(scorer, cache=tmp_path).score(requests)
    count = len(calls)
    planner = Planner(scorer, cache=tmp_path)
    second = planner.score(requests)
    assert len(calls) == count
    assert planner.statistics.cached_shards == 1
    assert all(np.array_equal(a.log_p, b.log_p) and a.log_z == b.log_z
               for a, b in zip(first, second))  # fmt: skip
    (shard,) = tmp_path.glob("shard-*.npz")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match="delete the file"):
        Planner(scorer, cache=tmp_path).score(requests)


def test_two_processes_share_the_shards(tmp_path):
    """torch.distributed over gloo: each process computes its shards, both read all of them."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, os\n"
        "import numpy as np, torch.distributed as dist\n"
        "from mlm_consistency import planner as module\n"
        "from mlm_consistency import FunctionScorer, Planner, Request\n"
        "rank = int(sys.argv[1])\n"
        "dist.init_process_group('gloo', init_method='file://' + sys.argv[2] + '/group',\n"
        "                        rank=rank, world_size=2)\n"
        "module.SHARD_REQUESTS = 5\n"
        "w = np.random.default_rng(0).normal(size=(20, 20))\n"
        "scorer = FunctionScorer(lambda ids: w[ids], 19, 20)\n"
        "p = Planner(scorer, cache=sys.argv[2] + '/cache')\n"
        "found = p.score([Request((1, 19, n), 2, (3, 4)) for n in range(18)])\n"
        "print(p.statistics.cached_shards, sum(s.log_p.sum() for s in found))\n"
        "dist.destroy_process_group()\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)], stdout=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    out = [run.communicate(timeout=120)[0].split() for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert out[0][1] == out[1][1]
    assert out[0][0] == out[1][0] == "4"
    assert len(list((tmp_path / "cache").glob("shard-*.npz"))) == 4


def kill_and_resume(tmp_path, kills, seed):
    """Kill a measurement at random moments, let it finish, compare with an undisturbed run."""
    command = [
        sys.executable, "-m", "mlm_consistency.cli", "measure", "mini-bert", "held-out",
        "--pairs", "8", "--top", "6", "--floor-pairs", "2", "--out",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    settings = {"check": True, "env": env, "capture_output": True, "timeout": 300}
    subprocess.run([*command, str(tmp_path / "a")], **settings)
    whole = time.perf_counter() - start
    rng = np.random.default_rng(seed)
    for _ in range(kills):
        process = subprocess.Popen(
            [*command, str(tmp_path / "b")], env=env,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(float(rng.uniform(0.3, 1.0)) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "b")], **settings)
    for name in ("report.json", "report.html", "probes.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_kill_and_resume_gives_the_same_bytes(tmp_path):
    kill_and_resume(tmp_path, 1, 0)


@pytest.mark.stress
def test_twenty_kills(tmp_path):
    kill_and_resume(tmp_path, 20, 1)
