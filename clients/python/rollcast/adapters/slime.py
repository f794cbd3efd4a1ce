"""slime: `--rollout-function-path rollcast.adapters.slime.generate_rollout`.

The scheduler's address is `args.rollcast_endpoint` or ROLLCAST_ENDPOINT. Rollouts are pinned to
`args.rollcast_weight_version` where that is set, else to the version served when they begin, so
that no rollout mixes two. Weights get to the cluster by `update_weights` or `load_weights`, which
return the version.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from .._client import Client
from .._types import Response, RollcastError, Sampling
from ._common import Group, encode, endpoint_of, publish, rollout, sampling_of, seed_of

# What slime may be told to do in a rollout that this function does not do, with its off values.
_REFUSED: Dict[str, Tuple[Any, ...]] = {
    "partial_rollout": (None, False),
    "use_rollout_routing_replay": (None, False),
    "custom_generate_function_path": (None,),
    "dynamic_sampling_filter_path": (None,),
    "rollout_sample_hook_path": (None,),
    "rollout_stop": (None, [], ""),
}


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    """slime's rollout function: `rollout_batch_size` groups with rewards, or the evaluation sets.

    A group is one group of the cluster, so that its members are scheduled and drafted together.
    Tokens, log-probabilities, text, status and weight versions (one entry a span) are set; rewards
    are slime's own reward models. The seed derives from `rollout_seed` and `rollout_id`. A group
    with a cancelled response goes back to the data source, another takes its place.
    """
    from slime.rollout.base_types import RolloutFnEvalOutput, RolloutFnTrainOutput
    from slime.utils.misc import load_function
    from slime.utils.processing_utils import load_tokenizer

    _refuse_what_is_not_done(args, evaluation)
    tokenizer = load_tokenizer(args.hf_checkpoint, trust_remote_code=True)
    with _connect(args) as client:
        version = getattr(args, "rollcast_weight_version", None)
        if version is None:
            version = client.status().weight_version
        if evaluation:
            return RolloutFnEvalOutput(
                data={
                    config.name: _evaluate(args, client, tokenizer, config, rollout_id, version)
                    for config in getattr(args, "eval_datasets", None) or []
                }
            )
        sampling = _training_sampling(args)
        done: List[List[Any]] = []
        attempt = 0
        while len(done) < args.rollout_batch_size:
            groups = data_source.get_samples(args.rollout_batch_size - len(done))
            given = [[copy.copy(sample) for sample in group] for group in groups]
            seed = seed_of("slime", args.rollout_seed, rollout_id, attempt)
            _fill(args, client, tokenizer, groups, sampling, seed, version)
            cut = [any(s.status.value == "aborted" for s in group) for group in groups]
            if all(cut):
                raise RollcastError("cancelled", f"rollout {rollout_id}: every group was cancelled")
            if any(cut):
                data_source.add_samples([group for group, again in zip(given, cut) if again])
            done += [group for group, again in zip(groups, cut) if not again]
            attempt += 1
    _reward(args, done)
    done.sort(key=lambda group: group[0].index)
    if getattr(args, "rollout_sample_filter_path", None) is not None:
        load_function(args.rollout_sample_filter_path)(args, done)
    if getattr(args, "rollout_all_samples_process_path", None) is not None:
        load_function(args.rollout_all_samples_process_path)(args, done, data_source)
    return RolloutFnTrainOutput(samples=done)


def update_weights(args: Any, tensors: Iterable[Tuple[str, Any]]) -> int:
    """Publishes named tensors (Hugging Face names); returns the version that serves them."""
    with _connect(args) as client:
        return publish(client, tensors)


def load_weights(args: Any, directory: str) -> int:
    """Publishes a checkpoint directory that the scheduler can read; returns its version."""
    with _connect(args) as client:
        return client.load_weights(directory).epoch


def _connect(args: Any) -> Client:
    given = getattr(args, "rollcast_endpoint", None)
    return Client(endpoint_of(given, "args.rollcast_endpoint"))


def _refuse_what_is_not_done(args: Any, evaluation: bool) -> None:
    for name, off in _REFUSED.items():
        if getattr(args, name, None) not in off:
            flag = "--" + name.replace("_", "-")
            raise RollcastError("bad_config", f"slime: {flag} is not supported, leave it out")
    over = getattr(args, "over_sampling_batch_size", None)
    if over not in (None, args.rollout_batch_size):
        raise RollcastError(
            "bad_config",
            f"slime: --over-sampling-batch-size {over} is not --rollout-batch-size "
            f"{args.rollout_batch_size}; only whole batches are rolled out",
        )
    if not evaluation and args.rollout_top_p != 1.0:
        raise RollcastError(
            "bad_sampling", "slime: --rollout-top-p must be 1, kept token ids are not reported"
        )


def _training_sampling(args: Any) -> Sampling:
    given = {
        "temperature": args.rollout_temperature,
        "top_p": args.rollout_top_p,
        "top_k": args.rollout_top_k,
        "max_new_tokens": args.rollout_max_response_len,
        "stop_token_ids": args.rollout_stop_token_ids,
    }
    return sampling_of(given, "slime's --rollout-*")[0]


def _fill(
    args: Any,
    client: Client,
    tokenizer: Any,
    groups: Sequence[List[Any]],
    sampling: Sampling,
    seed: int,
    version: int,
) -> None:
    """Rolls out every sample of the groups; member i of a group is its response i."""
    asked = []
    for group in groups:
        first = group[0]
        for sample in group:
            where = f"slime: sample {sample.index}"
            if sample.status.value not in ("pending", "aborted") or sample.response_length:
                raise RollcastError(
                    "bad_prompt", f"{where} is {sample.status.value} already, reset it"
                )
            if any(v is not None for v in (sample.multimodal_inputs or {}).values()):
                raise RollcastError("bad_prompt", f"{where} is multimodal, give text or token ids")
            if (sample.prompt, sample.tokens) != (first.prompt, first.tokens):
                raise RollcastError("bad_prompt", f"{where} has not the prompt of its group")
        ids = list(first.tokens) or encode(tokenizer, first.prompt, special=False)
        asked.append(Group(ids, len(group), _within_context(args, ids, sampling)))
    for group, prompt, responses in zip(
        groups, asked, rollout(client, asked, sampling, seed, version, cancelled=True)
    ):
        for sample, response in zip(group, responses):
            _take(args, tokenizer, sample, list(prompt.token_ids), response)


def _within_context(args: Any, prompt: Sequence[int], sampling: Sampling) -> Optional[Sampling]:
    """A smaller limit of tokens for a prompt that would not fit with a whole response."""
    context = getattr(args, "rollout_max_context_len", None)
    assert sampling.max_new_tokens is not None
    if context is None or len(prompt) + sampling.max_new_tokens <= context:
        return None
    if len(prompt) >= context:
        raise RollcastError(
            "bad_prompt", f"slime: prompt of {len(prompt)} tokens, the context has {context}"
        )
    return Sampling(max_new_tokens=context - len(prompt))


def _take(args: Any, tokenizer: Any, sample: Any, prompt: List[int], response: Response) -> None:
    """Fills a sample. A cancelled response leaves it empty and aborted: partial ones are not
    trained on."""
    status = type(sample).Status
    if response.finish_reason == "cancelled":
        sample.status = status.ABORTED
        return
    sample.tokens = list(prompt)
    skip = getattr(args, "rollout_skip_special_tokens", False)
    sample.append_response_tokens(
        args,
        tokens=list(response.token_ids),
        log_probs=list(response.logprobs),
        text=tokenizer.decode(response.token_ids, skip_special_tokens=skip),
    )
    sample.weight_versions = [str(span.version) for span in response.weight_versions]
    sample.status = status.COMPLETED if response.finish_reason == "stop" else status.TRUNCATED


def _reward(args: Any, groups: Sequence[List[Any]]) -> None:
    """slime's reward models, for a whole group or a sample at a time."""
    from slime.rollout.rm_hub import async_rm, batched_async_rm
    from slime.utils.async_utils import run

    if getattr(args, "group_rm", False):
        for group in groups:
            for sample, reward in zip(group, run(batched_async_rm(args, group))):
                sample.reward = reward
        return
    missing = [s for group in groups for s in group if s.reward is None]

    async def each() -> List[Any]:
        return list(await asyncio.gather(*(async_rm(args, sample) for sample in missing)))

    for sample, reward in zip(missing, run(each())):
        sample.reward = reward


