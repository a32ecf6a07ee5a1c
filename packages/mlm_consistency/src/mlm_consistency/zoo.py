"""Converters for two real masked models that PyPI wheels carry: Sapiens and AntiBERTy.

Their alphabet has twenty amino acids, so every pair joint (400 cells) and triple joint (8000) can
be enumerated exactly. The wheels are read, never installed: their dependencies are not wanted.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import zipfile
from pathlib import Path
from typing import Any

from .errors import InputError, require
from .files import write_atomic, write_json, write_text

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
# the heavy chain of AntiBERTy's README, cut to its variable domain
EXAMPLE_SEQUENCE = (
    "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYA"
    "QKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS"
)
HOW_TO_GET = {
    "sapiens": "pip download --no-deps sapiens==1.0.3",
    "antiberty": "pip download --no-deps antiberty==0.1.3",
}


def amino_tokenizer(tokens: list[str], cls: str, sep: str, mask: str, pad: str, unk: str) -> str:
    """JSON of a tokenizer with one token per amino acid and [cls] ... [sep] around."""
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    vocabulary = {token: n for n, token in enumerate(tokens)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([cls, sep, mask, pad, unk])
    tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return str(tokenizer.to_str())


def _open(wheel: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"wheel = {str(wheel)!r}: allowed is a wheel file ({text}); get one with"
            f" `{HOW_TO_GET['sapiens']}` or `{HOW_TO_GET['antiberty']}`"
        ) from None


def _load(archive: zipfile.ZipFile, name: str) -> Any:
    """Read a checkpoint without running any code in it."""
    import torch

    data = archive.read(name)
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises many types; all mean the same
            text = " ".join(str(error).split())[:160]
            raise InputError(
                f"wheel: {name} is no checkpoint of plain weights ({text}); allowed are the"
                " released wheels"
            ) from None


def fairseq_roberta_keys(state: dict[str, Any]) -> dict[str, Any]:
    """Rename the weights of a fairseq RoBERTa to Hugging Face's RobertaForMaskedLM."""
    import torch

    rules = [
        (r"^decoder\.|^encoder\.(?=sentence_encoder|lm_head)", ""),
        (r"^sentence_encoder\.embed_tokens\.", "roberta.embeddings.word_embeddings."),
        (r"^sentence_encoder\.embed_positions\.", "roberta.embeddings.position_embeddings."),
        (r"^sentence_encoder\.(emb_layer_norm|layernorm_embedding)\.",
         "roberta.embeddings.LayerNorm."),
        (r"^sentence_encoder\.layers\.(\d+)\.self_attn\.q_proj\.",
         r"roberta.encoder.layer.\1.attention.self.query."),
        (r"^sentence_encoder\.layers\.(\d+)\.self_attn\.k_proj\.",
         r"roberta.encoder.layer.\1.attention.self.key."),
        (r"^sentence_encoder\.layers\.(\d+)\.self_attn\.v_proj\.",
         r"roberta.encoder.layer.\1.attention.self.value."),
        (r"^sentence_encoder\.layers\.(\d+)\.self_attn\.out_proj\.",
         r"roberta.encoder.layer.\1.attention.output.dense."),
        (r"^sentence_encoder\.layers\.(\d+)\.self_attn_layer_norm\.",
         r"roberta.encoder.layer.\1.attention.output.LayerNorm."),
        (r"^sentence_encoder\.layers\.(\d+)\.fc1\.",
         r"roberta.encoder.layer.\1.intermediate.dense."),
        (r"^sentence_encoder\.layers\.(\d+)\.fc2\.", r"roberta.encoder.layer.\1.output.dense."),
        (r"^sentence_encoder\.layers\.(\d+)\.final_layer_norm\.",
         r"roberta.encoder.layer.\1.output.LayerNorm."),
        (r"^lm_head\.weight$", "lm_head.decoder.weight"),
        (r"^lm_head\.bias$", "lm_head.bias"),
    ]  # fmt: skip
    out = {}
    for key, value in state.items():
        if "_float_tensor" in key or key.endswith("version") or "classification_heads" in key:
            continue
        for pattern, new in rules:
            key = re.sub(pattern, new, key)
        out[key] = value
    words = out["roberta.embeddings.word_embeddings.weight"]
    out.setdefault("lm_head.decoder.weight", words)
    out["lm_head.decoder.bias"] = out["lm_head.bias"]
    out["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, words.shape[1])
    return out


def convert_sapiens(wheel: str | Path, out: str | Path, chain: str = "H") -> dict[str, Any]:
    """Convert a chain's model of the `sapiens` wheel to a Hugging Face folder.

    Parameters
    ----------
    wheel : path
        ``sapiens-1.0.3-py3-none-any.whl``; later versions carry no weights.
    out : path
        Folder.
    chain : "H" or "L"

    Returns
    -------
    dict
        Manifest.
    """
    require(chain in ("H", "L"), "chain", chain, "'H' or 'L'")
    archive = _open(wheel)
    want = "vh" if chain == "H" else "vl"
    names = [n for n in archive.namelist() if n.endswith(".pt") and want in n.lower()]
    if not names:
        raise InputError(
            f"wheel = {str(wheel)!r}: has no weights of chain {chain}; allowed is version 1.0.3:"
            f" {HOW_TO_GET['sapiens']}"
        )
    checkpoint = _load(archive, names[0])
    state = fairseq_roberta_keys(checkpoint["model"])
    return _write_roberta(state, out, f"sapiens {chain}", names[0])


def _write_roberta(
    state: dict[str, Any], out: str | Path, name: str, source: str
) -> dict[str, Any]:
    from transformers import RobertaConfig, RobertaForMaskedLM

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *AMINO_ACIDS, "<mask>"]
    words = state["roberta.embeddings.word_embeddings.weight"]
    layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("roberta.encoder.layer."))
    config = RobertaConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=layers,
        num_attention_heads=8,
        intermediate_size=state["roberta.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["roberta.embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    model = RobertaForMaskedLM(config)
    result = model.load_state_dict(state, strict=False)
    missing = [k for k in result.missing_keys if "position_ids" not in k]
    if missing or result.unexpected_keys:
        raise InputError(
            f"wheel: {source} does not fit RoBERTa (missing {missing[:3]}, unexpected"
            f" {result.unexpected_keys[:3]}); allowed is sapiens 1.0.3"
        )
    tokenizer = amino_tokenizer(tokens, "<s>", "</s>", "<mask>", "<pad>", "<unk>")
    special = {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>",
               "pad_token": "<pad>", "unk_token": "<unk>"}  # fmt: skip
    return _export(model, tokenizer, special, Path(out), name, source)


def convert_antiberty(wheel: str | Path, out: str | Path) -> dict[str, Any]:
    """Convert the model of the `antiberty` wheel (0.1.3) to a Hugging Face folder."""
    import json

    from transformers import BertConfig, BertForMaskedLM

    archive = _open(wheel)
    weights = [n for n in archive.namelist() if n.endswith("pytorch_model.bin")]
    if not weights:
        raise InputError(
            f"wheel = {str(wheel)!r}: has no pytorch_model.bin; allowed is version 0.1.3:"
            f" {HOW_TO_GET['antiberty']}"
        )
    folder = weights[0].rpartition("/")[0]
    settings = json.loads(archive.read(f"{folder}/config.json"))
    known = {
        k: settings[k]
        for k in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
            "hidden_act", "pad_token_id",
        )
        if k in settings
    }  # fmt: skip
    state = _load(archive, weights[0])
    model = BertForMaskedLM(BertConfig(**known))
    result = model.load_state_dict(state, strict=False)
    missing = [k for k in result.missing_keys if "position_ids" not in k]
    if missing:
        raise InputError(
            f"wheel: {weights[0]} does not fit BERT (missing {missing[:3]}); allowed is"
            " antiberty 0.1.3"
        )
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *AMINO_ACIDS]
    vocabulary = [n for n in archive.namelist() if n.endswith("vocab.txt")]
    if vocabulary:
        tokens = archive.read(vocabulary[0]).decode().split()
    tokenizer = amino_tokenizer(tokens, "[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]")
    special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
               "pad_token": "[PAD]", "unk_token": "[UNK]"}  # fmt: skip
    return _export(model, tokenizer, special, Path(out), "antiberty", weights[0])


