"""The two published kinds of draft in plain float32 PyTorch, in their checkpoints' layouts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .._checkpoint import read_tensors
from ._layer import Attention, DraftError, Mlp, Past, RmsNorm, Shape

EAGLE3, MTP = "LlamaForCausalLMEagle3", "MiMoForCausalLM"
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MTP_PREFIX = "model.mtp_layers.0."
_SHAPE_KEYS = (
    "hidden_size intermediate_size num_attention_heads num_key_value_heads head_dim hidden_act "
    "rms_norm_eps vocab_size max_position_embeddings"
).split()


class Ends(NamedTuple):
    """What a draft shares with its target and never trains; may be the target's live weights."""

    embedding: Tensor  # [vocabulary, hidden]
    head: Tensor  # [vocabulary, hidden]


class Draft(nn.Module):
    """A draft model of one layer.

    Row i of a draft sees the embedding of token i + 1 beside what the target computed for token i,
    at position i, and proposes token i + 2. The next proposal comes from the same layer applied to
    its own output, a row and a position further on."""

    kind: str
    state_width: int
    """Columns of the target's states that `unroll` takes."""
    aux_layers: tuple[int, ...]
    """Layers of the target whose outputs are the states, side by side; none: the state after the
    target's final norm."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        super().__init__()
        self.config = dict(config)
        self.where = where
        self.shape = Shape.of(config, where)

    @property
    def target_ids(self) -> Tensor:
        """[draft vocabulary], int64: the target's token of each of the draft's."""
        raise NotImplementedError

    def enter(self, hidden: Tensor) -> Tensor:
        """The target's states [..., state_width] as the first step takes them."""
        return hidden

    def step(
        self, embedded: Tensor, state: Tensor, positions: Tensor, past: Past
    ) -> tuple[Tensor, Tensor]:
        """One application, [batch, rows, hidden] each: what the head reads, and the next state."""
        raise NotImplementedError

    def logits(self, x: Tensor, ends: Ends) -> Tensor:
        """[..., hidden] of `step` to [..., draft vocabulary]."""
        raise NotImplementedError

    def unroll(self, tokens: Tensor, hidden: Tensor, ends: Ends, steps: int) -> list[Tensor]:
        """Proposals of chains that start at every row at once.

        `tokens` [batch, n] and `hidden` [batch, n - 1, state_width] (of all tokens but the last),
        ragged batches padded at the end with anything. Returns for each step k the logits
        [batch, n - 1, draft vocabulary]; those of row i are of token i + k + 2, given that tokens
        up to i + k + 1 are as they are. Rows from n - 1 - k on were fed padding."""
        rows, past = hidden.shape[1], Past()
        if tokens.shape[1] != rows + 1 or hidden.shape[2] != self.state_width:
            raise DraftError(
                f"{self.where}: {list(tokens.shape)} tokens and states {list(hidden.shape)}: "
                f"states must be [batch, tokens - 1, {self.state_width}]"
            )
        if rows + steps > self.shape.positions:
            raise DraftError(
                f"{self.where}: {rows} rows and {steps} steps pass max_position_embeddings "
                f"{self.shape.positions}"
            )
        following = F.pad(tokens, (0, steps))
        state, out = self.enter(hidden), []
        for k in range(steps):
            embedded = F.embedding(following[:, k + 1 : k + 1 + rows], ends.embedding)
            positions = torch.arange(k, k + rows, device=hidden.device)
            x, state = self.step(embedded, state, positions, past)
            out.append(self.logits(x, ends))
        return out

    def _named(self) -> dict[str, Tensor]:
        """The tensors by the names of the checkpoint."""
        return dict(self.state_dict())

    def tensors(self, stored: str = "float32") -> dict[str, Tensor]:
        """The checkpoint's tensors by name, floating ones as `stored`: what `save` writes."""
        return {
            name: (w.to(STORED[stored]) if w.is_floating_point() else w).detach().contiguous()
            for name, w in self._named().items()
        }

    def save(self, directory: str | os.PathLike[str], stored: str = "bfloat16") -> None:
        """Writes config.json and model.safetensors, each of them whole or not at all."""
        if stored not in STORED:
            raise DraftError(f"stored is {stored}: one of {', '.join(STORED)} is needed")
        out = Path(directory)
        out.mkdir(parents=True, exist_ok=True)
        config = {k: v for k, v in self.config.items() if k not in ("dtype", "torch_dtype")}
        text = json.dumps({**config, "torch_dtype": stored}, indent=2) + "\n"
        fresh = out / "model.safetensors.new"
        save_file(self.tensors(stored), fresh, metadata={"format": "pt"})
        os.replace(fresh, out / "model.safetensors")
        fresh = out / "config.json.new"
        fresh.write_text(text)
        os.replace(fresh, out / "config.json")

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            self.load_state_dict(
                {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
            )
        except RuntimeError as failure:
            raise DraftError(f"{self.where}: {' '.join(str(failure).split())}") from None


class _MidLayer(nn.Module):
    """EAGLE-3's decoder layer, whose attention reads embedding and state side by side."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.hidden_norm = RmsNorm(shape.hidden, shape.eps)
        self.input_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape, 2 * shape.hidden, bias=False)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.mlp = Mlp(shape)

    def forward(self, embedded: Tensor, state: Tensor, positions: Tensor, past: Past) -> Tensor:
        x = torch.cat([self.input_layernorm(embedded), self.hidden_norm(state)], dim=-1)
        state = state + self.self_attn(x, positions, past)
        out: Tensor = state + self.mlp(self.post_attention_layernorm(state))
        return out


class Eagle3Draft(Draft):
    """EAGLE-3 (Li et al., 2025) in the Llama layout of SpecForge and of SGLang.

    Three of the target's layers feed it; its head has a vocabulary of its own, `d2t` holding the
    differences of the target's ids to the draft's. The next state is that before its norm."""

    kind = "eagle3"
    d2t: Tensor
    t2d: Tensor

    def __init__(self, config: Mapping[str, Any], where: str = "eagle3") -> None:
        super().__init__(config, where)
        own, vocabulary = int(config["draft_vocab_size"]), int(config["vocab_size"])
        ids = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
        if not ids or len(ids) != 3 or own > vocabulary:
            raise DraftError(
                f"{where}: eagle_aux_hidden_state_layer_ids is {ids} and draft_vocab_size {own}: "
                f"three layers and at most {vocabulary} tokens are needed"
            )
        self.aux_layers = tuple(int(layer) for layer in ids)
        self.state_width = 3 * self.shape.hidden
        self.fc = nn.Linear(3 * self.shape.hidden, self.shape.hidden, bias=False)
        self.midlayer = _MidLayer(self.shape)
        self.norm = RmsNorm(self.shape.hidden, self.shape.eps)
        self.lm_head = nn.Linear(self.shape.hidden, own, bias=False)
        self.register_buffer("d2t", torch.zeros(own, dtype=torch.int64))
        self.register_buffer("t2d", torch.arange(vocabulary) < own)

    @property
    def target_ids(self) -> Tensor:
        return torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    @staticmethod
    def create(
        target: Mapping[str, Any],
        vocabulary: Sequence[int],
        aux_layers: Sequence[int] | None = None,
        seed: int = 0,
        **other: Any,
    ) -> "Eagle3Draft":
        """A new draft for a target's config.json that proposes the tokens of `vocabulary`.

        `aux_layers` are layers by number, whose outputs it reads; by default the published choice,
        and the first, middle and last of a target with fewer than eight. `other` replaces keys of
        config.json."""
        n = int(target["num_hidden_layers"])
        usual = [1, n // 2 - 1, n - 4] if n >= 8 else [0, n // 2, n - 1]
        ids = sorted(set(vocabulary))
        config = {
            "architectures": [EAGLE3],
            "model_type": "llama",
            **_of_target(target),
            "num_hidden_layers": 1,
            "draft_vocab_size": len(ids),
            "tie_word_embeddings": False,
            "attention_bias": False,
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": list(aux_layers or usual)},
            **other,
        }
        draft = Eagle3Draft(config)
        draft.d2t.copy_(torch.tensor(ids) - torch.arange(len(ids)))
        draft.t2d.zero_()[ids] = True
        _randomise(draft, seed)
        return draft

    def enter(self, hidden: Tensor) -> Tensor:
        fused: Tensor = self.fc(hidden)
        return fused

    def step(
        self, embedded: Tensor, state: Tensor, positions: Tensor, past: Past
    ) -> tuple[Tensor, Tensor]:
        state = self.midlayer(embedded, state, positions, past)
        return self.norm(state), state

    def logits(self, x: Tensor, ends: Ends) -> Tensor:
        out: Tensor = self.lm_head(x)
        return out

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the spellings in circulation: `model.` before names, `layers.0` for `midlayer`."""
        plain = {}
        for name, tensor in tensors.items():
            name = name.removeprefix("model.").replace("layers.0.", "midlayer.")
            if name != "embed_tokens.weight":  # the target's, which `Ends` holds
                plain[name] = tensor
        super()._fill(plain)
        ids = self.target_ids
        listed = torch.zeros_like(self.t2d)
        if ids.min() < 0 or ids.max() >= len(self.t2d):
            raise DraftError(
                f"{self.where}: d2t names tokens {ids.min()} to {ids.max()} of {len(self.t2d)}: it "
                "must hold differences, target id minus draft id"
            )
        listed[ids] = True
        if not torch.equal(listed, self.t2d):
            raise DraftError(f"{self.where}: d2t and t2d name different tokens")


class _MtpLayer(nn.Module):
    def __init__(self, shape: Shape, bias: bool) -> None:
        super().__init__()
        self.token_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.hidden_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.input_proj = nn.Linear(2 * shape.hidden, shape.hidden, bias=False)
        self.input_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape, shape.hidden, bias)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.eps)
        self.mlp = Mlp(shape)
        self.final_layernorm = RmsNorm(shape.hidden, shape.eps)

    def forward(self, embedded: Tensor, state: Tensor, positions: Tensor, past: Past) -> Tensor:
        # The first token has no embedding here, in training and in every engine.
        embedded = embedded * (positions > 0)[:, None]
        both = torch.cat([self.hidden_layernorm(state), self.token_layernorm(embedded)], dim=-1)
        x = self.input_proj(both)
        x = x + self.self_attn(self.input_layernorm(x), positions, past)
        x = x + self.mlp(self.post_attention_layernorm(x))
        out: Tensor = self.final_layernorm(x)
        return out


