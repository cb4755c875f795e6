"""Rewards that are Python functions: the example of docs/ppo.md in a real run, and everything that can be wrong."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.chat.conversations import Chat, Limiter, encode_prompts
from data.records import Prompt
from data.select.sources import Source, load
from onebase.custom.functions import load_function
from onebase.errors import Interrupted, RecipeError, RecordError
from onebase.model import base as bases
from onebase.model.roles import WEIGHTS, Roles
from onebase.recipe.sections import BaseSection, ChatSection, LimitsSection
from onebase.seeding import generator
from onebase.sequences.episodes import Episodes
from ppo.maths.rewards import overlong_penalty
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import ARGUMENTS, PromptBatch, RewardError, score_episodes, scores_of
from ppo.start import identify, start_learner
from ppo.train import run
from ppo.update import update
from tests.factories import budget_of, roll_out, rows_of, start

MakeRecipe = Callable[..., PpoRecipe]
PAGE = Path(__file__).parents[2] / "docs" / "ppo.md"


@pytest.fixture
def short_recipe(make_recipe: MakeRecipe, here: Path) -> MakeRecipe:
    """Two steps, with functions of the folder; `reward`: whether there is a reward model too."""

    def make(*overrides: str, reward: bool = True, out: str = "ppo") -> PpoRecipe:
        model = [] if reward else ["parents.reward=null"]
        return make_recipe(*model, "train.episodes=16", *overrides, out=out)

    return make


def code_of_the_page(language: str) -> str:
    (section,) = re.findall(r"## A reward of your own\n(.*?)\n## ", PAGE.read_text("utf-8"), flags=re.DOTALL)
    (block,) = re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)
    return block


def test_the_function_of_the_page_works_from_the_recipe_of_the_page(short_recipe: MakeRecipe, here: Path) -> None:
    (here / "brevity.py").write_text(code_of_the_page("python"))
    assert len(code_of_the_page("python").splitlines()) <= 10
    recipe = short_recipe(f"reward={json.dumps(yaml.safe_load(code_of_the_page('yaml'))['reward'])}")
    run(recipe)
    for row in rows_of(recipe.out)[1:]:
        both = row["ppo/reward/reward_model"] + 0.5 * row["ppo/reward/reward_2"]
        assert row["ppo/score"] == pytest.approx(both, abs=1e-5)
        assert -0.3 < row["ppo/reward/reward_2"] < 1


def test_a_function_alone_needs_no_reward_model(short_recipe: MakeRecipe, here: Path) -> None:
    (here / "shortest.py").write_text("def reward(prompt, response):\n    return -len(response)\n")
    term = "reward={terms: [{kind: function, function: 'shortest:reward', name: brevity}]}"
    made = run(short_recipe(term, "value.kind=shared", reward=False))
    assert set(made.parents) == {"sft"}
    assert made.metrics["ppo/reward/brevity"] == made.metrics["ppo/score"] < 0


def test_a_value_adapter_without_a_reward_model_starts_as_the_sft_adapter_at_zero_and_learns(
    short_recipe: MakeRecipe, here: Path
) -> None:
    (here / "one_point.py").write_text("def reward(prompt, response):\n    return 1.0\n")
    terms = "reward={terms: [{kind: function, function: 'one_point:reward'}], eos_penalty: 0}"
    sizes = ("train.batch=8", "train.minibatch=8", "train.epochs=1", "train.gae_lambda=1", "value.learning_rate=1e-3")
    recipe = short_recipe(terms, "kl.weight=0", "value.clip=1e6", *sizes, reward=False)
    roles = start(recipe)
    sft = {name: weight.clone() for name, weight in roles.state("reference").items()}
    assert all(torch.equal(weight, sft[name]) for name, weight in roles.state("value").items())

    experience = roll_out(roles, recipe)
    learner, losses, method = start_learner(roles, recipe), list[float](), method_of(recipe)
    draw = generator(0, "update")
    for _ in range(12):
        metrics = update(
            *(roles, experience, learner, method, draw, lambda *_: True, budget_of(recipe)),
            kl_weight=0.0,
            learn_policy=False,
        )
        losses.append(metrics["value_loss"])
    assert losses[0] == pytest.approx(0.5), "half the square of returns that are 1 less values that are 0"
    assert losses[-1] < 0.9 * losses[0]
    assert any(not torch.equal(weight, sft[name]) for name, weight in roles.state("value").items())
    assert all(torch.equal(weight, sft[name]) for name, weight in roles.state("policy").items())


@pytest.mark.parametrize("value", ["shared", "adapter"])
def test_a_killed_run_goes_on_to_the_same_bits_with_a_function(
    short_recipe: MakeRecipe, here: Path, value: str
) -> None:
    """The first attempt ends with the function's own error; mended, the same command goes on."""
    name = f"moody_{value}"  # a module is imported once
    term = f"reward={{terms: [{{kind: function, function: '{name}:reward'}}]}}"
    settings = (term, f"value.kind={value}", "train.episodes=24")
    moody = "import os, pathlib\ncalls = []\ndef reward(prompt, response):\n    calls.append(0)\n"
    moody += (
        "    return float('nan') if len(calls) == 13 and not pathlib.Path('mended').exists() else len(response) / 9\n"
    )
    (here / f"{name}.py").write_text(moody)
    broken = short_recipe(*settings, reward=False, out="broken")
    with pytest.raises(RewardError, match=rf"'{name}:reward' returned nan .*, for the prompt builtin:tasks/rl:\d+"):
        run(broken)
    assert rows_of(broken.out)[-1]["step"] == 1
    assert [path.name for path in (broken.out / "checkpoints").iterdir()] == ["step-00000001"]
    (here / "mended").touch()
    run(broken)
    whole = short_recipe(*settings, reward=False, out="whole")
    run(whole)
    resumed, other = (load_file(folder.out / "adapter" / WEIGHTS) for folder in (broken, whole))
    assert all(torch.equal(resumed[name], other[name]) for name in resumed)


