"""What AgileRL does in the version that is measured: each function looks at one thing in a run of its own code, and
says what it saw. `ppo_vs_agilerl.py --facts` runs them; docs/performance.md repeats what they found."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from agilerl_peer import Peer, learnable, logprobs

AS_IT_COMES: dict[str, Any] = {"top_k": 50, "lora_config": None}
"""What `make_agent` sets otherwise for a fair comparison: its own sampling, and its own LoRA with dropout."""


def start(settings: dict[str, Any]) -> dict[str, Any]:
    """One rollout and one step as it is installed, Liger's kernels included."""
    peer = Peer(settings | {"liger": True})
    for _ in peer.steps(1):
        pass
    return {"says": "it starts on a CPU as it is installed"}


def check(settings: dict[str, Any]) -> dict[str, Any]:
    facts = {}
    for name, look in FACTS.items():
        facts[name] = look(settings)
        print(f"{name}: {facts[name]['says']}", file=sys.stderr, flush=True)
    return {"facts": facts}


def reward_of_lengths(settings: dict[str, Any]) -> dict[str, Any]:
    """What a reward of 1 comes to over responses of 2 and of 8 tokens, in its default mode."""
    import torch

    agent = Peer(settings).agent
    masks = torch.tensor([[False] * 3 + [True] * 2 + [False] * 6, [False] * 3 + [True] * 8])
    turns = torch.where(masks, 0, -1)
    mode = agent._resolve_advantage_granularity(turns)
    paid = agent._compute_token_rewards(masks, torch.ones(2, 1), turns)
    returns, _ = agent._compute_gae_returns_token(paid, torch.zeros_like(paid), masks, 1.0)
    sums, first = paid.sum(dim=1).tolist(), returns[:, 3].tolist()
    return {
        "mode": mode,
        "paid": sums,
        "return_of_first_token": first,
        "says": f"mode {mode!r}: a reward of 1 pays {sums[0]:g} over 2 tokens and {sums[1]:g} over 8; the first token "
        f"has a return of {first[0]:g} and {first[1]:g}",
    }


def moving_reference(settings: dict[str, Any]) -> dict[str, Any]:
    """Distance to where the run began and to its reference, before and after the move at a new pass of the data. It is
    the mean over responses of |sum(log pi - log pi_ref)|, not a KL."""
    from agilerl.training.llm import rollout  # pyright: ignore[reportMissingImports]  # peer's

    peer = Peer(settings | {"rate": 1e-3})
    chosen, rows = one_step(peer)
    padded, mask = peer.stacked(chosen, rows)

    def distance(adapter: str) -> float:
        gap = logprobs(peer.agent, padded, "actor") - logprobs(peer.agent, padded, adapter)
        return float((gap * mask).sum(dim=1).abs().mean())

    begin, before = distance("__base__"), distance("reference")
    peer.agent.set_reference_policy(1)
    after = distance("reference")
    called = "set_reference_policy(rollout_collector.num_epochs)" in inspect.getsource(rollout.train_llm_rollout)
    return {
        "distance_to_start": begin,
        "distance_to_reference_before": before,
        "distance_to_reference_after": after,
        "loop_moves_it_each_pass": called,
        "says": f"after a step, |sum(log pi - log pi_ref)| of a response is {before:.4f} (to the start {begin:.4f}), "
        f"after the move {after:.4f}; its loop {'asks' if called else 'does not ask'} for the move at each pass",
    }


def dropout_ratio(settings: dict[str, Any]) -> dict[str, Any]:
    """How far the ratio of old and new policy is from 1 before anything has been learnt from the batch, by its LoRA as
    it comes: at the start of a run, where B is 0, and after one step."""
    import torch
    from agilerl.lora.fused import unset_fused_adapter_routing  # pyright: ignore[reportMissingImports]  # peer's

    deviations = {}
    for name, changes in (("as it comes", AS_IT_COMES), ("dropout 0", {})):
        peer = Peer(settings | {"rate": 1e-4}, **changes)

        def largest(peer: Peer, chosen: Any, rows: Any) -> float:
            padded, mask = peer.stacked(chosen, rows)
            old = logprobs(peer.agent, padded, "actor")
            peer.agent.actor.train()
            with torch.no_grad():
                new = peer.agent._fused_forward(padded)
            unset_fused_adapter_routing(peer.agent.actor)
            return float(((new - old).exp() - 1).abs()[mask].max())

        _, chosen = next(peer.batches())
        at_start = largest(peer, chosen, peer.roll_out(chosen))
        chosen, rows = one_step(peer)
        deviations[name] = {"at_start": at_start, "after_one_step": largest(peer, chosen, rows)}
    usual, without = deviations["as it comes"], deviations["dropout 0"]
    return {
        **deviations,
        "says": f"largest |ratio - 1| of a token, LoRA as it comes: {usual['at_start']:.2g} at the start, "
        f"{usual['after_one_step']:.2g} after one step; without dropout: {without['at_start']:.2g} and "
        f"{without['after_one_step']:.2g}",
    }


