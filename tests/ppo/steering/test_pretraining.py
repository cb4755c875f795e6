"""PPO-ptx: which texts a mini-batch gets, their loss by the model's own forward, and gradients that add up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.chat.conversations import Chat
from data.select.texts import MANUAL, TextSource, cut, load_pieces
from evaluation.compare.language import as_episodes, lm_loss, piece_losses, piece_tokens
from onebase.errors import DataError
from onebase.inference.scoring import logprobs
from onebase.memory import Budget
from onebase.model.roles import Roles
from onebase.recipe.sections import ChatSection
from onebase.sequences.episodes import Episodes
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.recipe.steering import PretrainingSection
from ppo.rollout import Experience
from ppo.start import start_learner
from ppo.steering.pretraining import Pretraining, text_gradients
from ppo.update import backward

PIECES = [((5,), (9, 40, 7)), ((60, 61), (2,)), ((11,), (12, 13, 14, 15, 16)), ((8,), (3, 4))]
TOKENS = 11


def recipe_of(**train: object) -> PpoRecipe:
    return PpoRecipe.model_validate(
        {
            "base": {"model": "tiny"},
            "parents": {"sft": Path("sft"), "reward": Path("reward")},
            "data": ({"source": "builtin:tasks"},),
            "sampling": {"temperature": 0.7},
            "train": {"batch": 4, "minibatch": 2, "episodes": 8, **train},
        }
    )


def section_of(**options: object) -> PretrainingSection:
    return PretrainingSection.model_validate({"data": ({"source": "texts.jsonl", "text": "text"},), **options})


@pytest.fixture
def roles(make_roles: Callable[..., Roles]) -> Roles:
    return make_roles("policy", "other").train("policy")


def loss_by_definition(roles: Roles, pieces: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> torch.Tensor:
    """Mean over the predicted tokens of - log p, one text at a time, by the model's own forward."""
    total, count = torch.zeros(()), 0
    for context, predicted in pieces:
        ids = torch.tensor([[*context, *predicted]])
        with roles.active("policy"):
            logprobs = torch.log_softmax(roles.base.model(input_ids=ids).logits[0].float(), dim=-1)
        for place, token in enumerate(predicted, start=len(context)):
            total, count = total - logprobs[place - 1, token], count + 1
    return total / count


def gradients(roles: Roles) -> list[torch.Tensor]:
    grads = [parameter.grad for parameter in roles.parameters("policy")]
    assert all(grad is not None for grad in grads)
    return [grad.clone() for grad in grads if grad is not None]


def experience_of(episodes: Episodes, logprobs: torch.Tensor, advantages: torch.Tensor) -> Experience:
    zeros, rows = torch.zeros(episodes.mask.shape), torch.zeros(len(episodes))
    return Experience(
        episodes=episodes,
        stopped=rows.bool(),
        logprobs=logprobs,
        decoding_logprobs=None,
        importance=None,
        reference_logprobs=zeros,
        kl=zeros,
        scores=rows,
        terms={},
        members={},
        rewards=zeros,
        values=zeros,
        returns=zeros,
        advantages=advantages,
    )


def clear(roles: Roles) -> None:
    for parameter in roles.parameters("policy"):
        parameter.grad = None


def test_the_loss_is_the_mean_over_predicted_tokens(roles: Roles) -> None:
    expected = loss_by_definition(roles, PIECES).item()
    texts = as_episodes(PIECES, roles)
    assert lm_loss(roles, "policy", texts, tokens_per_microbatch=100) == pytest.approx(expected, abs=1e-5)
    assert text_gradients(roles, texts, weight=3.0, tokens_per_microbatch=5) == pytest.approx(expected, abs=1e-5)
    assert lm_loss(roles, "other", texts, tokens_per_microbatch=100) != pytest.approx(expected, abs=1e-3)
    alone = piece_losses(roles, "policy", texts, tokens_per_microbatch=5)
    lengths = [len(predicted) for _, predicted in PIECES]
    assert len(set(lengths)) > 1, "else it would not matter what a mean is over"
    losses = [loss_by_definition(roles, [piece]).item() * length for piece, length in zip(PIECES, lengths, strict=True)]
    assert alone == pytest.approx(losses, abs=1e-4)
    assert piece_tokens(texts) == lengths


