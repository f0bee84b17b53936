"""LoRA with roles: one adapter to write with, one to read with, and which one runs is an argument of the forward pass.

PEFT's `set_adapter` takes the gradient from every other adapter, and a role kept as an attribute is wrong when
gradient checkpointing runs a layer again. Here the role travels in the keyword arguments beside `memory`, and
each layer's attention hands it to the layer's own linear maps, also when it runs again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from remanence.errors import InputError
from remanence.lm.attention import attention_modules, layer_of
from remanence.lm.folders import ROLES

TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """M+ App. E: rank 16, alpha 32 (a scale of 2), dropout 0.1 in training, not on `o_proj`."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class RoleLinear(nn.Module):
    """`base(x) + scale B A x` with the A and B of the current role; `role` None is `base`, bit for bit.

    `role` is set by the layer's attention for each pass (see `add_roles`); nothing else may set it.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig, roles: Sequence[str] = ROLES) -> None:
        super().__init__()
        self.base = base
        self.config = config
        self.role: str | None = None
        options: dict[str, Any] = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.a = nn.ParameterDict({r: torch.empty(config.rank, base.in_features, **options) for r in roles})
        self.b = nn.ParameterDict({r: torch.zeros(base.out_features, config.rank, **options) for r in roles})
        for down in self.a.values():
            nn.init.kaiming_uniform_(down, a=5**0.5)  # PEFT's

    @property
    def weight(self) -> Tensor:
        """The base's: for code that asks a linear map for its dtype or device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.under(self.role, x)

    def under(self, role: str | None, x: Tensor) -> Tensor:
        if role is None:
            return self.base(x)
        thin = functional.dropout(x, self.config.dropout, self.training)
        return self.base(x) + functional.linear(functional.linear(thin, self.a[role]), self.b[role]) * self.config.scale


def add_roles(model: PreTrainedModel, config: LoraConfig, roles: Sequence[str] = ROLES) -> None:
    """Puts an adapter per role (B = 0, so nothing changes yet) around the linear maps that `config.targets` names.

    Raises InputError where a model has none of them, and for a model that has roles already.
    """
    if any(isinstance(module, RoleLinear) for module in model.modules()):
        raise InputError("this model has adapters already", "load the base model again")
    for attention in attention_modules(model).values():
        layer = layer_of(model, attention)
        linears = _wrap(layer, config, roles)
        if not linears:
            raise InputError(
                f"a layer of {model.config.model_type!r} has none of {', '.join(config.targets)}",
                "name its linear maps in LoraConfig(targets=...)",
            )

        def hand_over(_: nn.Module, args: Any, kwargs: dict[str, Any], linears: list[RoleLinear] = linears) -> None:
            for linear in linears:
                linear.role = kwargs.get("role")

        attention.register_forward_pre_hook(hand_over, with_kwargs=True, prepend=True)


def _wrap(layer: nn.Module, config: LoraConfig, roles: Sequence[str]) -> list[RoleLinear]:
    linears = []
    for module in list(layer.modules()):
        for name, child in list(module.named_children()):
            if name in config.targets and isinstance(child, nn.Linear):
                linears.append(RoleLinear(child, config, roles).train(child.training))
                setattr(module, name, linears[-1])
    return linears


def adapter(model: nn.Module, role: str) -> dict[str, nn.Parameter]:
    """The parameters of one role by PEFT's names, `base_model.model.<module>.lora_A.weight`."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, RoleLinear) and role in module.a:
            found[f"base_model.model.{name}.lora_A.weight"] = module.a[role]
            found[f"base_model.model.{name}.lora_B.weight"] = module.b[role]
    return found


def save_adapter(
    model: nn.Module, role: str, folder: Path, config: LoraConfig, base: str, dtype: torch.dtype | None = None
) -> None:
    """`adapter_model.safetensors` and `adapter_config.json` as PEFT writes and reads them; `dtype` None: as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().to(dtype=dtype, device="cpu").contiguous() for name, p in adapter(model, role).items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> LoraConfig:
    """The `LoraConfig` that a PEFT folder describes. InputError where it is none of a plain LoRA."""
    file = folder / "adapter_config.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["peft_type"] != "LORA" or found.get("bias", "none") != "none" or found.get("use_dora"):
            raise ValueError("it is no plain LoRA")
        return LoraConfig(found["r"], found["lora_alpha"], found["lora_dropout"], tuple(found["target_modules"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(file)!r} cannot be used: {error}", "get the adapter again") from error


def load_adapter(model: nn.Module, role: str, folder: Path) -> None:
    """Fills one role from a PEFT folder; the model has roles of this shape already."""
    file = folder / "adapter_model.safetensors"
    try:
        fill(adapter(model, role), load_file(file), str(file))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}", "get the adapter again") from error


@torch.no_grad()
def fill(parameters: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Copies `found` into `parameters`; InputError, before anything is copied, where names or shapes differ."""
    odd = sorted({*parameters} ^ {*found}) or [n for n, p in parameters.items() if p.shape != found[n].shape]
    if odd:
        shapes = [tuple(found[odd[0]].shape) if odd[0] in found else "missing"]
        shapes += [tuple(parameters[odd[0]].shape) if odd[0] in parameters else "nothing"]
        raise InputError(
            f"{where}: {odd[0]} is {shapes[0]}, this model needs {shapes[1]}", "use it with the model it was made for"
        )
    for name, parameter in parameters.items():
        parameter.copy_(found[name])


def role_parameters(model: nn.Module) -> Iterable[nn.Parameter]:
    for role in ROLES:
        yield from adapter(model, role).values()
