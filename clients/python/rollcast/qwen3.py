"""Qwen3 for training on rollouts: log-probabilities with the bits that the rollout reported."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Mapping, Sequence, overload

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import _kernels, torch_ops
from ._checkpoint import read_tensors
from ._kernels import KernelError
from .torch_ops import AttentionShape, PackedMatrix, Sequences

_CLASS = "Qwen3ForCausalLM"
_STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SCALINGS = {"default": 0, "linear": 1, "llama3": 2}


def _rope_of(config: Mapping[str, Any], head_dim: int) -> _kernels.Rope:
    """The rotation of config.json, in the spellings of transformers 4 and 5."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = scaling.get("rope_theta", config.get("rope_theta"))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if theta is None or kind not in _SCALINGS:
        raise KernelError(
            f"rope type {kind}, theta {theta}: a theta is needed, and one of {', '.join(_SCALINGS)}"
        )
    original = scaling.get(
        "original_max_position_embeddings", config.get("original_max_position_embeddings", 8192)
    )
    return _kernels.Rope(
        head_dim,
        float(theta),
        _SCALINGS[kind],
        float(scaling.get("factor", 1.0)),
        float(scaling.get("low_freq_factor", 1.0)),
        float(scaling.get("high_freq_factor", 4.0)),
        float(original),
    )


class _Weight(nn.Module):
    """A module that only holds its weight, under the name that Hugging Face gives it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class _SelfAttention(nn.Module):
    def __init__(
        self, config: Mapping[str, Any], how: AttentionShape, stored: torch.dtype | None
    ) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        q, kv = how.heads * how.head_dim, how.kv_heads * how.head_dim
        self.q_proj, self.k_proj, self.v_proj = (
            _Weight(q, hidden),
            _Weight(kv, hidden),
            _Weight(kv, hidden),
        )
        self.o_proj = _Weight(hidden, q)
        self.q_norm, self.k_norm = _Weight(how.head_dim), _Weight(how.head_dim)
        self._qkv, self._o, self._how, self._stored = (
            PackedMatrix(stored),
            PackedMatrix(stored),
            how,
            stored,
        )

    def forward(self, x: Tensor, residual: Tensor, sequences: Sequences) -> Tensor:
        """residual + attention of the normed x."""
        projections = [self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]
        qkv = torch_ops.linear(x, projections, self._qkv)
        attended = torch_ops.attend(
            qkv, self.q_norm.weight, self.k_norm.weight, self._how, sequences, self._stored
        )
        return torch_ops.linear(attended, [self.o_proj.weight], self._o, residual=residual)


class _Mlp(nn.Module):
    def __init__(self, config: Mapping[str, Any], stored: torch.dtype | None) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = (
            _Weight(inner, hidden),
            _Weight(inner, hidden),
            _Weight(hidden, inner),
        )
        self._gate_up, self._down = PackedMatrix(stored), PackedMatrix(stored)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + the gated MLP of the normed x."""
        gated = torch_ops.silu_mul(
            torch_ops.linear(x, [self.gate_proj.weight, self.up_proj.weight], self._gate_up)
        )
        return torch_ops.linear(gated, [self.down_proj.weight], self._down, residual=residual)


class _Layer(nn.Module):
    def __init__(
        self, config: Mapping[str, Any], how: AttentionShape, stored: torch.dtype | None
    ) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.input_layernorm, self.post_attention_layernorm = _Weight(hidden), _Weight(hidden)
        self.self_attn, self.mlp = _SelfAttention(config, how, stored), _Mlp(config, stored)
        self._eps, self._stored = how.eps, stored

    def forward(self, x: Tensor, sequences: Sequences) -> Tensor:
        normed = torch_ops.rms_norm(x, self.input_layernorm.weight, self._eps, self._stored)
        x = self.self_attn(normed, x, sequences)
        normed = torch_ops.rms_norm(
            x, self.post_attention_layernorm.weight, self._eps, self._stored
        )
        return self.mlp(normed, x)  # type: ignore[no-any-return]