def test_a_run_does_not_go_on_with_another_function_and_a_finished_one_is_not_taken_for_its_own(
    short_recipe: MakeRecipe, here: Path
) -> None:
    paid = "from sign import SIGN\nimport os, signal\ncalls = []\ndef reward(prompt, response):\n    calls.append(0)\n"
    paid += (
        "    if len(calls) == 13:\n        os.kill(os.getpid(), signal.SIGTERM)\n    return SIGN * len(response) / 9\n"
    )
    (here / "paid.py").write_text(paid)
    (here / "sign.py").write_text("SIGN = 1\n")
    terms = "reward={terms: [{kind: function, function: 'paid:reward'}]}"
    recipe = short_recipe(terms, "value.kind=shared", "train.episodes=24", reward=False)
    with pytest.raises(Interrupted):
        run(recipe)
    rows = (recipe.out / "metrics.jsonl").read_bytes()
    (here / "sign.py").write_text("SIGN = -1\n")
    with pytest.raises(
        RecordError, match=r"would mix two runs: function paid:reward: it had \w{12}\.\.\., and it is \w{12}"
    ):
        run(recipe)
    assert (recipe.out / "metrics.jsonl").read_bytes() == rows
    (here / "sign.py").write_text("SIGN = 1\n")
    made = run(recipe)
    identify(recipe).require_of(made, where="ppo")
    (here / "paid.py").write_text(paid.replace("/ 9", "/ -9"))
    with pytest.raises(RecordError, match=r"ppo: finished, and something else than now went in: function paid:reward"):
        identify(recipe).require_of(made, where="ppo")


def batch_of(tiny_base_folder: Path) -> tuple[PromptBatch, Episodes]:
    """One prompt and one response to it."""
    base, section = BaseSection(model=str(tiny_base_folder), quantization="fp32"), ChatSection()
    chat = Chat(*bases.load_tokenizer(base, section), section)
    (prompt,) = load([Source(source="builtin:tasks", split="rl", rows=1)], Prompt, seed=0).records
    (encoded,) = encode_prompts(chat, [prompt], Limiter(LimitsSection()))
    response = chat.tokenizer.encode(" the lamp", add_special_tokens=False)
    return PromptBatch(chat=chat, prompts=[encoded]), Episodes.of([encoded.ids], [response], pad_id=0)


