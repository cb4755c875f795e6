"""What `ppo_vs_trl.py`, `ppo_vs_agilerl.py`, and `scaling.py` train on: prompts, bases,
and finished stages to start from.

The SFT adapter is fresh (B is 0, so the policy starts as the base, which is also where the peer's starts) and the
reward model is the base with a random head, whose weights the peer gets as well: both sides maximise one function.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 32
HEAD_SEED = 0


def prepare(settings: dict[str, Any]) -> dict[str, Any]:
    """Write `prompts.jsonl` (and `long.jsonl`), the bases and their stages into settings["work"]; what there is."""
    from onebase.recipe.sections import BaseSection

    work = Path(settings["work"])
    paths: dict[str, Any] = {}
    for name, base in settings["bases"].items():
        folder = work / "bases" / name
        if "random" in base:
            random_base(folder, settings["model"], base["random"])
        elif base.get("stops"):
            paths["stop"] = with_stop(folder, settings)
        model = str(folder) if folder.is_dir() else settings["model"]
        for quantization in base.get("quantizations", ["fp32"]):
            section = BaseSection.model_validate({"model": model, "quantization": quantization})
            for rank in base.get("ranks", [RANK]):
                make_stages(section, rank, work / "stages" / f"{name}-{quantization}-{rank}")
    return paths


def stages_of(settings: dict[str, Any]) -> Path:
    name, quantization = settings.get("base", "plain"), settings.get("quantization", "fp32")
    return Path(settings["work"]) / "stages" / f"{name}-{quantization}-{settings.get('rank', RANK)}"


def model_of(settings: dict[str, Any]) -> str:
    folder = Path(settings["work"]) / "bases" / settings.get("base", "plain")
    return str(folder) if folder.is_dir() else settings["model"]


def make_stages(section: Any, rank: int, folder: Path) -> None:
    """`sft` and `reward`, as if they had been trained: adapters with B = 0, and a random head."""
    import torch

    from onebase.model import base as bases
    from onebase.model.roles import Roles
    from onebase.recipe.sections import AdapterSection, ChatSection
    from onebase.run import record
    from onebase.run.record import Resources
    from onebase.seeding import generator

    base = bases.load(section, ChatSection())
    roles = Roles(base)
    parents = {}
    for stage in ("sft", "reward"):
        adapter = AdapterSection(rank=rank, alpha=2 * rank)
        roles.add(stage, adapter, generator=generator(HEAD_SEED, stage))
        if stage == "reward":
            weight = roles.add_head(stage).weight
            drawn = torch.randn(weight.shape, generator=generator(HEAD_SEED, "head"))
            weight.data.copy_(drawn / (len(drawn) + 1) ** 0.5)
        files = roles.save(stage, folder / stage / "adapter")
        made = record.create(
            stage=stage,
            folder=folder / stage,
            base=base.identity,
            tokenizer=base.tokenizer_identity,
            files=files,
            parents=parents,
            recipe=section.model_dump(mode="json"),
            data=[],
            metrics={},
            resources=Resources(seconds=0.0, peak_rss_bytes=0),
        )
        record.write(folder / stage, made)
        parents = {"sft": record.read(folder / stage, stage=stage)}


# --- bases


def with_stop(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The base with one more stop token: the one at which its responses to these prompts come nearest to a third of the
    limit. Both sides get it, so that responses stop early without anything being trained for it."""
    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    origin = bases.resolve(settings["model"], None)
    loaded = bases.load(BaseSection(model=settings["model"], quantization="fp32"), ChatSection())
    responses = responses_of(loaded, read_ids(Path(settings["prompts"]), settings), settings)
    token, length = choose_stop(responses, settings["response_tokens"] / 3)
    stops = sorted({*loaded.stop_ids, token})
    link_base(origin, folder)
    generation = folder / "generation_config.json"
    config = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    generation.unlink(missing_ok=True)
    generation.write_text(json.dumps({**config, "eos_token_id": stops}), encoding="utf-8")
    return {"token": loaded.tokenizer.decode([token]), "stop_ids": stops, "expected_length": round(length, 2)}


def link_base(origin: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for file in origin.iterdir():
        (folder / file.name).symlink_to(file.resolve())


def choose_stop(responses: Sequence[Sequence[int]], wanted: float) -> tuple[int, float]:
    """The token that, ending responses where it first stands, makes their mean length come nearest to `wanted`."""

    def mean_length(token: int) -> float:
        lengths = [list(response).index(token) + 1 if token in response else len(response) for response in responses]
        return sum(lengths) / len(lengths)

    lengths = {token: mean_length(token) for token in sorted({token for response in responses for token in response})}
    chosen = min(lengths, key=lambda token: abs(lengths[token] - wanted))
    return chosen, lengths[chosen]


def responses_of(base: Any, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    """Four sampled responses a prompt, by transformers' own `generate`: neither side's code decides."""
    import torch

    torch.manual_seed(0)
    texts = []
    for start in range(0, len(prompts), 16):
        part = prompts[start : start + 16]
        width = max(map(len, part))
        ids = torch.tensor([[base.pad_id] * (width - len(prompt)) + prompt for prompt in part])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in part])
        drawn = base.model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            num_return_sequences=4,
            max_new_tokens=settings["response_tokens"],
            eos_token_id=sorted(base.stop_ids),
            pad_token_id=base.pad_id,
        )
        for row in drawn[:, width:].tolist():
            end = next((place + 1 for place, token in enumerate(row) if token in base.stop_ids), len(row))
            texts.append(row[:end])
    return texts


