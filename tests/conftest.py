"""A tiny random base that tests build themselves. Nothing of ours is imported here at the top: jaxtyping's hook, which
checks shapes in every signature, must be in place first."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest

if TYPE_CHECKING:
    from onebase.model.base import Base
    from onebase.model.roles import Roles

CORPUS = [
    "Sort these words: pear, apple, fig.",
    "What is the opposite of cold? Answer in one word.",
    "The answer is 42, and nothing else matters.",
    "Name the capital of the country. Reply with yes or no.",
    "Anna went to the market on Monday and bought seven red apples for her brother.",
    '{"name": "value", "city": "Paris", "age": 7}',
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789",
]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_base(folder: Path, *, seed: int) -> Path:
    """A small Llama with random weights and a byte-level tokenizer, saved as any model of the hub is."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float()
    torch.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_base_folder(shared_folder: Path) -> Path:
    """One for all workers: a run that one of them has finished names it, and another may go on with that run."""
    from filelock import FileLock

    folder = shared_folder / "base" / "tiny"
    with FileLock(shared_folder / "base.lock"):
        return folder if folder.exists() else build_base(folder, seed=0)


@pytest.fixture(scope="session")
def other_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape and tokenizer, other weights."""
    return build_base(tmp_path_factory.mktemp("base") / "other", seed=1)


@pytest.fixture(params=["fp32", "nf4"])
def quantization(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def load_base(tiny_base_folder: Path) -> "Callable[[str], Base]":
    def load(quantization: str) -> "Base":
        import torch

        from onebase.model.base import load
        from onebase.recipe.sections import BaseSection, ChatSection

        section = BaseSection.model_validate({"model": str(tiny_base_folder), "quantization": quantization})
        return load(section, ChatSection(), device=torch.device("cpu"))

    return load


@pytest.fixture(scope="session")
def zoo() -> Any:
    """tests/harness/zoo.py: tiny models of many architectures."""
    spec = importlib.util.spec_from_file_location("zoo", Path(__file__).parent / "harness" / "zoo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def zoo_roles(zoo: Any, load_base: "Callable[[str], Base]") -> "Callable[..., Roles]":
    """Roles without an adapter on a model of the zoo."""

    def make(name: str, **changes: Any) -> "Roles":
        import dataclasses

        from onebase.model.roles import Roles

        model = zoo.tiny(name, **changes).requires_grad_(False)
        return Roles(dataclasses.replace(load_base("fp32"), model=model))

    return make


@pytest.fixture
def make_roles(load_base: "Callable[[str], Base]") -> "Callable[..., Roles]":
    """Roles with random, non-zero adapters: B of a fresh LoRA is zero, which would hide which adapter is active."""

    def make(*names: str, quantization: str = "fp32") -> "Roles":
        import torch

        from onebase.model.roles import Roles
        from onebase.recipe.sections import AdapterSection

        roles = Roles(load_base(quantization))
        for index, name in enumerate(names):
            generator = torch.Generator().manual_seed(index)
            section = AdapterSection(rank=4, alpha=8)
            roles.add(name, section, generator=generator)
            for parameter in roles.parameters(name):
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return roles

    return make


STAGES = ("sft", "reward", "ppo", "dpo")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs", type=Path, help="Take finished runs from this folder, and leave them there.")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """One folder for all workers of this test run."""
    if (runs := request.config.getoption("--runs")) is not None:
        return runs
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def finish_run(shared_folder: Path, tiny_base_folder: Path) -> Callable[[str], Path]:
    """The whole chain of recipes/smoke on the tiny base, through the real command line, once per quantisation."""

    from filelock import FileLock, Timeout

    def make(quantization: str, *, timeout: float) -> bool:
        """Whether it is there now; False where another worker is at it for longer than the timeout in seconds."""
        try:
            with FileLock(shared_folder / f"smoke-{quantization}.lock", timeout=timeout):
                if not (shared_folder / f"smoke-{quantization}" / "summary.json").is_file():
                    run_chain(shared_folder, tiny_base_folder, quantization)
        except Timeout:
            return False
        return True

    def finish(quantization: str) -> Path:
        if not make(quantization, timeout=0):
            # Another worker makes this one, which takes a minute: in it the other one can be made.
            make("nf4" if quantization == "fp32" else "fp32", timeout=0)
            make(quantization, timeout=-1)
        return shared_folder / f"smoke-{quantization}"

    return finish


def run_chain(runs: Path, base: Path, quantization: str) -> None:
    import subprocess
    import sys

    each = [*STAGES, "compare"]
    command = [
        *(sys.executable, "-m", "pipeline", "run", "recipes/smoke"),
        *(f"runs_dir={runs}", f"name=smoke-{quantization}"),
        *(f"{stage}.base.model={base}" for stage in each),
        *(f"{stage}.base.quantization={quantization}" for stage in each),
    ]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def finished_run(finish_run: Callable[[str], Path], quantization: str) -> Path:
    """runs/<name> of the finished chain, in fp32 and in NF4. Never write into it: all tests share it."""
    return finish_run(quantization)


PARENTS = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward"), "dpo": ("sft",)}


@pytest.fixture
def make_recipe(
    request: pytest.FixtureRequest, tiny_base_folder: Path, finish_run: Callable[[str], Path], tmp_path: Path
) -> Callable[..., Any]:
    """The smoke recipe of the stage in whose folder the test is (tests/ppo: PPO), on the tiny base, with stages of the
    finished run as its parents. `overrides` come last, so they may change any of this."""
    stage = request.path.relative_to(Path(__file__).parent).parts[0]
    smoke = Path(__file__).parents[1] / "recipes" / "smoke"

    def make(*overrides: str, out: str = stage, quantization: str = "fp32") -> Any:
        from onebase.recipe import reader
        from pipeline import stages

        settings = [
            *(f"base.model={tiny_base_folder}", f"base.quantization={quantization}"),
            *(f"out={tmp_path / out}", "track.wandb=off"),
            *(f"parents.{name}={finish_run(quantization) / name}" for name in PARENTS[stage]),
        ]
        return reader.read(smoke / f"{stage}.yaml", stages.loader(stage)()[0], [*settings, *overrides])

    return make


@pytest.fixture
def make_quantized(make_recipe: Callable[..., Any], quantization: str) -> Callable[..., Any]:
    """`make_recipe` in fp32, and again in NF4."""
    return partial(make_recipe, quantization=quantization)


@pytest.fixture(scope="session")
def other_rewards(finish_run: Callable[[str], Path], shared_folder: Path, tiny_base_folder: Path) -> list[Path]:
    """Three finished reward stages on one SFT stage: the run's own, and two with other seeds. Never write into them."""
    from filelock import FileLock

    from onebase.recipe import reader
    from reward.recipe import RewardRecipe
    from reward.train import run

    home = finish_run("fp32")
    folders = [home / "reward"]
    for seed in (1, 2):
        folder = shared_folder / f"reward-of-seed-{seed}" / "reward"
        with FileLock(shared_folder / f"reward-of-seed-{seed}.lock"):
            if not (folder / "stage.json").is_file():
                settings = [f"base.model={tiny_base_folder}", f"parents.sft={home / 'sft'}", "track.wandb=off"]
                sizes = ["train.learning_rate=3e-3", f"seed={seed}", f"out={folder}"]
                run(reader.read("recipes/smoke/reward.yaml", RewardRecipe, [*settings, *sizes]))
        folders.append(folder)
    return folders