def _evaluate(
    args: Any, client: Client, tokenizer: Any, config: Any, rollout_id: int, version: int
) -> Dict[str, List[Any]]:
    """One evaluation set: `n_samples_per_eval_prompt` responses a prompt, by the set's sampling."""
    if getattr(args, "group_rm", False):
        raise RollcastError("bad_config", "slime: --group-rm does not go with evaluation")
    given = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_new_tokens": config.max_response_len,
        "min_new_tokens": config.min_new_tokens,
        "repetition_penalty": config.repetition_penalty,
        "stop": config.stop,
        "stop_token_ids": config.stop_token_ids or args.rollout_stop_token_ids,
    }
    sampling, _ = sampling_of(given, f"slime's evaluation set {config.name}")
    groups = []
    for prompt in _evaluation_prompts(args, tokenizer, config):
        group = [copy.deepcopy(prompt) for _ in range(config.n_samples_per_eval_prompt)]
        for sample in group:
            sample.metadata = config.inject_metadata(getattr(sample, "metadata", None))
            sample.custom_rm_path = config.custom_rm_path
        groups.append(group)
    for number, sample in enumerate(s for group in groups for s in group):
        sample.index = number
    seed = seed_of("slime-eval", config.name, args.rollout_seed, rollout_id)
    _fill(args, client, tokenizer, groups, sampling, seed, version)
    _reward(args, groups)
    samples = [s for group in groups for s in group]
    key = args.eval_reward_key or args.reward_key
    return {
        "rewards": [s.reward[key] if key else s.reward for s in samples],
        "truncated": [s.status.value == "truncated" for s in samples],
        "samples": samples,
    }


def _evaluation_prompts(args: Any, tokenizer: Any, config: Any) -> List[Any]:
    from slime.utils.data import Dataset

    def chosen(name: str) -> Any:
        own = getattr(config, name, None)
        return getattr(args, name, None) if own is None else own

    return list(
        Dataset(
            config.path,
            tokenizer,
            None,
            args.eval_max_prompt_len,
            prompt_key=config.input_key,
            label_key=config.label_key,
            tool_key=config.tool_key,
            metadata_key=config.metadata_key,
            multimodal_keys=chosen("multimodal_keys"),
            apply_chat_template=chosen("apply_chat_template"),
            apply_chat_template_kwargs=chosen("apply_chat_template_kwargs"),
        ).samples
    )
