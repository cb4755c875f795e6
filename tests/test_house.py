"""The size of the house: how far a piece of data travels, and how long and deep a function may be. Limits only fall."""

import ast
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from onebase.model.roles import Roles

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")

WAYS = {"demonstration": (9, 31), "ranking": (16, 61), "prompts": (25, 113)}
"""Files and functions of ours between a line of a file and its tokens, its gradient, its update. Lower a limit when a
change makes a way shorter; a change that makes one longer needs another design."""

LINES, FUNCTION_LINES, DEPTH = 300, 60, 3
DEEPER = {
    "data/files/lines.py: _texts": "one loop over the kinds of compression",
    "data/formats/meaning.py: check_row": "a row is a tree of values",
    "data/formats/table.py: _outcomes": "the ways in which a row can be read",
}
"""Functions nested deeper, with the reason."""

EMPTY = {"found", "one", "own", "said", "given", "asked"}
"""Names that carry no meaning. Hypothesis's `given` is imported, and not ours."""

BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def modules() -> Iterator[tuple[str, ast.Module, int]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            yield str(path.relative_to(ROOT)), ast.parse(text), text.count("\n")


def depth(node: ast.AST, level: int = 0) -> int:
    """How many blocks stand around the innermost statement."""
    inner = [child for child in ast.iter_child_nodes(node) if not isinstance(child, SCOPES)]
    return max([level, *(depth(child, level + isinstance(child, BLOCKS)) for child in inner)])


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path, tree, _ in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield f"{path}: {node.name}", node


def test_no_module_is_longer_than_a_reader_likes() -> None:
    assert [(path, lines) for path, _, lines in modules() if lines > LINES] == []


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_no_function_is_nested_deep_without_a_reason() -> None:
    assert {name for name, node in functions() if depth(node) > DEPTH} == set(DEEPER)


@pytest.mark.parametrize("folder", [*PACKAGES, "benchmarks", "examples", "tests"])
def test_names_say_what_a_thing_is(folder: str) -> None:
    assert [place for path in sorted((ROOT / folder).rglob("*.py")) for place in empty_names(path)] == []


def empty_names(path: Path) -> Iterator[str]:
    """Variables, parameters and functions of a file that could be anything. A field has its class beside it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    classes = (node for node in nodes if isinstance(node, ast.ClassDef))
    fields = {line.target for owner in classes for line in owner.body if isinstance(line, ast.AnnAssign)}
    for node in nodes:
        match node:
            case _ if node in fields:
                continue
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                if name in EMPTY:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}"


@contextmanager
def counted() -> Iterator[tuple[set[str], set[tuple[str, str]]]]:
    """Files and functions of ours that are called inside."""
    files: set[str] = set()
    called: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(f"{ROOT}/") or frame.f_code.co_name.startswith("<"):
            return
        path = path.removeprefix(f"{ROOT}/")
        if path.partition("/")[0] in PACKAGES:
            files.add(path)
            called.add((path, frame.f_code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield files, called
    finally:
        sys.setprofile(before)


def short_enough(name: str, files: set[str], called: set[tuple[str, str]]) -> None:
    assert len(files) <= WAYS[name][0], sorted(files)
    assert len(called) <= WAYS[name][1], sorted(called)


def write(path: Path, **row: Any) -> Path:
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def chat(tiny_base_folder: Path) -> Any:
    from data.chat.conversations import Chat
    from onebase.model import base as bases
    from onebase.recipe.sections import BaseSection, ChatSection

    section = BaseSection(model=str(tiny_base_folder), quantization="fp32")
    return Chat(*bases.load_tokenizer(section, ChatSection()), ChatSection())


def test_the_way_of_a_demonstration_to_its_tokens(tmp_path: Path, chat: Any) -> None:
    from data.chat.conversations import Limiter, encode_demonstrations
    from data.records import Demonstration
    from data.select.sources import Source, load
    from onebase.recipe.sections import LimitsSection

    file = write(tmp_path / "rows.jsonl", prompt="Say apple.", response="apple")
    sources, limits = [Source(source=str(file))], LimitsSection()  # a recipe is read before any row
    with counted() as way:
        rows = load(sources, Demonstration, seed=0).records
        encode_demonstrations(chat, rows, Limiter(limits))
    short_enough("demonstration", *way)


def test_the_way_of_a_ranking_to_its_gradient(tmp_path: Path, chat: Any, load_base: Callable[[str], Any]) -> None:
    import torch

    import reward.train
    from data.chat.conversations import Limiter, encode_rankings
    from data.records import Ranking
    from data.select.sources import Source, load
    from onebase.model.roles import Roles
    from onebase.recipe.sections import AdapterSection, LimitsSection

    file = write(tmp_path / "rows.jsonl", prompt="Name it?", responses=["a 0", "b 1", "c 2"], tiers=[0, 1, 1])
    roles = Roles(load_base("fp32"))
    roles.add("reward", AdapterSection(rank=4, alpha=8), generator=torch.Generator().manual_seed(0))
    roles.add_head("reward")
    roles.train("reward")
    assert roles.forwards.can_pack  # it is found out once a run
    sources, limits = [Source(source=str(file))], LimitsSection()  # a recipe is read before any row
    with counted() as way:
        rows = load(sources, Ranking, seed=0).records
        rankings = encode_rankings(chat, rows, Limiter(limits))
        reward.train.backward(roles, rankings, tokens_per_microbatch=512, loss_of=reward.train.LOSSES["bradley-terry"])
    short_enough("ranking", *way)


def test_the_way_of_prompts_through_a_step_of_ppo(
    tmp_path: Path, chat: Any, make_roles: Callable[..., "Roles"]
) -> None:
    import torch

    from data.chat.conversations import Limiter, encode_prompts
    from data.records import Prompt
    from data.select.sources import Source, load
    from onebase.memory import Budget
    from onebase.recipe.sections import LimitsSection
    from ppo.method import method_of
    from ppo.recipe.recipe import PpoRecipe
    from ppo.rollout import PpoState, collect
    from ppo.scores import PromptBatch
    from ppo.start import start_learner
    from ppo.update import update

    file = write(tmp_path / "rows.jsonl", prompt="Say apple.")
    roles = make_roles("policy", "reference", "reward")
    roles.add_head("reward")
    roles.copy("reward", "value")
    roles.train("policy", "value")
    assert roles.forwards.can_pack
    recipe = PpoRecipe.model_validate(
        {
            "base": {"model": "tiny"},
            "parents": {"sft": "a", "reward": "b"},
            "data": [{"source": str(file)}],
            "sampling": {"max_new_tokens": 8},
            "train": {"episodes": 8, "batch": 8, "minibatch": 4},
        }
    )
    learner, method = start_learner(roles, recipe), method_of(recipe)
    budget = Budget(tokens=recipe.train.tokens_per_microbatch, episodes=recipe.sampling.batch)
    draws = torch.Generator().manual_seed(0)
    sources, limits = [Source(source=str(file))], LimitsSection()  # a recipe is read before any row
    with counted() as way:
        rows = load(sources, Prompt, seed=0).records
        prompts = PromptBatch(chat=chat, prompts=encode_prompts(chat, rows, Limiter(limits)) * 8)
        state = PpoState(kl_weight=recipe.kl.weight)
        experience, _ = collect(roles, prompts, method, draws, budget, state)
        update(roles, experience, learner, method, draws, lambda norms, rows: True, budget, kl_weight=0.0)
    short_enough("prompts", *way)
