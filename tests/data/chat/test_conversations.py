"""Conversations as tokens: what is shown to the model, what is learned, and where a response ends."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.chat.conversations import IGNORED, Chat, EncodedDemonstration, Limiter, encode_demonstrations, encode_rankings
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from onebase.errors import DataError
from onebase.model.base import Base, load_tokenizer
from onebase.recipe.sections import BaseSection, ChatSection, LimitsSection

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = 2  # <|im_end|> of the tiny base
QUESTION = Prompt((Message("user", "Sort: pear, fig."),), Origin("here", 1))


@pytest.fixture
def base(load_base: Callable[[str], Base]) -> Base:
    return load_base("fp32")


def test_only_the_response_is_learned_and_its_end_with_it() -> None:
    encoded = EncodedDemonstration(prompt_ids=(5, 6, 7), response_ids=(8, 9, END))
    assert encoded.input_ids == [5, 6, 7, 8, 9, END]
    assert encoded.labels == [IGNORED, IGNORED, IGNORED, 8, 9, END]


def test_a_demonstration_reads_as_the_template_says_and_stops_at_its_end_token(base: Base) -> None:
    chat, record = Chat.of(base, ChatSection()), Demonstration(QUESTION, "fig, pear")
    (encoded,) = encode_demonstrations(chat, [record], Limiter(LimitsSection()))
    assert base.tokenizer.decode(encoded.input_ids) == (
        "<|im_start|>user\nSort: pear, fig.<|im_end|>\n<|im_start|>assistant\nfig, pear<|im_end|>"
    )
    learned = [token for token in encoded.labels if token != IGNORED]
    assert base.tokenizer.decode(learned) == "fig, pear<|im_end|>"


def test_prompts_bring_the_system_message_of_the_recipe_unless_they_have_their_own(base: Base) -> None:
    chat = Chat.of(base, ChatSection(system="Be brief."))
    kindly = Prompt((Message("system", "Be kind."), *QUESTION.messages), QUESTION.origin)
    for prompt, system in ((QUESTION, "Be brief."), (kindly, "Be kind.")):
        assert base.tokenizer.decode(list(chat.prompt_ids(prompt))) == (
            f"<|im_start|>system\n{system}<|im_end|>\n"
            "<|im_start|>user\nSort: pear, fig.<|im_end|>\n<|im_start|>assistant\n"
        )


def test_a_template_that_writes_todays_date_gives_the_same_tokens_every_day(base: Base, tmp_path: Path) -> None:
    """Llama 3.2's does: a run that goes on after midnight would go on with other prompts."""
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    section = BaseSection(model=base.identity.model, quantization="fp32")
    dated = ChatSection(template=tmp_path / "dated.jinja")
    chat = Chat(*load_tokenizer(section, dated), dated)
    assert str(chat.tokenizer.decode(list(chat.prompt_ids(QUESTION)))).startswith("26 Jul 2024\n<|im_start|>user")


def test_each_response_of_a_ranking_is_joined_to_the_prompt_and_ended(base: Base) -> None:
    chat = Chat.of(base, ChatSection())
    ranking = Ranking(QUESTION, ("fig, pear", "pear"), (0, 1))
    (encoded,) = encode_rankings(chat, [ranking], Limiter(LimitsSection()))
    prompt = "<|im_start|>user\nSort: pear, fig.<|im_end|>\n<|im_start|>assistant\n"
    assert [base.tokenizer.decode(list(ids)) for ids in encoded.sequences] == [
        f"{prompt}fig, pear<|im_end|>",
        f"{prompt}pear<|im_end|>",
    ]


def test_the_end_token_counts_towards_the_limit(base: Base) -> None:
    chat, demonstration = Chat.of(base, ChatSection()), Demonstration(QUESTION, "fig")
    length = len(base.tokenizer.encode("fig", add_special_tokens=False))
    assert encode_demonstrations(chat, [demonstration], Limiter(LimitsSection(response_tokens=length + 1)))
    with pytest.raises(DataError, match=rf"here:1: the response is {length + 1} tokens"):
        encode_demonstrations(chat, [demonstration], Limiter(LimitsSection(response_tokens=length)))
