"""What every adapter shares: the rules between a trainer's names and Rollcast's.

Nothing is dropped in silence. A sampling parameter that Rollcast does not have is refused unless
its value does nothing; a response that was cancelled, or made by other weights than those asked
for, raises. Log-probabilities stay the float32 bits of the engine, in Python's wider floats.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from operator import index
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from .._client import Client
from .._types import Prompt, Response, RollcastError, Sampling

Endpoint = Union[str, Client]

ENDPOINT_VARIABLE = "ROLLCAST_ENDPOINT"

# Trainers' names for the fields of Sampling.
_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "max_tokens": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "max_completion_length": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "min_new_tokens": "min_new_tokens",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
}
_SEEDS = ("seed", "sampling_seed")

# What Rollcast does not have, with the values at which it changes no token.
_HARMLESS: Dict[str, Tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "stop": ([], (), ""),
    "logprobs": (0, 1),  # that of the sampled token always comes
    "include_stop_str_in_output": (True,),
    "no_stop_trim": (True,),
    "detokenize": (True, False),  # text is the adapter's
    "skip_special_tokens": (True, False),
    "spaces_between_special_tokens": (True, False),
}


def connect(endpoint: Endpoint) -> Client:
    """A client given stays as it is; an address is connected to."""
    return Client(endpoint) if isinstance(endpoint, str) else endpoint


def endpoint_of(given: Optional[str], where: str) -> str:
    """The address in a trainer's configuration, or else in the environment."""
    endpoint = given or os.environ.get(ENDPOINT_VARIABLE, "")
    if not endpoint:
        raise RollcastError(
            "bad_config", f"no scheduler: give {where} or set {ENDPOINT_VARIABLE}=tcp://host:port"
        )
    return endpoint


def sampling_of(given: Mapping[str, Any], where: str) -> Tuple[Sampling, Optional[int]]:
    """A trainer's sampling parameters, and the seed among them. None is the default; a `top_k`
    below 0 is off. `given` is not changed. Raises `bad_sampling` for what cannot be kept."""
    fields: Dict[str, Any] = {}
    seed: Optional[int] = None
    for name, value in given.items():
        if value is None:
            continue
        try:
            if name in _SEEDS:
                seed = index(value)
            elif name in _FIELDS:
                _set(fields, _FIELDS[name], value)
            elif name not in _HARMLESS or value not in _HARMLESS[name]:
                raise ValueError("Rollcast does not have it, leave it out")
        except (TypeError, ValueError) as error:
            raise RollcastError("bad_sampling", f"{where}: {name} = {value!r}: {error}") from None
    if fields.get("max_new_tokens") is None:
        raise RollcastError("bad_sampling", f"{where}: no limit of tokens, give max_new_tokens")
    return Sampling(**fields), seed


def _set(fields: Dict[str, Any], field: str, value: Any) -> None:
    if field == "stop_token_ids":
        value = tuple(index(t) for t in value)
    elif field == "ignore_eos":
        value = bool(value)
    elif field in ("temperature", "top_p", "min_p"):
        value = float(value)
    else:
        value = index(value)
        if field == "top_k":
            value = max(0, value)  # -1 is off in slime and verl
    if fields.setdefault(field, value) != value:
        raise ValueError(f"{field} is already {fields[field]}")