def sampled_and_trained(settings: dict[str, Any]) -> dict[str, Any]:
    """What its default sampling leaves out, and which distribution its log-probabilities are of."""
    import torch

    peer = Peer(settings, **AS_IT_COMES)
    _, chosen = next(peer.batches())
    padded, mask = peer.stacked(chosen, peer.roll_out(chosen))
    with torch.no_grad(), peer.agent.select_adapter("actor"):
        peer.agent.actor.eval()
        logits = peer.agent.actor(input_ids=padded, attention_mask=(padded != peer.pad).long())[0][:, :-1].float()
    top_k = peer.agent.generation_config.top_k
    taken = padded[:, 1:, None]
    whole = logits.log_softmax(dim=-1)
    kept = whole.topk(top_k, dim=-1).values.exp().sum(dim=-1)
    chosen_of_whole = whole.gather(-1, taken)[..., 0]
    trained = logprobs(peer.agent, padded, "actor")
    to_whole = float((trained - chosen_of_whole).abs()[mask].max())
    to_sampled = float((trained - (chosen_of_whole - kept.log())).abs()[mask].max())
    left_out = float((1 - kept)[mask].mean())
    return {
        "top_k": top_k,
        "probability_left_out": left_out,
        "distance_to_whole": to_whole,
        "distance_to_sampled": to_sampled,
        "says": f"top_k {top_k} by default leaves out a probability of {left_out:.3f} a token; the log-probabilities "
        f"it trains on are {to_whole:.1g} from the whole distribution's, {to_sampled:.1g} from what was sampled",
    }


def prompts_at_once(settings: dict[str, Any]) -> dict[str, Any]:
    """How often it calls `generate` for four prompts, with `hf_generate_chunk_size=4`."""
    peer = Peer(settings | {"batched": False, "batch": 4}, hf_generate_chunk_size=4)
    rows, generate = [], peer.agent.actor.generate

    def counted(**options: Any) -> Any:
        rows.append(len(options["input_ids"]))
        return generate(**options)

    peer.agent.actor.generate = counted
    _, chosen = next(peer.batches())
    peer.roll_out(chosen)
    return {"rows": rows, "says": f"4 prompts, hf_generate_chunk_size 4: `generate` was called with {rows} prompts"}


def four_bit_gradients(settings: dict[str, Any]) -> dict[str, Any]:
    """The cosine between the actor's gradients on one batch before and after a rollout: nothing is learnt between."""
    import torch

    cosines = {}
    for name, repacked in (("as it comes", True), ("never repacked", False)):
        peer = Peer(settings | {"quantization": "nf4", "repacked": repacked})
        # No forward without gradients has been run yet, so nothing has been repacked: responses are made up.
        _, chosen = next(peer.batches())
        rows = [prompt["ids"] + other["ids"][:8] for prompt, other in zip(chosen, reversed(chosen), strict=True)]
        padded, mask = peer.stacked(chosen, rows)
        before = gradient(peer, padded, mask)
        peer.roll_out(chosen)
        after = gradient(peer, padded, mask)
        cosines[name] = float(torch.nn.functional.cosine_similarity(before, after, dim=0))
    capable = torch.cpu._is_avx512_bf16_supported()
    return {
        "cosine": cosines,
        "avx512_bf16": capable,
        "says": f"NF4, a CPU {'with' if capable else 'without'} AVX512-BF16: cosine of the gradients before and after "
        f"a rollout {cosines['as it comes']:.3f}; with bitsandbytes' repacking off {cosines['never repacked']:.3f}",
    }


# --- what they share


def one_step(peer: Peer) -> tuple[Any, Any]:
    """Roll out, learn that some responses are good and others are not, and give both back."""
    _, chosen = next(peer.batches())
    rows = peer.roll_out(chosen)
    ids, masks = learnable(chosen, rows)
    peer.agent.learn((ids, masks, peer.tensor([float(index % 2) for index in range(len(rows))])))
    return chosen, rows


def gradient(peer: Peer, padded: Any, mask: Any) -> Any:
    """Of the summed log-probability of the responses, in the actor's adapter."""
    import torch
    from agilerl.lora.fused import unset_fused_adapter_routing  # pyright: ignore[reportMissingImports]  # peer's

    agent = peer.agent
    agent.use_adapter("actor")
    agent.actor.zero_grad()
    agent.actor.train()
    (agent._fused_forward(padded) * mask).sum().backward()
    unset_fused_adapter_routing(agent.actor)
    named = agent.actor.named_parameters()
    return torch.cat(
        [parameter.grad.flatten() for name, parameter in named if ".actor." in name and parameter.grad is not None]
    )


FACTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "reward at every token": reward_of_lengths,
    "moving reference": moving_reference,
    "dropout": dropout_ratio,
    "top_k": sampled_and_trained,
    "prompts at once": prompts_at_once,
    "NF4 on this CPU": four_bit_gradients,
}
