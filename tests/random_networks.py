"""Networks of random blocks that know the width of every layer: a plan's result by hand."""

from dataclasses import dataclass
from math import prod

import torch
from small_transformers import FusedAttention
from torch import nn
from torch.nn import functional as F

SIDE = 6  # images are SIDE x SIDE, and stay so: every convolution has that many places
BLOCKS = ("residual", "dense", "depthwise", "grouped")
NORMS = ("batch", "group", "none")
TAILS = ("none", "torch", "fused")


@dataclass(frozen=True)
class Sides:
    """A layer's output width (a variable), what it reads, its kernel area and its places.

    shared: input widths are read in this many equal parts; own: each channel reads only itself.
    many: rows of one unit of the output or input (attention heads).
    """

    out: str
    into: tuple[str, ...]
    area: int = 1
    places: int = SIDE * SIDE
    shared: int = 1
    own: bool = False
    many_out: int = 1
    many_in: int = 1


class RandomNetwork(nn.Module):
    """Blocks in order, then pooling or a transformer block, then a classifier."""

    def __init__(self, blocks: list[str], norm: str, tail: str) -> None:
        super().__init__()
        self.sides: dict[str, Sides] = {}
        self.widths: dict[str, int] = {}
        self.norm_widths: list[tuple[str, int]] = []
        self.kinds, self.norm, self.tail = blocks, norm, tail
        self.inside: list[dict[str, nn.Module]] = []
        self.stem = self.conv("stem", "w", 8, ("image",), 3, 3)
        now: tuple[str, ...] = ("w",)
        self.blocks = nn.ModuleList()
        for i, kind in enumerate(blocks):
            parts = nn.ModuleDict()
            self.blocks.append(parts)
            here = f"blocks.{i}"
            if kind == "residual":
                parts["a"] = self.conv(f"{here}.a", f"{i}a", 12, now, 3)
                parts["norm"] = self.normed(f"{i}a", 12)
                parts["b"] = self.conv(f"{here}.b", now[0], self.widths[now[0]], (f"{i}a",), 3)
            elif kind == "dense":
                parts["a"] = self.conv(f"{here}.a", f"{i}a", 8, now, 3)
                parts["merge"] = self.conv(f"{here}.merge", f"{i}m", 12, (*now, f"{i}a"), 1)
                now = (f"{i}m",)
            elif kind == "depthwise":
                parts["a"] = self.conv(f"{here}.a", f"{i}a", 16, now, 1)
                parts["norm"] = self.normed(f"{i}a", 16)
                parts["depth"] = nn.Conv2d(16, 16, 3, padding=1, groups=16)
                self.sides[f"{here}.depth"] = Sides(f"{i}a", (f"{i}a",), 9, own=True)
                parts["b"] = self.conv(f"{here}.b", f"{i}b", 8, (f"{i}a",), 1)
                now = (f"{i}b",)
            else:
                parts["a"] = self.conv(f"{here}.a", f"{i}a", 16, now, 1)
                parts["grouped"] = nn.Conv2d(16, 8, 3, padding=1, groups=2)
                self.widths[f"{i}g"] = 8
                self.sides[f"{here}.grouped"] = Sides(f"{i}g", (f"{i}a",), 9, shared=2)
                now = (f"{i}g",)
        wide = sum(self.widths[v] for v in now)
        if tail != "none":
            self.widths |= {"e": 16, "heads": 4, "mlp": 24}
            self.embed = self.linear("embed", "e", now, wide, 16)
            made = "in_proj" if tail == "torch" else "qkv"
            read = "out_proj" if tail == "torch" else "proj"
            self.norm1, self.norm2 = self.layer_norm(), self.layer_norm()
            if tail == "torch":
                self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            else:
                self.attention = FusedAttention()
            self.sides[f"attention.{made}"] = Sides("heads", ("e",), many_out=12)
            self.sides[f"attention.{read}"] = Sides("e", ("heads",), many_in=4)
            self.up = self.linear("up", "mlp", ("e",), 16, 24)
            self.down = self.linear("down", "e", ("mlp",), 24, 16)
            now, wide = ("e",), 16
        self.widths["out"] = 5
        self.head = nn.Linear(wide, 5)
        self.sides["head"] = Sides("out", now, places=1)
        self.widths["image"] = 3

    def conv(
        self, name: str, var: str, out: int, into: tuple[str, ...], kernel: int, read: int = 0
    ) -> nn.Conv2d:
        self.widths[var] = out
        self.sides[name] = Sides(var, into, kernel * kernel)
        read = read or sum(self.widths[v] for v in into)
        return nn.Conv2d(read, out, kernel, padding=kernel // 2)

    def linear(self, name: str, var: str, into: tuple[str, ...], read: int, out: int) -> nn.Linear:
        self.sides[name] = Sides(var, into)
        return nn.Linear(read, out)

    def normed(self, var: str, width: int) -> nn.Module:
        if self.norm == "none":
            return nn.Identity()
        self.norm_widths.append((var, 2))
        return nn.BatchNorm2d(width) if self.norm == "batch" else nn.GroupNorm(2, width)

    def layer_norm(self) -> nn.LayerNorm:
        self.norm_widths.append(("e", 2))
        return nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for kind, parts in zip(self.kinds, self.blocks, strict=True):
            y = parts["a"](x)
            if kind == "residual":
                x = F.relu(x + parts["b"](F.relu(parts["norm"](y))))
            elif kind == "dense":
                x = F.relu(parts["merge"](torch.cat([x, F.relu(y)], 1)))
            elif kind == "depthwise":
                x = parts["b"](F.relu(parts["depth"](F.relu(parts["norm"](y)))))
            else:
                x = F.relu(parts["grouped"](F.relu(y)))
        if self.tail == "none":
            return self.head(x.mean((2, 3)))
        x = self.embed(x.flatten(2).transpose(1, 2))
        y = self.norm1(x)
        if self.tail == "torch":
            x = x + self.attention(y, y, y, need_weights=False)[0]
        else:
            x = x + self.attention(y)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))

    def expected(self, plan) -> tuple[dict[str, tuple[int, ...]], int, int]:
        """(weight shapes by layer name, parameters, multiply-accumulates) under ``plan``."""
        left = dict(self.widths)
        for group, kept in plan.groups.items():
            left[self.sides[group].out] = kept
        shapes: dict[str, tuple[int, ...]] = {}
        params = sum(left[var] * per for var, per in self.norm_widths)
        macs = 0
        for name, s in self.sides.items():
            out = left[s.out] * s.many_out
            into = 1 if s.own else sum(left[v] for v in s.into) * s.many_in // s.shared
            choice = plan.layers.get(name)
            made = {name: (out, into, s.area)}
            if choice is not None and choice.method == "svd":
                (r,) = choice.ranks
                made = {f"{name}.0": (r, into, 1), f"{name}.1": (out, r, 1)}
            elif choice is not None and choice.method == "tucker2":
                r_out, r_in = choice.ranks
                made = {
                    f"{name}.0": (r_in, into, 1),
                    f"{name}.1": (r_out, r_in, s.area),
                    f"{name}.2": (out, r_out, 1),
                }
            shapes |= made
            params += sum(prod(shape) for shape in made.values()) + out
            macs += sum(prod(shape) for shape in made.values()) * s.places
        return shapes, params, macs