def _export(
    model: Any, tokenizer: str, special: dict[str, str], out: Path, name: str, source: str
) -> dict[str, Any]:
    from safetensors.torch import save

    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    tied |= {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    weights = {
        k: v.detach().contiguous().clone() for k, v in model.state_dict().items() if k not in tied
    }
    content = save(weights, metadata={"format": "pt"})
    write_atomic(out / "model.safetensors", lambda file: file.write(content))
    model.config.architectures = [type(model).__name__]
    write_text(out / "config.json", model.config.to_json_string(use_diff=False))
    write_text(out / "tokenizer.json", tokenizer)
    write_json(
        out / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **special},
    )
    manifest = {
        "schema_version": 1,
        "model": name,
        "source": source,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_json(out / "manifest.json", manifest)
    return manifest


def convert(wheel: str | Path, out: str | Path, chain: str = "H") -> dict[str, Any]:
    """Convert a wheel by its name."""
    name = Path(wheel).name.lower()
    if name.startswith("sapiens"):
        return convert_sapiens(wheel, out, chain)
    if name.startswith("antiberty"):
        return convert_antiberty(wheel, out)
    raise InputError(
        f"wheel = {str(wheel)!r}: allowed are the wheels of sapiens and antiberty;"
        f" `{HOW_TO_GET['sapiens']}`, `{HOW_TO_GET['antiberty']}`"
    )


__all__ = [
    "AMINO_ACIDS",
    "EXAMPLE_SEQUENCE",
    "amino_tokenizer",
    "convert",
    "convert_antiberty",
    "convert_sapiens",
    "fairseq_roberta_keys",
]
