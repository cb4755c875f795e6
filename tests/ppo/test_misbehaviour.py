"""Reward functions, judges and engines that misbehave: the episode is named and the run ends, or it is unharmed."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.chat.conversations import Chat, EncodedPrompt
from data.records import Message, Origin, Prompt
from onebase.cli import command
from onebase.errors import RecipeError
from onebase.inference.sampling import Sample
from onebase.model import base as bases
from onebase.model.roles import WEIGHTS, Roles
from onebase.recipe import reader
from onebase.recipe.sections import BaseSection, ChatSection
from onebase.sequences.episodes import Episodes
from ppo.engines import CustomEngine, EngineError
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import PromptBatch, RewardError, score_episodes, scores_of
from ppo.train import run
from tests.factories import rows_of, untimed

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke"


@pytest.fixture
def batch(tiny_base_folder: Path) -> tuple[PromptBatch, Episodes]:
    """Two prompts with facts about them, and a response to each."""
    base, section = BaseSection(model=str(tiny_base_folder), quantization="fp32"), ChatSection()
    chat = Chat(*bases.load_tokenizer(base, section), section)
    prompts = [
        Prompt((Message("user", text),), Origin("mine.jsonl", line), {"answers": ["one", {"two": 2}]})
        for line, text in enumerate(("Sort pear, apple.", "What is the opposite of cold?"), start=1)
    ]
    encoded = [EncodedPrompt(prompt, chat.prompt_ids(prompt)) for prompt in prompts]
    responses = [chat.tokenizer.encode(text, add_special_tokens=False) for text in (" the lamp", " a fig")]
    return PromptBatch(chat=chat, prompts=encoded), Episodes.of([prompt.ids for prompt in encoded], responses, pad_id=0)


def only_for_the_second(act: Callable[[Prompt], Any]) -> Callable[[Prompt, str], Any]:
    return lambda prompt, response: 1.0 if prompt.origin.line == 1 else act(prompt)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


async def later() -> float:
    return 1.0


@pytest.mark.parametrize("what", ["reward function", "judge"])
@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda prompt: sys.exit(), "tried to end the run: it raised SystemExit"),
        (lambda prompt: sys.exit(0), "tried to end the run: it raised SystemExit .0."),
        (lambda prompt: later(), "returned <coroutine object later"),
        (lambda prompt: (number for number in (1.0,)), "returned <generator object"),
        (lambda prompt: Unshowable(), "returned <Unshowable that cannot be shown: RuntimeError> where"),
        (lambda prompt: "x" * 10**6, "returned 'x{299}... where"),
        (lambda prompt: torch.inference_mode, "returned <class"),
    ],
)
def test_the_episode_is_named(
    batch: tuple[PromptBatch, Episodes], what: str, act: Callable[[Prompt], Any], message: str
) -> None:
    prompts, episodes = batch
    with pytest.raises(RewardError, match=rf"^{what} 'mine:reward' {message}.*for the prompt mine\.jsonl:2 .*'a fig'"):
        scores_of(only_for_the_second(act), "mine:reward", episodes, prompts, what=what)


def test_a_function_that_hangs_is_named_with_its_episode_and_the_limit_of_the_recipe(
    batch: tuple[PromptBatch, Episodes], here: Path, make_roles: Callable[..., Roles]
) -> None:
    (here / "mine.py").write_text("import time\ndef reward(prompt, response):\n    time.sleep(60)\n")
    with pytest.raises(RewardError, match=r"'mine:reward' has not ended after 0\.2 seconds, for the prompt mine.jsonl"):
        score(batch, make_roles, {"functions": {"seconds": 0.2}})


def score(batch: tuple[PromptBatch, Episodes], make_roles: Callable[..., Roles], sections: Mapping[str, Any]) -> Any:
    """By the one function `mine:reward`."""
    term = {"kind": "function", "function": "mine:reward", **sections.get("term", {})}
    prompts, episodes = batch
    content = {
        "base": {"model": "base"},
        "parents": {"sft": "sft"},
        "data": [{"source": "builtin:tasks", "split": "rl"}],
        "reward": {"terms": [term], **sections.get("reward", {})},
        "functions": sections.get("functions", {}),
        "value": {"kind": "shared"},
    }
    recipe = PpoRecipe.model_validate(content)
    return score_episodes(make_roles("policy"), episodes, prompts, method_of(recipe).reward, tokens_per_microbatch=2048)


def vandal(prompt: Prompt, response: str) -> float:
    meta: Any = prompt.meta
    count = len(meta["answers"]) + len(meta)
    meta["answers"].append("three")
    meta["answers"][1]["two"] = 3
    meta["seen"] = True
    object.__setattr__(prompt, "messages", ())
    object.__setattr__(prompt.origin, "line", 99)
    return count


def test_a_function_gets_copies(batch: tuple[PromptBatch, Episodes]) -> None:
    prompts, episodes = batch
    for _ in range(2):
        assert scores_of(vandal, "mine:vandal", episodes, prompts).tolist() == [3.0, 3.0]
    for prompt in prompts.prompts:
        assert prompt.prompt.meta == {"answers": ["one", {"two": 2}]}
        assert prompt.prompt.messages and prompt.prompt.origin.line in (1, 2)


def test_a_function_that_draws_depends_on_its_arguments_alone(batch: tuple[PromptBatch, Episodes]) -> None:
    import random

    prompts, episodes = batch
    first, second = scores_of(lambda prompt, response: random.random(), "mine:draws", episodes, prompts).tolist()
    assert first != second
    torch.rand(3)
    assert scores_of(lambda prompt, response: random.random(), "mine:draws", episodes, prompts).tolist() == [
        first,
        second,
    ]


@pytest.mark.parametrize(
    ("text", "sections", "message"),
    [
        (
            "1e30",
            {},
            r"reward\.terms\.0 'reward': the reward function 'mine:reward' scores 1e\+30, times its weight 1,",
        ),
        ("-2e9", {}, r"scores -2e\+09, times its weight 1, for the prompt mine\.jsonl:1 .*'the lamp'"),
        ("1e6", {"term": {"weight": 1e4, "name": "size"}}, r"'size': .* scores 1e\+06, times its weight 10000"),
        ("prompt.origin.line * 8e8", {}, r"scores 1\.6e\+09, .* for the prompt mine\.jsonl:2 .*'a fig'"),
    ],
)
def test_a_score_that_would_overflow_is_named_with_its_term_and_episode(
    batch: tuple[PromptBatch, Episodes],
    here: Path,
    make_roles: Callable[..., Roles],
    text: str,
    sections: Mapping[str, Any],
    message: str,
) -> None:
    (here / "mine.py").write_text(f"def reward(prompt, response):\n    return {text}\n")
    with pytest.raises(RewardError, match=rf"{message}.*reward\.clip"):
        score(batch, make_roles, sections)


@pytest.mark.parametrize("reward", [{"clip": 5.0}, {"whiten": True}])
def test_a_score_that_is_brought_to_scale_may_be_large(
    batch: tuple[PromptBatch, Episodes], here: Path, make_roles: Callable[..., Roles], reward: Mapping[str, Any]
) -> None:
    (here / "mine.py").write_text("def reward(prompt, response):\n    return 1e30\n")
    assert score(batch, make_roles, {"reward": reward}).total.tolist() == pytest.approx([1e30, 1e30], rel=1e-6)


# --- engines --------------------------------------------------------------------------------------------------------


def right(prompts: Any) -> Sample:
    """Two tokens for every prompt."""
    count = len(prompts)
    episodes = Episodes.of(prompts, [[5, 2]] * count, pad_id=0)
    return Sample(episodes=episodes, logprobs=torch.zeros(count, 2), stopped=torch.ones(count, dtype=torch.bool))


def engine_that(act: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda roles, role, prompts, **options: act(prompts)


def ask(roles: Roles, function: Callable[..., Any], seconds: float = 60.0) -> Sample:
    engine = CustomEngine(function, "mine:draw", seconds)
    generator = torch.Generator().manual_seed(5)
    return engine(roles, "policy", [(1, 7), (1, 9, 4)], max_new_tokens=2, temperature=1.0, generator=generator, batch=2)


def holding(prompts: Any, **fields: object) -> Sample:
    """A sample with something else in these fields, past the checks that tests run under."""
    sample = right(prompts)
    for name, value in fields.items():
        object.__setattr__(sample, name, value)
    return sample


def long(prompts: Any) -> Sample:
    """Three tokens for the first prompt."""
    episodes = Episodes.of(prompts, [[5, 7, 2], [5, 2]], pad_id=0)
    return replace(right(prompts), episodes=episodes, logprobs=torch.zeros(2, 3))


def with_mask(prompts: Any, mask: list[list[bool]]) -> Sample:
    sample = right(prompts)
    return replace(sample, episodes=replace(sample.episodes, mask=torch.tensor(mask)))


def with_tokens(prompts: Any, token: int) -> Sample:
    sample = right(prompts)
    return replace(sample, episodes=replace(sample.episodes, responses=torch.full((2, 2), token)))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda prompts: sys.exit(0), "tried to end the run: it raised SystemExit"),
        (lambda prompts: 1 / 0, "raised ZeroDivisionError"),
        (lambda prompts: None, "returned None where a Sample is expected"),
        (lambda prompts: (prompt for prompt in prompts), "returned <generator object"),
        (lambda prompts: right(prompts[::-1]), "the prompts are not the 2 of the call"),
        (lambda prompts: right(prompts[:1]), "the prompts are not the 2 of the call"),
        (lambda prompts: replace(right(prompts), logprobs=torch.zeros(2, 3)), "should have 2 rows of one width"),
        (lambda prompts: with_mask(prompts, [[True, True], [False, True]]), "has a gap"),
        (lambda prompts: with_mask(prompts, [[True, True], [False, False]]), "marks no token"),
        (lambda prompts: holding(prompts, episodes=[]), r"episodes is \[\], not Episodes"),
        (lambda prompts: holding(prompts, logprobs=[[0.0] * 2] * 2), r"logprobs is not a tensor of torch: \[\["),
        (lambda prompts: holding(prompts, stopped=None), "stopped is not a tensor of torch: None"),
        (lambda prompts: long(prompts), r"has 3 tokens, more than sampling\.max_new_tokens=2"),
        (lambda prompts: with_tokens(prompts, 10**6), "a token outside 0 .."),
        (lambda prompts: with_tokens(prompts, -1), "a token outside 0 .."),
    ],
)
def test_an_engine_that_does_something_else_is_refused(
    make_roles: Callable[..., Roles], act: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(EngineError, match=rf"sampling\.engine 'mine:draw' .*{message}"):
        ask(make_roles("policy"), engine_that(act))


def test_an_engine_draws_by_seed_and_step_also_from_the_global_generators(make_roles: Callable[..., Roles]) -> None:
    roles = make_roles("policy")

    def draw(prompts: Any) -> Sample:
        sample = right(prompts)
        prompts.clear()  # its own copy
        return replace(sample, logprobs=torch.rand(2, 2))

    before = torch.get_rng_state()
    first, other = (ask(roles, engine_that(draw)).logprobs for _ in range(2))
    assert torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_that_runs_out_in_an_engine_is_the_runs_to_see_to(make_roles: Callable[..., Roles]) -> None:
    def draw(prompts: Any) -> Sample:
        raise MemoryError

    with pytest.raises(MemoryError):
        ask(make_roles("policy"), engine_that(draw))


def test_an_engine_has_its_time_for_every_prompt(make_roles: Callable[..., Roles]) -> None:
    import time

    with pytest.raises(EngineError, match=r"has not ended after 0\.2 seconds, for 2 prompts"):
        ask(make_roles("policy"), engine_that(lambda prompts: time.sleep(60)), seconds=0.1)


# --- whole runs -----------------------------------------------------------------------------------------------------

TERM = "reward={terms: [{kind: function, function: 'mine:reward'}]}"

CALM = """
def reward(prompt, response):
    return len(response) / 9