@pytest.mark.parametrize("budget", [1, 100])
def test_the_gradient_of_a_step_is_the_sum_of_both(roles: Roles, budget: int) -> None:
    """Eq. 2: what was there, and gamma times the gradient of the texts' loss."""
    weight = 2.5
    loss_by_definition(roles, PIECES).backward()
    of_texts = gradients(roles)
    clear(roles)
    draws = torch.Generator().manual_seed(0)
    before = [torch.randn(parameter.shape, generator=draws) * 0.1 for parameter in roles.parameters("policy")]
    for parameter, gradient in zip(roles.parameters("policy"), before, strict=True):
        parameter.grad = gradient.clone()
    text_gradients(roles, as_episodes(PIECES, roles), weight=weight, tokens_per_microbatch=budget)
    for both, was, added in zip(gradients(roles), before, of_texts, strict=True):
        torch.testing.assert_close(both, was + weight * added, atol=1e-5, rtol=1e-4)


def test_all_texts_are_seen_before_one_comes_again_and_a_step_depends_on_its_number_alone(roles: Roles) -> None:
    recipe = recipe_of(epochs=2)  # 4 mini-batches a step, of 2 episodes
    pieces = [((1,), (token,)) for token in range(100, 112)]
    mix = Pretraining(roles, pieces, section_of(examples_per_episode=1.5), recipe.train, seed=0)
    seen = [mix.begin(step).chosen(minibatch) for step in (1, 2) for minibatch in range(4)]
    assert all(len(chosen) == 3 for chosen in seen)
    passes = [[*seen[0], *seen[1], *seen[2], *seen[3]], [*seen[4], *seen[5], *seen[6], *seen[7]]]
    assert [sorted(indices) for indices in passes] == [list(range(12))] * 2
    assert passes[0] != passes[1]
    fresh = Pretraining(roles, pieces, section_of(examples_per_episode=1.5), recipe.train, seed=0)
    assert fresh.begin(2).chosen(3) == seen[7]


def test_a_minibatch_that_is_tried_again_counts_once(roles: Roles) -> None:
    """Where memory runs out, a mini-batch is done anew in smaller pieces: its loss must not be counted twice."""
    mix = Pretraining(roles, PIECES, section_of(examples_per_episode=1.0), recipe_of().train, seed=0).begin(1)
    for minibatch in (0, 1, 0):
        mix.add_gradients(minibatch, 2048)
    losses = [
        loss_by_definition(roles, [PIECES[index] for index in mix.chosen(minibatch)]).item() for minibatch in (0, 1)
    ]
    assert mix.metrics == {"ppo/pretraining_loss": pytest.approx(sum(losses) / 2, abs=1e-5)}


def test_a_minibatch_has_ppos_gradient_and_gamma_times_that_of_its_texts(roles: Roles) -> None:
    """By the code of a run: PPO's own `backward`, and `Pretraining` with the recipe's gamma. An earlier mini-batch's
    gradient is gone, and texts have the micro-batches of PPO, halved where memory ran out."""
    recipe = recipe_of(epochs=2)
    recipe = recipe.model_copy(update={"advantages": recipe.advantages.model_copy(update={"kind": "rloo"})})
    episodes = Episodes.of([[5, 9], [7, 30, 22]], [[6, 2], [17, 18, 2]], pad_id=0)
    shape, draws = episodes.mask.shape, torch.Generator().manual_seed(3)
    advantages = torch.randn(shape, generator=draws)
    old = logprobs(roles, "policy", episodes, temperature=0.7, tokens_per_microbatch=64)
    batch, budget, budgets = experience_of(episodes, old, advantages), Budget(tokens=2048, halvings=1), list[int]()
    learner, method = start_learner(roles, recipe), method_of(recipe)
    backward(roles, batch, learner, method, budget)
    ppo = gradients(roles)
    clear(roles)
    mix = Pretraining(roles, PIECES, section_of(weight=2.5, examples_per_episode=1.0), recipe.train, seed=0).begin(1)
    loss_by_definition(roles, [PIECES[index] for index in mix.chosen(1)]).backward()
    texts = gradients(roles)

    def add(tokens: int) -> None:
        budgets.append(tokens)
        mix.add_gradients(1, tokens)

    for parameter in roles.parameters("policy"):
        parameter.grad = torch.full_like(parameter, 7.0)
    backward(roles, batch, learner, method, budget, add)
    assert budgets == [1024]
    least = min(max(float(gradient.abs().max()) for gradient in part) for part in (ppo, texts))
    assert least > 1e-3, "else there would be nothing to compare"
    for both, of_ppo, added in zip(gradients(roles), ppo, texts, strict=True):
        torch.testing.assert_close(both, of_ppo + 2.5 * added, atol=1e-3 * least, rtol=1e-4)