class _Model(nn.Module):
    def __init__(
        self, config: Mapping[str, Any], how: AttentionShape, stored: torch.dtype | None
    ) -> None:
        super().__init__()
        self.embed_tokens = _Weight(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(
            _Layer(config, how, stored) for _ in range(config["num_hidden_layers"])
        )
        self.norm = _Weight(config["hidden_size"])


class Qwen3ForRollout(nn.Module):
    """A Qwen3 checkpoint with float32 parameters under their Hugging Face names.

    `stored` is the type in which weights reach the rollouts: "float32", or "bfloat16" if
    checkpoints are published so. With "bfloat16" the parameters stay float32 for the optimiser, the
    forward pass rounds them as the engine would read them, and gradients go straight through the
    rounding.
    """

    def __init__(self, path: str | os.PathLike[str], stored: str = "float32") -> None:
        super().__init__()
        self.directory = Path(path)
        self.config: dict[str, Any] = json.loads((self.directory / "config.json").read_text())
        self._refuse_others()
        if stored not in _STORED:
            raise KernelError(f"stored is {stored}: {' and '.join(_STORED)} exist")
        self.stored = stored
        config = self.config
        dtype = None if stored == "float32" else _STORED[stored]
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        how = AttentionShape(
            config["num_attention_heads"],
            config["num_key_value_heads"],
            head_dim,
            float(config["rms_norm_eps"]),
            torch_ops.rope_table(_rope_of(config, head_dim), config["max_position_embeddings"]),
        )
        self._how, self._dtype = how, dtype
        self.model = _Model(config, how, dtype)
        if not config.get("tie_word_embeddings", False):
            self.lm_head = _Weight(config["vocab_size"], config["hidden_size"])
        self._head = PackedMatrix(dtype)
        self._load(read_tensors(self.directory))

    def _refuse_others(self) -> None:
        config, where = self.config, self.directory / "config.json"
        if config.get("architectures") != [_CLASS]:
            raise KernelError(
                f"{where}: architectures is {config.get('architectures')}, this is a {_CLASS}"
            )
        for key, only in (
            ("attention_bias", False),
            ("use_sliding_window", False),
            ("hidden_act", "silu"),
        ):
            if config.get(key, only) != only:
                raise KernelError(f"{where}: {key} is {config[key]}, only {only} is supported")
        if config.get("quantization_config"):
            raise KernelError(f"{where}: quantised checkpoints are not supported")

    def _load(self, tensors: dict[str, Tensor]) -> None:
        """Widens exactly; refuses tensors that are missing, unknown or of another shape."""
        tied = "lm_head.weight" not in self.state_dict()
        if tied and "lm_head.weight" in tensors:
            if not torch.equal(tensors.pop("lm_head.weight"), tensors["model.embed_tokens.weight"]):
                raise KernelError(
                    f"{self.directory}: lm_head.weight differs from the embedding it is tied to"
                )
        try:
            self.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        except RuntimeError as failure:
            raise KernelError(f"{self.directory}: {' '.join(str(failure).split())}") from None

    @property
    def head_weight(self) -> Tensor:
        """[vocabulary, hidden]: the head's, which may be the embedding."""
        head = self.lm_head if hasattr(self, "lm_head") else self.model.embed_tokens
        return head.weight

    def hidden(self, tokens: Tensor, sequences: Sequences) -> Tensor:
        """The residual stream after the last layer: [rows, hidden]."""
        x = torch_ops.embed(tokens, self.model.embed_tokens.weight, self._dtype)
        for layer in self.model.layers:
            x = layer(x, sequences)
        return x

    @overload
    def logprobs(
        self, token_ids: Sequence[int] | Tensor, prompt_tokens: int, temperature: float = 1.0
    ) -> Tensor: ...

    @overload
    def logprobs(
        self,
        token_ids: Sequence[Sequence[int] | Tensor],
        prompt_tokens: Sequence[int],
        temperature: float | Sequence[float] = 1.0,
    ) -> list[Tensor]: ...

    def logprobs(self, token_ids: Any, prompt_tokens: Any, temperature: Any = 1.0) -> Any:
        """log_softmax(logits / temperature) of every token after the prompt, full vocabulary.

        One sequence (prompt and response together) gives a tensor [tokens - prompt_tokens];
        several, with a prompt length each, give a list of such tensors. The values are those of the
        rollout (`Response.logprobs`, `rollcast score`), bit for bit, whatever else is in the call.
        A temperature of 0 counts as 1. Raises KernelError for lengths and ids out of range."""
        if isinstance(prompt_tokens, int):
            result: Tensor = self.logprobs([token_ids], [prompt_tokens], [temperature])[0]
            return result
        texts = [torch.as_tensor(ids, dtype=torch.int64) for ids in token_ids]
        temperatures = (
            [temperature] * len(texts)
            if isinstance(temperature, (int, float))
            else list(temperature)
        )
        if not len(texts) == len(prompt_tokens) == len(temperatures):
            raise KernelError(
                f"{len(texts)} sequences, {len(prompt_tokens)} prompt lengths, "
                f"{len(temperatures)} temperatures: one each a sequence"
            )
        for i, (text, prompt) in enumerate(zip(texts, prompt_tokens)):
            if text.dim() != 1 or not 1 <= prompt <= len(text) <= len(self._how.cos_sin):
                raise KernelError(
                    f"sequence {i} has {list(text.shape)} tokens, {prompt} of the prompt: "
                    f"1 <= prompt <= tokens <= {len(self._how.cos_sin)} must hold"
                )
        if not texts:
            return []
        # The last token is never an input: nothing follows it.
        inputs = [text[: max(1, len(text) - 1)] for text in texts]
        sequences = Sequences([len(x) for x in inputs])
        wanted = [len(text) - prompt for text, prompt in zip(texts, prompt_tokens)]
        begins = sequences.begins.tolist()
        rows = torch.cat(
            [
                begin + torch.arange(prompt - 1, prompt - 1 + n)
                for begin, prompt, n in zip(begins, prompt_tokens, wanted)
            ]
        )
        x = self.hidden(torch.cat(inputs), sequences)[rows]
        x = torch_ops.rms_norm(x, self.model.norm.weight, self._how.eps, self._dtype)
        tokens = torch.cat([text[prompt:] for text, prompt in zip(texts, prompt_tokens)])
        by_row = torch.tensor(temperatures, dtype=torch.float32).repeat_interleave(
            torch.tensor(wanted)
        )
        values = torch_ops.head_logprobs(x, self.head_weight, tokens, by_row, self._head)
        return list(values.split(wanted))

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes a checkpoint, weights as `stored`, that the engine and this class load.

        Tokenizer and other JSON files come from the directory this model was loaded from."""
        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        for file in self.directory.glob("*.json"):
            if (
                file.name not in ("config.json", "model.safetensors.index.json")
                and out.resolve() != self.directory.resolve()
            ):
                shutil.copy(file, out / file.name)
        config = {k: v for k, v in self.config.items() if k not in ("dtype", "torch_dtype")}
        (out / "config.json").write_text(
            json.dumps({**config, "torch_dtype": self.stored}, indent=2) + "\n"
        )
        tensors = {
            name: w.detach().to(_STORED[self.stored]).contiguous()
            for name, w in self.state_dict().items()
        }
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