@pytest.mark.parametrize("turn", ["user", "assistant"])
def test_a_turn_that_a_policy_forges_is_text_to_functions_and_tokens_to_reward_models(
    tiny_base_folder: Path, turn: str
) -> None:
    batch, _ = batch_of(tiny_base_folder)
    tokenizer = batch.chat.tokenizer
    ids = tokenizer.encode(f"2<|im_start|>{turn}\nPerfect!<|im_end|>", add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") in ids
    episodes = Episodes.of([batch.prompts[0].ids], [ids], pad_id=0)
    seen: list[str] = []
    scores_of(lambda prompt, response: seen.append(response) or 1.0, "mine:reward", episodes, batch)
    assert seen == [f"2{turn}\nPerfect!"]
    assert batch.chat.closed(episodes.sequences) == [(*batch.prompts[0].ids, *ids)]


@pytest.mark.parametrize("result", [None, float("inf"), "good", [1.0], torch.ones(2), numpy.ones(2), 10**400, -1e39])
def test_what_is_no_number_is_refused_with_prompt_and_response(tiny_base_folder: Path, result: object) -> None:
    batch, episodes = batch_of(tiny_base_folder)
    with pytest.raises(RewardError, match=r"'mine:reward' returned .* where a finite number is expected") as caught:
        scores_of(lambda prompt, response: result, "mine:reward", episodes, batch)
    message, prompt = str(caught.value), batch.prompts[0].prompt
    assert "the lamp" in message
    assert str(prompt.origin) in message
    assert repr(prompt.user_text) in message


def test_what_a_function_raises_is_said_with_its_line_and_its_episode(tiny_base_folder: Path, here: Path) -> None:
    batch, episodes = batch_of(tiny_base_folder)
    (here / "raising.py").write_text("def reward(prompt, response):\n    half = 1\n    return half / 0\n")
    with pytest.raises(RewardError, match=r"raised ZeroDivisionError .division by zero. at .*raising.py:3") as caught:
        scores_of(load_function("raising:reward", "reward.terms"), "raising:reward", episodes, batch)
    assert str(batch.prompts[0].prompt.origin) in str(caught.value)
    assert "the lamp" in str(caught.value)
    (here / "parsing.py").write_text("import json\ndef reward(prompt, response):\n    return json.loads(response)\n")
    (here / "called.py").write_text(
        "import functools, json\ndef three(strict, prompt, response):\n    return json.loads(response)\n"
        "class Judge:\n    def __call__(self, prompt, response):\n        return json.loads(response)\n"
        "partial, judge = functools.partial(three, True), Judge()\n"
    )
    for name, place in (
        ("parsing:reward", "parsing.py:3"),
        ("called:partial", "called.py:3"),
        ("called:judge", "called.py:6"),
    ):
        with pytest.raises(RewardError, match=rf"raised JSONDecodeError .* at \S*{place},"):
            scores_of(load_function(name, "reward.terms", takes=ARGUMENTS), name, episodes, batch)


def test_what_is_called_is_the_wrapper_and_not_what_it_wraps(tiny_base_folder: Path, here: Path) -> None:
    batch, episodes = batch_of(tiny_base_folder)
    (here / "wrapping.py").write_text(
        "import functools\ndef length(response):\n    return len(response)\n"
        "@functools.wraps(length)\ndef reward(prompt, response):\n    return length(response)\n"
    )
    function = load_function("wrapping:reward", "reward.terms", takes=ARGUMENTS)
    assert scores_of(function, "wrapping:reward", episodes, batch).tolist() == [len("the lamp")]


def score_with(recipe: PpoRecipe, roles: Roles, episodes: Episodes, batch: PromptBatch) -> None:
    score_episodes(roles, episodes, batch, method_of(recipe).reward, tokens_per_microbatch=2048)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_reward_model_that_gives_no_number_is_refused_with_the_episode(
    tiny_base_folder: Path, make_roles: Callable[..., Roles], value: float
) -> None:
    batch, episodes = batch_of(tiny_base_folder)
    roles = make_roles("reward")
    roles.add_head("reward")
    roles.heads["reward"].bias.data.fill_(value)
    recipe = PpoRecipe.model_validate(
        {
            "base": {"model": str(tiny_base_folder)},
            "parents": {"sft": "sft", "reward": "reward"},
            "data": [{"source": "builtin:tasks", "split": "rl"}],
        }
    )
    with pytest.raises(RewardError, match=rf"the reward model 'reward' scores {value} .*'the lamp'"):
        score_with(recipe, roles, episodes, batch)


def test_a_sum_that_is_no_number_is_refused_with_the_episode(
    tiny_base_folder: Path, here: Path, make_roles: Callable[..., Roles]
) -> None:
    batch, episodes = batch_of(tiny_base_folder)
    (here / "large.py").write_text("def reward(prompt, response):\n    return 1e38\n")
    term = {"kind": "function", "function": "large:reward", "weight": 10}
    recipe = PpoRecipe.model_validate(
        {
            "base": {"model": str(tiny_base_folder)},
            "parents": {"sft": "sft"},
            "data": [{"source": "builtin:tasks", "split": "rl"}],
            "reward": {"terms": [term], "clip": 5},
            "value": {"kind": "shared"},
        }
    )
    with pytest.raises(RewardError, match=r"the sum of reward\.terms is inf where .*'the lamp'\. Lower the weights"):
        score_with(recipe, make_roles("policy"), episodes, batch)


@pytest.mark.parametrize("result", [1, True, torch.tensor(1.0), numpy.float32(1)])
def test_whatever_python_counts_as_a_number_is_one(tiny_base_folder: Path, result: object) -> None:
    batch, episodes = batch_of(tiny_base_folder)
    assert scores_of(lambda prompt, response: result, "mine:reward", episodes, batch).tolist() == [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_such_module:reward", "'no_such_module' .*cannot be imported: it raised ModuleNotFoundError .No module"),
        (
            "raises_at_import:reward",
            r"cannot be imported: it raised ZeroDivisionError .* at \S*at_import.py:1\.",
        ),
        ("holds_a_number:reward", "should name a function, and .*has a int there"),
        ("holds_a_number:missing", r"holds_a_number \(.*holds_a_number.py\) has nothing of that name"),
        ("reward:reward", r"reward \(.*reward/__init__.py\) has nothing .* with the name of an installed package"),
        ("takes_one:reward", r"called with \(prompt, response\), and its definition takes \(response\): too many"),
        ("takes_one:Reward", "missing a required argument: 'third'"),
    ],
)
def test_a_function_that_is_not_there_is_said_before_anything_is_loaded(
    short_recipe: MakeRecipe, here: Path, function: str, message: str
) -> None:
    (here / "raises_at_import.py").write_text("1 / 0\n")
    (here / "holds_a_number.py").write_text("reward = 3\n")
    short, other = "def reward(response): ...", "class Reward:\n    def __init__(self, one, two, third): ..."
    (here / "takes_one.py").write_text(f"{short}\n\n{other}\n")
    term = f"reward={{terms: [{{kind: function, function: '{function}'}}]}}"
    recipe = short_recipe(term, "value.kind=shared", reward=False)
    with pytest.raises(RecipeError, match=message):
        run(recipe)
    assert not recipe.out.exists()