def random_base(folder: Path, model: str, shape: dict[str, int]) -> None:
    """A Llama of this shape with random weights and the tokenizer of `model`: its responses practically never stop."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from onebase.model import base as bases

    origin = bases.resolve(model, None)
    torch.manual_seed(0)
    heads = max(1, shape["hidden"] // 64)
    vocabulary = json.loads((origin / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape["hidden"],
        intermediate_size=shape["hidden"] * 8 // 3,
        num_hidden_layers=shape["layers"],
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3) if heads % 3 == 0 else heads,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (origin / name).is_file():
            shutil.copy(origin / name, folder / name)


# --- prompts


def write_prompts(settings: dict[str, Any]) -> dict[str, Any]:
    """`prompts.jsonl` and `long.jsonl`: {"prompt"} rows of the given source; how long they are in tokens."""
    chat = chat_of(settings)
    work, limit, wanted = Path(settings["work"]), settings["prompt_tokens"], settings["prompts"]
    texts = read_texts(settings)
    short = [text for text in texts if len(ids_of(chat, text)) <= limit][:wanted]
    if len(short) < wanted:
        raise SystemExit(f"{wanted} prompts asked for, and {len(short)} are at most {limit} tokens in the chat format")
    long = [join_until(chat, texts, start, settings["long_tokens"]) for start in range(0, wanted, 4)]
    paths = {}
    for name, chosen in (("prompts", short), ("long", long)):
        lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in chosen]
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        paths[name] = [len(ids_of(chat, text)) for text in chosen]
    return paths


def write_shared(settings: dict[str, Any]) -> dict[str, Any]:
    """`prompts.jsonl`, and `peer.json` with the same prompts for a peer that cannot read ours: text and tokens of each,
    the stop tokens and the pad token. Returns the folder of the base."""
    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    work = Path(settings["work"])
    write_prompts({"data": None, "long_tokens": 256, **settings})
    tokenizer, stops = bases.load_tokenizer(BaseSection(model=settings["model"]), ChatSection())
    lines = (work / "prompts.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["prompt"] for line in lines if line]
    ids = read_ids(work / "prompts.jsonl", settings)
    told = {
        "prompts": [{"text": text, "ids": tokens} for text, tokens in zip(texts, ids, strict=True)],
        "stops": sorted(stops),
        "pad": tokenizer.pad_token_id,
    }
    (work / "peer.json").write_text(json.dumps(told), encoding="utf-8")
    return {"folder": str(bases.resolve(settings["model"], None))}


def read_texts(settings: dict[str, Any]) -> list[str]:
    from data.records import Prompt
    from data.select.sources import Source, load

    builtin = settings["data"] is None
    source = Source(source="builtin:tasks", split="rl", rows=256) if builtin else Source(source=settings["data"])
    return [record.user_text for record in load([source], Prompt, seed=0).records]


def join_until(chat: Any, texts: Sequence[str], start: int, tokens: int) -> str:
    """As many of the prompts, one after the other from `start` on, as fit into this many tokens."""
    joined = ""
    for offset in range(10 * len(texts)):
        longer = f"{joined}\n\n{texts[(start + offset) % len(texts)]}".strip()
        if len(ids_of(chat, longer)) > tokens:
            break
        joined = longer
    return joined


def write_exact(settings: dict[str, Any]) -> dict[str, Any]:
    """Prompts of random words, each of exactly settings["prompt_tokens"] tokens in the chat format."""
    chat, drawn = chat_of(settings), random.Random(0)
    words = ("time", "way", "day", "man", "thing", "life", "world", "hand", "part", "place", "week", "case", "point")
    texts = []
    for _ in range(settings["prompts"]):
        chosen = [drawn.choice(words)]
        while len(ids_of(chat, " ".join(chosen))) < settings["prompt_tokens"]:
            chosen.append(drawn.choice(words))
        texts.append(" ".join(chosen))
    lengths = {len(ids_of(chat, text)) for text in texts}
    if lengths != {settings["prompt_tokens"]}:
        raise SystemExit(f"no prompt of {settings['prompt_tokens']} tokens in the chat format: found {sorted(lengths)}")
    lines = [json.dumps({"prompt": text}) for text in texts]
    Path(settings["file"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {"prompts": sorted(lengths)}


def chat_of(settings: dict[str, Any]) -> Any:
    from data.chat.conversations import Chat
    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    section = ChatSection()
    return Chat(*bases.load_tokenizer(BaseSection(model=settings["model"]), section), section)


def ids_of(chat: Any, text: str) -> tuple[int, ...]:
    from data.records import Message, Origin, Prompt

    return chat.prompt_ids(Prompt((Message("user", text),), Origin("benchmark", 1)))


def read_ids(path: Path, settings: dict[str, Any]) -> list[list[int]]:
    """The prompts of one of these files as tokens."""
    chat = chat_of(settings)
    lines = path.read_text(encoding="utf-8").split("\n")
    return [list(ids_of(chat, json.loads(line)["prompt"])) for line in lines if line]