"""

WILD = """
import os, random, sys, threading, warnings
import numpy, torch

def reward(prompt, response):
    print("scored", end="")
    value = len(response) / 9
    random.seed(1); numpy.random.seed(1); torch.manual_seed(1)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    os.chdir("/")
    warnings.simplefilter("ignore")
    prompt.meta.clear()
    object.__setattr__(prompt, "messages", prompt.messages * 2)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return value
"""


@pytest.fixture
def settings(tiny_base_folder: Path, finish_run: Callable[[str], Path], here: Path) -> list[str]:
    return [
        *(f"base.model={tiny_base_folder}", "base.quantization=fp32", "track.wandb=off"),
        *(f"parents.sft={finish_run('fp32') / 'sft'}", "parents.reward=null", "value.kind=shared"),
        *("train.episodes=16", "checkpoint.every_steps=1"),
    ]


def test_a_run_is_unharmed_by_what_its_function_does_to_the_process(settings: list[str], here: Path) -> None:
    outcomes: list[Any] = []
    for name, text in (("calm", CALM), ("wild", WILD)):
        (here / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        recipe = reader.read(SMOKE / "ppo.yaml", PpoRecipe, [*settings, TERM, f"out={here / name}"])
        run(recipe)
        samples, weights = (recipe.out / "samples.jsonl").read_text(), load_file(recipe.out / "adapter" / WEIGHTS)
        outcomes.append((untimed(rows_of(recipe.out)), samples, weights))
    (calm_rows, calm_samples, calm), (wild_rows, wild_samples, wild) = outcomes
    assert calm_rows == wild_rows
    assert calm_samples == wild_samples
    assert all(torch.equal(calm[name], wild[name]) for name in calm)


def test_a_run_whose_function_exits_says_so_and_goes_on_when_it_is_mended(
    settings: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "mine.py").write_text(
        "import pathlib, sys\ncalls = []\n\ndef reward(prompt, response):\n    calls.append(0)\n"
        "    if len(calls) == 13 and not pathlib.Path('mended').exists():\n        sys.exit()\n"
        "    return len(response)\n"
    )
    from ppo.__main__ import load

    def start() -> int:
        return command.run_stage("ppo", load, SMOKE / "ppo.yaml", [*settings, TERM, "out=out"], False, False)

    assert start() == 2
    assert "'mine:reward' tried to end the run: it raised SystemExit" in capsys.readouterr().err
    assert not (here / "out" / "stage.json").exists()
    (here / "mended").touch()
    assert start() == 0
    assert "resuming after step 1" in capsys.readouterr().err


def test_a_run_of_one_episode_a_step_is_not_told_that_all_rewards_are_equal(settings: list[str], here: Path) -> None:
    (here / "mine.py").write_text(
        "calls = []\ndef reward(prompt, response):\n    calls.append(0)\n    return len(calls)\n"
    )
    single = ["train.batch=1", "train.minibatch=1", "train.episodes=3", "alarms.stop=true", "alarms.ratio=1e6"]
    run(reader.read(SMOKE / "ppo.yaml", PpoRecipe, [*settings, TERM, *single, f"out={here / 'one'}"]))
    assert (here / "one" / "stage.json").is_file()
    assert not (here / "one" / "alarms.jsonl").exists()


# --- numbers that move nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.batch=1", "train.minibatch=1", "sampling.max_new_tokens=1"],
            "advantages.standardise: .* would never move",
        ),
        (["seed=4294967296"], "seed: input should be less than or equal to 4294967295"),
        ([f"seed={10**30}"], "seed: input should be"),
        (["seed=-1"], "seed: input should be greater than or equal to 0"),
        (["sampling.temperature=1e-30"], "sampling.temperature: "),
        (["train.learning_rate=1e30"], "train.learning_rate: "),
        (["kl.weight=1e30"], "kl.weight: "),
        (["reward.eos_penalty=1e30"], "reward.eos_penalty: "),
        (["reward.terms.0.weight=.nan"], "reward.terms.0.weight: "),
        (["train.clip=0"], "train.clip: "),
        ([f"train.episodes={10**30}"], "train.episodes: input should be less than or equal to 1000000000000"),
        (["functions.seconds=0"], "functions.seconds: "),
        # Where nothing is clipped, a score of 1e30 would not be named.
        (["reward.clip=1e30"], "reward.clip: input should be less than or equal to 1000000000"),
        (["train.clip=1e308"], "train.clip: input should be less"),
        (["train.importance_cap=1e308"], "train.importance_cap: input should be less"),
        (["value.clip=1e308"], "value.clip: input should be less"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused_with_their_key(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        reader.read(SMOKE / "ppo.yaml", PpoRecipe, overrides)


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "compare"])
@pytest.mark.parametrize("seed", [2**32, 10**30, -1])
def test_a_seed_that_a_library_does_not_take_is_refused_in_every_recipe(stage: str, seed: int) -> None:
    from evaluation.compare.recipe import CompareRecipe
    from pipeline import stages

    model = CompareRecipe if stage == "compare" else stages.loader(stage)()[0]
    with pytest.raises(RecipeError, match="seed: input should be"):
        reader.read(SMOKE / f"{stage}.yaml", model, [f"seed={seed}"])
    assert reader.read(SMOKE / f"{stage}.yaml", model, [f"seed={2**32 - 1}"])