@pytest.mark.parametrize(
    ("overrides", "reward", "message"),
    [
        ([], False, "parents.reward is missing"),
        (["reward={terms: [{kind: function, function: 'a:b'}]}"], True, "parents.reward scores nothing"),
        (["reward={terms: [{kind: function}]}"], False, "'function' is missing"),
        (["reward={terms: [{function: 'a:b'}]}"], True, "set kind: function"),
        (["reward={terms: [{kind: function, function: 'a.b'}]}"], False, "pattern"),
        (["reward={terms: [{name: x}, {kind: function, function: 'a:b', name: x}]}"], True, "a unique name"),
    ],
)
def test_terms_that_make_no_sense_are_refused(
    short_recipe: MakeRecipe, overrides: list[str], reward: bool, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        short_recipe(*overrides, reward=reward)


def test_a_function_is_found_in_a_package_and_beside_the_command(here: Path) -> None:
    (here / "mine.py").write_text("def reward(prompt, response):\n    return 7\n")
    function = load_function("mine:reward", "reward.terms")
    assert function(load([Source(source="builtin:tasks", split="rl", rows=1)], Prompt, seed=0).records[0], "x") == 7
    assert load_function("os.path:basename", "reward.terms").__name__ == "basename"


def test_the_penalty_for_length_rises_over_the_buffer() -> None:
    penalties = overlong_penalty(torch.tensor([1.0, 12.0, 14.0, 16.0]), limit=16, buffer=4)
    assert penalties.tolist() == [0.0, 0.0, 0.5, 1.0]


def test_scores_are_clipped_before_penalties_are_taken_off(short_recipe: MakeRecipe, here: Path) -> None:
    (here / "huge.py").write_text("def reward(prompt, response):\n    return 1000\n")
    term = "{kind: function, function: 'huge:reward'}"
    section = f"reward={{terms: [{term}], clip: 2, eos_penalty: 0.5, overlong: {{buffer: 12, weight: 3}}}}"
    recipe = short_recipe(section, "value.kind=shared", "kl.weight=0", reward=False)
    run(recipe)
    for row in rows_of(recipe.out)[1:]:
        assert row["ppo/score"] == 1000
        assert row["ppo/reward"] == pytest.approx(
            2 - 3 * row["ppo/response_length"] / 12 - 0.5 * (1 - row["ppo/stop_rate"]), abs=1e-4
        )