def seed_of(*parts: Union[int, str, Sequence[int]]) -> int:
    """A batch seed that differs whenever a part does, the same on every machine."""
    text = json.dumps(parts, separators=(",", ":"))  # different parts, different text
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def encode(tokenizer: Any, prompt: Any, special: bool = True, **template: Any) -> List[int]:
    """Token ids of a prompt: text (`special`: with the tokenizer's own special tokens), a list of
    messages (the chat template is applied), or ids."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt, add_special_tokens=special)["input_ids"])
    if prompt and isinstance(prompt[0], Mapping):
        ids = tokenizer.apply_chat_template(
            [prompt], add_generation_prompt=True, tokenize=True, return_dict=True, **template
        )
        return list(ids["input_ids"][0])
    return [index(t) for t in prompt]


@dataclass(frozen=True)
class Group:
    """One prompt and how many responses to it."""

    token_ids: Sequence[int]
    size: int
    sampling: Optional[Sampling] = None  # in place of the batch's


def groups_of(prompts: Iterable[Sequence[int]]) -> List[Group]:
    """Equal prompts in a row are one group, so that they are scheduled and drafted together."""
    groups: List[Group] = []
    for prompt in prompts:
        if groups and list(groups[-1].token_ids) == list(prompt):
            groups[-1] = Group(prompt, groups[-1].size + 1)
        else:
            groups.append(Group(prompt, 1))
    return groups


def rollout(
    client: Client,
    groups: Sequence[Group],
    sampling: Sampling,
    seed: int,
    version: Optional[int],
    cancelled: bool = False,
) -> List[List[Response]]:
    """The responses of each group in order. Raises `stale_epoch` unless `version` made every token,
    and `cancelled` for a cancelled response unless those are wanted. A batch that fails is
    cancelled, so that the cluster does not go on with it."""
    prompts = [Prompt(g.token_ids, group_size=g.size, sampling=g.sampling) for g in groups]
    batch = client.submit(
        prompts, sampling=sampling, seed=seed, required_weight_version=version
    )
    found: Dict[Tuple[int, int], Response] = {}
    try:
        for response in batch:
            check(response, version, cancelled)
            found[response.group, response.index] = response
    except BaseException:
        try:
            batch.cancel()
        except RollcastError:
            pass  # the first failure is the one to tell
        raise
    try:
        return [[found[n, i] for i in range(g.size)] for n, g in enumerate(groups)]
    except KeyError as missing:
        raise RollcastError(
            "frame_malformed", f"batch {batch.key} ended without response {missing}"
        ) from None


def check(response: Response, version: Optional[int], cancelled: bool = False) -> None:
    """The guard of every adapter. See `rollout`."""
    where = f"response {response.index} of group {response.group}"
    made = versions_of(response)
    wrong = [v for v in made if version is not None and v != version]
    if wrong:
        raise RollcastError(
            "stale_epoch",
            f"{where}: weight version {wrong[0]} made {len(wrong)} of its {len(made)} tokens, "
            f"{version} was asked for; discard the batch and roll it out again",
        )
    if response.finish_reason == "cancelled" and not cancelled:
        raise RollcastError("cancelled", f"{where} was cancelled after {len(made)} tokens")
    if response.finish_reason not in ("stop", "length", "cancelled"):
        raise RollcastError("frame_malformed", f"{where}: unknown reason to finish")


def versions_of(response: Response) -> List[int]:
    """The weight version that made each token. Raises `frame_malformed` if the spans have holes."""
    versions: List[int] = []
    for span in response.weight_versions:
        if span.start != len(versions):
            break
        versions += [span.version] * (span.end - span.start)
    if len(versions) != len(response.token_ids):
        raise RollcastError(
            "frame_malformed",
            f"response {response.index} of group {response.group}: weight versions of "
            f"{len(versions)} of its {len(response.token_ids)} tokens",
        )
    return versions


_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")


def plain_tensors(named: Iterable[Tuple[str, Any]]) -> Iterator[Tuple[str, Any]]:
    """Checkpoint names and whole CPU tensors, one at a time. A sharded tensor is gathered, so every
    rank must iterate. Adapters that are not merged are refused: their base weights do not move."""
    for name, tensor in named:
        name = name[len("module.") :] if name.startswith("module.") else name
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        if "lora_" in name or ".base_layer." in name or hasattr(tensor, "ds_id"):
            raise RollcastError(
                "bad_config", f"weights: {name} is an adapter or ZeRO-3 shard, merge or gather it"
            )
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        yield name, whole.detach().cpu().contiguous()


def publish(client: Client, tensors: Iterable[Tuple[str, Any]]) -> int:
    """Makes the fleet serve these weights; returns their version. It flips between batches, so that
    one version makes all of a response."""
    return client.update_weights(plain_tensors(tensors)).epoch
