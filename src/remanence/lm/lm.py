"""LM: a Hugging Face causal language model that can be given memory, with its tokenizer and fingerprint."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from remanence import arguments
from remanence.errors import ContextTooLong, InputError
from remanence.lm import attention, hub, lora, proof, published, rope_limit, tiny
from remanence.lm.cache import cache_keyword
from remanence.lm.embedder import ModelEmbedder
from remanence.types import KV, Prefix

SETTINGS = hub.SETTINGS
LATENT = "latent.safetensors"
ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED = {name: ASSETS / name for name in ("nano", "nano-chat", "nano-mplus")}


@dataclass(frozen=True)
class Dims:
    """Sizes of a model; `max_positions` is the largest number of positions at which memory is exact.

    It is what the model was made for, or where its rotary embedding changes with the length (`lm/rope_limit.py`).
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int


class LM:
    """A model that passed `prove`, its tokenizer, and what they are called.

    `settings`: method name -> the fields of its config that the checkpoint was made for (`remanence.json` beside it).

    `reads_as`, `writes_as`: the adapters (`lm/lora.py`) that text is read with and references are written with; None:
    the base. One that only reads leaves the fingerprint as it is: what a base has written, its adapters read.

    Its weights must not change under it: the fingerprint is computed once. After training, make a new one.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, folder: Path | None = None
    ):
        self.model = attention.prepare(model)
        self.tokenizer: Any = tokenizer
        self.name = name
        self.proof = proof.prove(self.model)
        self.embedder = ModelEmbedder.beside(self, folder) if folder else None
        self.settings = _settings(folder) if folder else {}
        self.latent: dict[str, Tensor] | None = None
        self.folder = folder
        self.reads_as: str | None = None
        self.writes_as: str | None = None
        self._constants: dict[tuple[int, ...], tuple[int, dict[int, KV]]] = {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @cached_property
    def dims(self) -> Dims:
        config = proof.text_config(self.model)
        heads = config.num_attention_heads
        return Dims(
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            num_heads=heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocab_size=config.vocab_size,
            max_positions=min(config.max_position_embeddings, rope_limit.rope_limit(self.model) or sys.maxsize),
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over weights, config, tokenizer and dtype: what a stored memory is only valid for."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(flat.view(torch.uint8).numpy().data)
        config = {k: v for k, v in self.model.config.to_diff_dict().items() if k not in _IRRELEVANT}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        digest.update(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        digest.update(backend.to_str().encode() if backend is not None else b"")
        return digest.hexdigest()

    @cached_property
    def bos(self) -> list[int]:
        """The token that begins a text, as a list; empty for models that have none."""
        return [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]

    @cached_property
    def eos(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = [ids] if isinstance(ids, int) else list(ids or [])
        return frozenset([*ids, *([self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else [])])

    @cached_property
    def stop(self) -> tuple[str, ...]:
        """Strings that end an answer, as the model's generation config says."""
        stop = getattr(self.model.generation_config, "stop_strings", None) or ()
        return (stop,) if isinstance(stop, str) else tuple(stop)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text` without special tokens (none is added, none is read out of the text)."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def count_tokens(self, text: str) -> int:
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of a conversation up to where the assistant speaks next, beginning with BOS exactly once.

        A model without a chat template is given the contents, one a line.
        """
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = self.tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self.encode("\n".join(message["content"] for message in messages))
        while self.bos and ids[:1] == self.bos:
            ids = ids[1:]
        return [*self.bos, *ids]

    def constant(self, ids: Sequence[int]) -> dict[int, KV]:
        """Keys and values, by layer, of a text that stands in front of every prompt at positions 0, 1, 2 ...

        Where no gradient is asked for they are computed once for as long as the weights stay as they are.
        """
        if torch.is_grad_enabled():
            return self._keys_and_values(ids)
        version = sum(0 if p.is_inference() else p._version for p in self.model.parameters())
        kept, keys_and_values = self._constants.get(tuple(ids), (None, {}))
        if kept != version:
            keys_and_values = self._keys_and_values(ids)
            self._constants[tuple(ids)] = (version, keys_and_values)
        return keys_and_values

    def drop_constants(self) -> None:
        """For weights that change without torch counting it, as fused optimizers and FSDP change them."""
        self._constants.clear()

    def _keys_and_values(self, ids: Sequence[int]) -> dict[int, KV]:
        ids_BT = torch.tensor([ids], device=self.device)
        layers = frozenset(range(self.dims.num_layers))
        seen = proof.capture(self.model, ids_BT, layers, role=self.reads_as)
        return {layer: KV(shown.key_BGSD, shown.value_BGSD) for layer, shown in seen.items()}

    def check_length(self, num_positions: int) -> None:
        """Raises ContextTooLong for more positions than `dims.max_positions`."""
        if num_positions > self.dims.max_positions:
            reason = rope_limit.reason_of(self.model)
            raise ContextTooLong(
                f"{num_positions} tokens (memory's positions included) do not fit {self.name}, "
                f"which has {self.dims.max_positions} positions" + (f": {reason}" if reason else ""),
                "shorten the prompt or max_tokens, or write the text into the bank and ask a short question",
            )

    def forward(
        self,
        ids_BT: Tensor,
        memory: Prefix | None = None,
        positions_BT: Tensor | None = None,
        mask_BS: Tensor | None = None,
        cache: Any = None,
        last_only: bool = False,
        role: str | None = None,
    ) -> Tensor:
        """Logits (B, T, V), or (B, 1, V) with `last_only`.

        `positions_BT` None: `memory.offset_tokens` (or 0) + 0, 1, 2 ... after what the cache holds.
        `mask_BS` (1 = text, 0 = padding) covers the cached and the new tokens; memory is always seen.
        `role`: the adapter that runs, for models that have roles (`lm/lora.py`); None: `reads_as`.
        """
        if positions_BT is None:
            start = (0 if memory is None else memory.offset_tokens) + (0 if cache is None else cache.get_seq_length())
            positions_BT = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)[None]
        extra: dict[str, Any] = {} if memory is None else {"memory": memory}
        role = role or self.reads_as
        extra |= {} if role is None else {"role": role}
        extra |= {} if cache is None else {cache_keyword(self.model): cache}
        return self.model(
            ids_BT,
            attention_mask=mask_BS,
            position_ids=positions_BT,
            use_cache=cache is not None,
            logits_to_keep=1 if last_only else 0,
            **extra,
        ).logits


def _settings(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error}", "get the model again, or remove the file") from error
    if not isinstance(settings, dict) or not all(isinstance(value, dict) for value in settings.values()):
        raise InputError(f"{str(file)!r} is not an object of objects", 'write {"memory3": {"kept_tokens": 8}}, say')
    return settings


_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "transformers_version",
    "use_cache",
    "torch_dtype",
    "dtype",
    "_attn_implementation",
}


def from_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> LM:
    """Gives `model` memory. Raises UnsupportedModel, with the measured error, where it cannot be exact."""
    return LM(model.eval(), tokenizer, name or model.config._name_or_path or model.config.model_type)


def load(name: str | Path, *, device: str | None = None, dtype: torch.dtype | str | None = None) -> LM:
    """A bundled model ("nano", "nano-chat", "nano-mplus"), a random one for tests ("tiny"), a folder, or a Hub id.

    `dtype` None: float32 on the CPU, the checkpoint's own elsewhere. Raises InputError for an unknown name
    and UnsupportedModel for a model that cannot read memory exactly.
    """
    name, device, dtype = _checked(name, device, dtype)
    if str(name) == "tiny":
        return LM(_on(tiny.tiny_model(), device), tiny.byte_tokenizer(), "tiny")
    folder = BUNDLED.get(str(name), Path(name))
    beside = _beside(str(name))
    if beside and "adapter" in _settings(beside):
        return _adapted(load(_base_of(beside), device=device, dtype=dtype), beside, str(name))
    if (folder / "config.json").is_file() and published.is_published(_config(folder)):
        return _published(folder, str(name), device, dtype)
    is_folder = (folder / "config.json").is_file()
    where, local = (str(folder), True) if is_folder else (str(name), "/" not in str(name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local, trust_remote_code=False)
        dtype = dtype or (torch.float32 if device == "cpu" else "auto")
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, local_files_only=local, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        known = str(error) and (is_folder or not local)
        reason = str(error).splitlines()[0] if known else "there is no such folder or cached model"
        raise InputError(
            f"model {str(name)!r} cannot be loaded: {reason}",
            "use 'nano', a folder with config.json and safetensors, or a Hub id of the form owner/name",
        ) from error
    return LM(_on(model, device), tokenizer, str(name), beside)


def _checked(name: Any, device: Any, dtype: Any) -> tuple[str, str, torch.dtype | str | None]:
    """The arguments of `load` as name or path, device and dtype. InputError for what none of them can be."""
    name = arguments.name_or_path("model", name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    try:
        device = str(torch.device(device))
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"device is {arguments.shown(device)}", 'use "cpu", "cuda" or "cuda:1", say') from error
    if dtype is None or dtype == "auto":
        return name, device, dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype is {arguments.shown(dtype)}", 'use "float32", "bfloat16", "float16" or "auto"')
    return name, device, found


def _beside(name: str) -> Path | None:
    """The folder where a model's settings lie: its own, or the Hub's cache."""
    folder = BUNDLED.get(name, Path(name))
    return folder if folder.is_dir() else hub.beside(name)


def _base_of(folder: Path) -> str:
    """The model that an adapter folder is of. InputError for one that names none, or an adapter (itself, say)."""
    adapter, file = _settings(folder)["adapter"], str(folder / SETTINGS)
    base, roles = adapter.get("base"), adapter.get("roles", [])
    if not (isinstance(base, str) and base):
        raise InputError(f"{file!r} names no base of its adapter", 'write {"adapter": {"base": "nano"}}, say')
    if not (isinstance(roles, list) and all(isinstance(role, str) for role in roles)):
        raise InputError(f"{file!r} has roles that are no list of names", f"known are {', '.join(lora.ROLES)}")
    beside = _beside(base)
    if beside and "adapter" in _settings(beside):
        raise InputError(f"{file!r} names {base!r} as its base, which is an adapter itself", "name a whole model")
    return base


def _adapted(lm: LM, folder: Path, name: str) -> LM:
    """`lm` with the adapters of `folder`: the two of M+ and its latent memory, or those that text is read with.

    Without a role it is the base, bit for bit.
    """
    given = _settings(folder)["adapter"].get("roles")
    roles = tuple(given) if given else lora.ROLES
    if odd := [role for role in roles if role not in lora.ROLES]:
        raise InputError(f"{str(folder / SETTINGS)!r} names a role {odd[0]!r}", f"known are {', '.join(lora.ROLES)}")
    if "write" in roles:
        lm.__dict__.pop("fingerprint", None)  # the base's, where it was asked for already
    else:
        _ = lm.fingerprint  # now, while the model is the base alone
    lora.add_roles(lm.model, lora.read_config(folder / roles[0]), roles)
    for role in roles:
        lora.load_adapter(lm.model, role, folder / role)
    lm.model.eval()
    lm.name, lm.settings, lm.folder = name, _settings(folder), folder
    if given:
        lm.reads_as, lm.writes_as = ("read" if "read" in roles else None), ("write" if "write" in roles else None)
    else:
        lm.latent = _tensors(folder / LATENT)
    return lm


def _published(folder: Path, name: str, device: str, dtype: torch.dtype | str | None) -> LM:
    """A checkpoint of MemoryLLM or M+ as its authors published it; bfloat16 frequencies, which it was trained with."""
    state = {key: t for file in sorted(folder.glob("*.safetensors")) for key, t in _tensors(file).items()}
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else "auto"
    if isinstance(dtype, str):
        dtype = state["memory"].dtype if dtype == "auto" else getattr(torch, dtype)
    made = published.convert(_config(folder), state, inv_freq_dtype=torch.bfloat16, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    lm = LM(_on(made.model, device), tokenizer, name)
    lm.latent, lm.settings = made.latent, {"mplus": made.settings}
    return lm


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(folder / 'config.json')!r} cannot be read: {error}", "get the model again") from error


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{str(file)!r} cannot be read: {reason}", "get the model again") from error


def _on(model: Any, device: str) -> PreTrainedModel:
    return model.eval().to(device)