@pytest.fixture
def chat(load_base: Callable[[str], object]) -> Chat:
    base = load_base("fp32")
    return Chat.of(base, ChatSection())  # pyright: ignore[reportArgumentType] - the fixture's type is not imported here


def test_a_text_is_cut_into_pieces_that_together_are_its_tokens(chat: Chat) -> None:
    text = "Anna went to the market on Monday and bought seven red apples. <|im_end|> is text."
    ids = chat.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    pieces = cut(chat, text, tokens=4)
    assert [token for context, predicted in pieces for token in (*context, *predicted)] == ids[
        : len(ids) - len(ids) % 4 * (len(ids) % 4 == 1)
    ]
    assert all(len(context) == 1 and 1 <= len(predicted) <= 3 for context, predicted in pieces)
    assert chat.end_id not in ids


def test_plain_texts_come_from_any_file_by_their_key(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    lines = [json.dumps({"body": f"The answer is {number}."}) for number in range(100)]
    path.write_text("\n".join([*lines, json.dumps({"body": None})]) + "\n")
    source = {"source": str(path), "text": "body", "on_bad_row": "drop"}
    pieces, (identity,) = load_pieces([TextSource.model_validate(source)], chat, tokens=64, seed=0)
    decoded = {str(chat.tokenizer.decode([*context, *predicted])) for context, predicted in pieces}
    assert decoded == {f"The answer is {number}." for number in range(100)}
    assert (identity.kept, identity.dropped) == (100, {"no text": 1})
    held, train = (
        {*load_pieces([TextSource.model_validate(source | {"split": split})], chat, tokens=64, seed=0)[0]}
        for split in ("heldout", "train")
    )
    assert held and train and held | train == {*pieces} and not held & train


def test_the_manual_of_the_language_is_there_without_a_file(chat: Chat) -> None:
    source = {"source": MANUAL, "text": "text"}
    parts = {
        split: load_pieces([TextSource.model_validate(source | {"split": split})], chat, tokens=100_000, seed=0)
        for split in (None, "train", "heldout")
    }
    kept = {split: identities[0].kept for split, (_, identities) in parts.items()}
    assert kept["train"] + kept["heldout"] == kept[None] and kept["heldout"] >= 50
    train, held = ({*parts[split][0]} for split in ("train", "heldout"))
    assert train | held == {*parts[None][0]} and not train & held
    with pytest.raises(ValueError, match="holds plain texts: add `text: text`"):
        TextSource.model_validate({"source": MANUAL})
    with pytest.raises(DataError, match="builtin:python-manual has no split 'test'"):
        load_pieces([TextSource.model_validate(source | {"split": "test"})], chat, tokens=128, seed=0)


def test_a_row_without_a_text_is_named(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"body": "one two"}\n{"text": "three"}\n')
    with pytest.raises(DataError, match=r"texts\.jsonl:2: `body` should hold a text, found None"):
        load_pieces([TextSource.model_validate({"source": str(path), "text": "body"})], chat, tokens=64, seed=0)


def test_demonstrations_are_learned_as_in_sft(chat: Chat) -> None:
    source = TextSource.model_validate({"source": "builtin:tasks", "split": "sft", "rows": 3})
    pieces, _ = load_pieces([source], chat, tokens=500, seed=0)
    assert len(pieces) == 3
    assert all(predicted[-1] == chat.end_id for _, predicted in pieces)
    lengths = sorted(len(context) + len(predicted) for context, predicted in pieces)
    (shorter, *_), (identity,) = load_pieces([source], chat, tokens=lengths[1], seed=0)
    assert len(shorter[0]) + len(shorter[1]) <= lengths[1]
    assert (identity.kept, identity.dropped) == (2, {f"over {lengths[1]} tokens": 1})
    with pytest.raises(DataError, match="no text has 2 to 4 tokens"):
        load_pieces([source], chat, tokens=4, seed=0)