class MtpDraft(Draft):
    """A multi-token-prediction layer in the layout of MiMo-7B.

    It reads what the target's head reads and has the target's embedding and head. The next state is
    that after its final norm."""

    kind = "mtp"
    aux_layers = ()

    def __init__(self, config: Mapping[str, Any], where: str = "mtp", bias: bool = False) -> None:
        super().__init__(config, where)
        self.layer = _MtpLayer(self.shape, bias)
        self.state_width = self.shape.hidden
        self._vocabulary = int(config["vocab_size"])

    @property
    def target_ids(self) -> Tensor:
        device = self.layer.input_proj.weight.device
        return torch.arange(self._vocabulary, device=device)

    @staticmethod
    def create(target: Mapping[str, Any], seed: int = 0, **other: Any) -> "MtpDraft":
        """A new draft for a target's config.json; `other` replaces keys of it."""
        config = {
            "architectures": [MTP],
            "model_type": "mimo",
            **_of_target(target),
            "num_hidden_layers": int(target["num_hidden_layers"]),
            "num_nextn_predict_layers": 1,
            "tie_word_embeddings": bool(target.get("tie_word_embeddings", False)),
            "attention_bias": False,
            **other,
        }
        draft = MtpDraft(config, bias=bool(config["attention_bias"]))
        _randomise(draft, seed)
        return draft

    def step(
        self, embedded: Tensor, state: Tensor, positions: Tensor, past: Past
    ) -> tuple[Tensor, Tensor]:
        out = self.layer(embedded, state, positions, past)
        return out, out

    def logits(self, x: Tensor, ends: Ends) -> Tensor:
        return F.linear(x, ends.head)

    def _named(self) -> dict[str, Tensor]:
        return {_MTP_PREFIX + n.removeprefix("layer."): w for n, w in self.state_dict().items()}

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        super()._fill({"layer." + n.removeprefix(_MTP_PREFIX): w for n, w in tensors.items()})


