"""Small transformers of the kinds that people use: torch's own layers, timm's blocks, BERT's."""

import torch
from torch import nn
from torch.nn import functional as F

TOKENS = (1, 6, 16)  # examples, tokens, width


class Torch(nn.Module):
    """Pre-norm blocks around nn.MultiheadAttention, as in torchvision's ViT."""

    def __init__(self, width: int = 16, heads: int = 4, need_weights: bool = False) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=self.need_weights)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """torch's own encoder layers, post-norm, with a causal mask; tokens first."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.encoder(x.transpose(0, 1), mask=mask).mean(0))


class FusedAttention(nn.Module):
    """timm's attention: one qkv layer, reshaped; ``order`` says how its rows are laid out."""

    def __init__(self, width: int = 16, heads: int = 4, order: str = "qkv") -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, width // heads, width
        self.order = order
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, _ = x.shape
        if self.order == "qkv":
            parts = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            parts = self.qkv(x).reshape(n, tokens, self.num_heads, 3, self.head_dim)
            q, k, v = parts.permute(3, 0, 2, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, tokens, self.attn_dim))


class Fused(nn.Module):
    """Two timm-like blocks."""

    def __init__(self, order: str = "qkv") -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(16),
                    "attn": FusedAttention(order=order),
                    "norm2": nn.LayerNorm(16),
                    "fc1": nn.Linear(16, 24),
                    "fc2": nn.Linear(24, 16),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + block["attn"](block["norm1"](x))
            x = x + block["fc2"](F.gelu(block["fc1"](block["norm2"](x))))
        return self.head(x.mean(1))


class SeparateAttention(nn.Module):
    """BERT's: query, key and value layers; what reads the heads lies outside."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 4, 4, 16
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (x.shape[0], x.shape[1], self.num_attention_heads, self.attention_head_size)
        q, k, v = (m(x).view(shape).transpose(1, 2) for m in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / self.attention_head_size**0.5
        out = (scores.softmax(-1) @ v).transpose(1, 2)
        return out.reshape(x.shape[0], x.shape[1], self.all_head_size)


class Separate(nn.Module):
    """A post-norm block as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = SeparateAttention()
        self.dense = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + self.dense(self.attention(x)))
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


class FixedWidth(FusedAttention):
    """A reshape written for the original width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(n, tokens, width))


class Stubborn(Fused):
    """Heads of the second block cannot be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1]["attn"] = FixedWidth()


TRANSFORMERS = {
    "torch": Torch,
    "torch_weights": lambda: Torch(need_weights=True),
    "encoder": Encoder,
    "fused": Fused,
    "fused_by_head": lambda: Fused("by head"),
    "separate": Separate,
}


def build_transformer(name: str, seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """A transformer with random weights, eval mode, and an example input."""
    torch.manual_seed(seed)
    kind = TRANSFORMERS.get(name, Stubborn)
    network = kind().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return network, torch.randn(TOKENS)
