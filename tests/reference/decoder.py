"""A Llama (or Qwen3) decoder from its equations, one token at a time in float64: slow, obvious, and the oracle.

It loads a Hugging Face model's weights and shares no code with it or with remanence.

H query heads · G key/value heads · D head width · C model width · S keys
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Decoder:
    """One token's way through the layers: `embed`, then per layer `project`, `attend`, `finish`, then `logits`."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        rope = getattr(config, "rope_parameters", None) or {"rope_theta": config.rope_theta}
        assert rope.get("rope_type", "default") == "default"
        assert config.hidden_act == "silu"
        self.num_layers = config.num_hidden_layers
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.width = config.head_dim
        self.base = rope["rope_theta"]
        self.epsilon = config.rms_norm_eps
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}

    def weight(self, layer: int, name: str) -> Tensor:
        return self.weights[f"model.layers.{layer}.{name}.weight"]

    def normalise(self, x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * weight

    def embed(self, token: int) -> Tensor:
        return self.weights["model.embed_tokens.weight"][token]

    def project(self, layer: int, x_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """query_HD, key_GD (neither rotated) and value_GD of the residual stream x_C."""
        y_C = self.normalise(x_C, self.weight(layer, "input_layernorm"))
        query_HD = (self.weight(layer, "self_attn.q_proj") @ y_C).view(self.num_heads, self.width)
        key_GD = (self.weight(layer, "self_attn.k_proj") @ y_C).view(self.num_kv_heads, self.width)
        value_GD = (self.weight(layer, "self_attn.v_proj") @ y_C).view(self.num_kv_heads, self.width)
        if f"model.layers.{layer}.self_attn.q_norm.weight" in self.weights:  # Qwen3
            query_HD = self.normalise(query_HD, self.weight(layer, "self_attn.q_norm"))
            key_GD = self.normalise(key_GD, self.weight(layer, "self_attn.k_norm"))
        return query_HD, key_GD, value_GD

    def rotate(self, x_HD: Tensor, position: int) -> Tensor:
        """RoPE: the pair (d, d + D/2) turns by the angle position / base^(2d / D)."""
        half = self.width // 2
        # Angles in float32, as transformers computes them: float64 would differ by position * 6e-8.
        angle = position * (1.0 / self.base ** (torch.arange(0, self.width, 2).float() / self.width))
        cos, sin = torch.cos(angle).double(), torch.sin(angle).double()
        one, other = x_HD[:, :half], x_HD[:, half:]
        return torch.cat([one * cos - other * sin, other * cos + one * sin], dim=1)

    def attend(self, query_HD: Tensor, keys_GSD: list[Tensor], values_GSD: list[Tensor]) -> Tensor:
        """out_HD: for each head one softmax over all keys of its group; `keys_GSD[g]` are the keys of group g."""
        out_HD = torch.empty_like(query_HD)
        for head in range(self.num_heads):
            group = head // (self.num_heads // self.num_kv_heads)
            score_S = keys_GSD[group] @ query_HD[head] / self.width**0.5
            weight_S = torch.exp(score_S - score_S.max())
            out_HD[head] = (weight_S / weight_S.sum()) @ values_GSD[group]
        return out_HD

    def finish(self, layer: int, x_C: Tensor, out_HD: Tensor) -> Tensor:
        """The rest of the layer: output projection, residual, gated MLP, residual."""
        x_C = x_C + self.weight(layer, "self_attn.o_proj") @ out_HD.reshape(-1)
        y_C = self.normalise(x_C, self.weight(layer, "post_attention_layernorm"))
        gate, up = self.weight(layer, "mlp.gate_proj") @ y_C, self.weight(layer, "mlp.up_proj") @ y_C
        return x_C + self.weight(layer, "mlp.down_proj") @ (gate / (1 + torch.exp(-gate)) * up)

    def logits(self, x_C: Tensor) -> Tensor:
        head = self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
        return head @ self.normalise(x_C, self.weights["model.norm.weight"])