def _of_target(target: Mapping[str, Any]) -> dict[str, Any]:
    """What a new draft's config.json has of its target's: widths, and rotation without scaling."""
    theta = (target.get("rope_parameters") or target).get("rope_theta", 10000.0)
    shape = {key: target[key] for key in _SHAPE_KEYS if key in target}
    return {**shape, "rope_theta": theta, "rope_scaling": None}


def _randomise(draft: Draft, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in draft.parameters():
            if weight.dim() == 2:
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(noise * weight.shape[1] ** -0.5)


def load_draft(directory: str | os.PathLike[str]) -> Draft:
    """An EAGLE-3 head or the MTP layer of a directory, widened to float32.

    A directory with a whole MiMo gives its MTP layer. Raises DraftError for another architecture
    and for tensors that are missing, unknown or of another shape."""
    where = Path(directory)
    try:
        config = json.loads((where / "config.json").read_text())
        tensors = read_tensors(where)
    except (OSError, ValueError) as failure:
        raise DraftError(f"{where}: cannot be read: {failure}") from None
    architectures = config.get("architectures")
    if architectures == [EAGLE3]:
        draft: Draft = Eagle3Draft(config, str(where))
    elif architectures == [MTP]:
        tensors = {n: t for n, t in tensors.items() if n.startswith(_MTP_PREFIX)}
        if not tensors:
            raise DraftError(f"{where}: has no tensor {_MTP_PREFIX}*, so no MTP layer")
        draft = MtpDraft(config, str(where), _MTP_PREFIX + "self_attn.q_proj.bias" in tensors)
    else:
        raise DraftError(f"{where}: architectures is {architectures}: {EAGLE3} or {MTP} is needed")
    draft._fill(tensors)
    return draft
