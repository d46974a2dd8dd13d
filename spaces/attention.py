"""Self-attention written out as plain linear layers, so that heads can be cut one by one.

``nn.MultiheadAttention`` insists that its heads together are as wide as its input and keeps its
projections as bare parameters, so that neither heads can be cut nor projections be factorised or
quantised like other layers. :class:`SelfAttention` computes the same with two linear layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .shortcut import rewrite_shortcuts


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., "Attention Is All You Need", 2017, section 3.2).

    Called like the ``nn.MultiheadAttention`` it was made from. ``in_proj`` gives queries, keys and
    values of all heads, ``out_proj`` reads the heads' results: 3 * heads * width rows and
    heads * width columns, whatever the width of the input.
    """

    in_proj_bias = None  # nn.TransformerEncoderLayer takes this for "no fused kernel here"
    _qkv_same_embed_dim = True

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        wide = original.embed_dim
        self.num_heads, self.head_dim = original.num_heads, original.head_dim
        self.batch_first, self.dropout = original.batch_first, original.dropout
        with_bias = original.in_proj_bias is not None
        self.in_proj = nn.Linear(wide, 3 * wide, bias=with_bias)
        self.out_proj = nn.Linear(wide, wide, bias=original.out_proj.bias is not None)
        with torch.no_grad():
            self.in_proj.weight.copy_(original.in_proj_weight)
            self.out_proj.weight.copy_(original.out_proj.weight)
            if with_bias:
                self.in_proj.bias.copy_(original.in_proj_bias)
            if original.out_proj.bias is not None:
                self.out_proj.bias.copy_(original.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(outputs, attention weights or None) for ``query`` (n, tokens, width) if batch_first."""
        x = query if self.batch_first else query.transpose(0, 1)
        mask = _merged(attn_mask, key_padding_mask, x)
        n, tokens = x.shape[0], x.shape[1]
        heads = self.in_proj(x).reshape(n, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        drop = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            out = F.dropout(weights, drop) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            causal = is_causal and mask is None
            out = F.scaled_dot_product_attention(q, k, v, mask, drop, causal)
        out = out.transpose(1, 2).reshape(n, tokens, self.num_heads * self.head_dim)
        out = self.out_proj(out)
        return (out if self.batch_first else out.transpose(0, 1)), weights


def _merged(mask: Tensor | None, padding: Tensor | None, x: Tensor) -> Tensor | None:
    """One additive mask, broadcast over (n, heads, tokens, tokens), of both kinds of mask."""
    total = None
    for given, shape in ((mask, (1, 1, -1, x.shape[1])), (padding, (-1, 1, 1, x.shape[1]))):
        if given is not None:
            if given.dtype == torch.bool:
                given = torch.zeros_like(given, dtype=x.dtype).masked_fill(given, -math.inf)
            given = given.reshape(shape)
            total = given if total is None else total + given
    return total


def rewrite(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of ``network`` that can be cut everywhere, with the same outputs.

    Padded shortcuts become convolutions (:func:`rewrite_shortcuts`, exactly the same numbers) and
    ``nn.MultiheadAttention`` that attends to its own input becomes :class:`SelfAttention` (the same
    up to float rounding). network: eval mode; example: (1, ...) float32.
    """
    copied = rewrite_shortcuts(network, example)
    attentions = {n: m for n, m in copied.named_modules() if type(m) is nn.MultiheadAttention}
    if not attentions:
        return copied
    fits: dict[str, bool] = {}
    hooks = []
    for name, module in attentions.items():

        def watch(module: Any, args: Any, given: dict[str, Any], name: str = name) -> None:
            fits[name] = fits.get(name, True) and _is_plain(module, args, given)

        hooks.append(module.register_forward_pre_hook(watch, with_kwargs=True))
    with torch.no_grad():
        copied(example)
    for hook in hooks:
        hook.remove()
    for name, fitting in fits.items():
        if fitting:
            parent, _, leaf = name.rpartition(".")
            written = SelfAttention(attentions[name]).to(example.device)
            setattr(copied.get_submodule(parent), leaf, written.eval())
    return copied


def _is_plain(module: nn.MultiheadAttention, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    """Self-attention over a batch, with masks that hold for all heads."""
    names = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
    call = {**dict(zip(names, args, strict=False)), **given}
    query, mask = call.get("query"), call.get("attn_mask")
    return (
        isinstance(query, Tensor)
        and query.dim() == 3
        and query is call.get("key")
        and query is call.get("value")
        and (mask is None or mask.dim() == 2)
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
    )
