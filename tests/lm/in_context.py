"""The truth that memory is held against: the same text in one context, on the family's own code without the seam.

What each layer's text may see of the memory's text is set with a hook on the attention mask, so per-layer lengths
and visibility have a truth too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence.lm.attention import attention_modules


@torch.no_grad()
def logits_in_context(
    model: PreTrainedModel, first_BM: Tensor, second_BT: Tensor, see_LBTM: Tensor, windows: dict[int, int] | None = None
) -> Tensor:
    """Logits of the second text after the first, where layer l's token t sees first-text token m if see_LBTM says so.

    `model` must not be prepared yet. `windows`: how many tokens of its own text a layer's token sees, itself included.
    """
    backend, handles = model.config._attn_implementation, []
    assert backend in ("eager", "sdpa")
    for layer, module in attention_modules(model).items():
        masker = _masker(see_LBTM[layer], backend, (windows or {}).get(layer))
        handles.append(module.register_forward_pre_hook(masker, with_kwargs=True))
    both_BS = torch.cat([first_BM, second_BT], dim=1)
    positions_BS = torch.arange(both_BS.shape[1])[None]
    try:
        return model(both_BS, position_ids=positions_BS, use_cache=False).logits[:, first_BM.shape[1] :].float()
    finally:
        for handle in handles:
            handle.remove()


def _masker(see_BTM: Tensor, backend: str, window: int | None) -> Any:
    B, T, M = see_BTM.shape
    mask = torch.ones(M + T, M + T, dtype=torch.bool).tril().repeat(B, 1, 1, 1)
    if window is not None:
        mask = mask.triu(1 - window)
    mask[:, 0, M:, :M] = see_BTM

    def set_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        assert "attention_mask" in kwargs, f"{type(module).__name__} is given its mask by position"
        dtype = next(module.parameters()).dtype
        additive = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return args, {**kwargs, "attention_mask": additive if backend == "eager" else mask}

    return set_mask
