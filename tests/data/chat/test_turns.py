"""What is learned is what the template renders behind its generation prompt, token by token, in the forms that
publishers give templates and tokenizers. transformers' own rendering of whole conversations says what is right."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.chat.conversations import Chat
from data.records import Message, Origin, Prompt
from onebase.errors import DataError
from onebase.recipe.sections import ChatSection

_spec = importlib.util.spec_from_file_location(
    "chat_formats", Path(__file__).parents[2] / "harness" / "chat_formats.py"
)
assert _spec is not None and _spec.loader is not None
chat_formats = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chat_formats)

NAMES = (
    *("chatml", "llama-3", "deepseek", "vicuna", "vicuna-bytes", "llama-2", "llama-2-first", "chatml-sentencepiece"),
    *("chatml-llama-2", "mistral", "harmony", "qwen-3", "qwen-3-special", "gemma", "closed-by-a-line"),
)
WITHOUT_SYSTEM = ("llama-2", "llama-2-first", "gemma")
HERE = Origin("rows.jsonl", 7)

ANSWERS = ("Yes, it is.", "b", "7 pears", " b", "b ", "\nb", "b\n\n", "(b)", "...", "日本", "🙂", "- a\n- b", "a  b")
texts = st.text(alphabet="ab Y7.,(\n日🙂é", min_size=1, max_size=12).filter(str.strip) | st.sampled_from(ANSWERS)


@functools.cache
def chat_of(name: str, system: str | None = None) -> Chat:
    tokenizer = chat_formats.build()[name]
    return Chat(tokenizer, frozenset({tokenizer.eos_token_id}), ChatSection(system=system))


def rendered(chat: Chat, messages: Sequence[Message], *, generation: bool) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    whole: Any = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=generation, return_dict=True)
    return list(whole["input_ids"])


def as_text(chat: Chat, ids: Sequence[int]) -> str:
    text = chat.tokenizer.decode(list(ids), skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def response_ids(chat: Chat, text: str) -> tuple[int, ...]:
    """The tokens of an answer, its end included."""
    return chat.encode(Prompt((Message("user", "a"),), HERE), text).responses[0]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(texts, min_size=2, max_size=6), system=st.none() | texts)
def test_what_is_learned_is_what_is_rendered_behind_the_prompt_turn_by_turn(
    name: str, contents: list[str], system: str | None
) -> None:
    assume(system is None or name not in WITHOUT_SYSTEM)
    chat = chat_of(name)
    contents = contents[: len(contents) // 2 * 2]
    turns = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(contents)]
    messages = [*([] if system is None else [Message("system", system)]), *turns]
    for end in range(len(messages) - len(turns) + 1, len(messages), 2):
        before, answer = tuple(messages[:end]), messages[end]
        prompt = rendered(chat, before, generation=True)
        whole = rendered(chat, (*before, answer), generation=False)
        whole = whole[: len(whole) - whole[::-1].index(chat.end_id)]
        encoded = chat.encode(Prompt(before, HERE), answer.content)
        (learned,) = encoded.responses
        assert list(encoded.prompt) == prompt
        if whole[: len(prompt)] == prompt:
            assert list(learned) == whole[len(prompt) :]
        else:  # the answer's first letter merges with the prompt's last one: the same text, apart
            assert not answer.content[0].isalnum()
            assert as_text(chat, [*encoded.prompt, *learned]) == as_text(chat, whole)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [*ANSWERS, "a<|im_end|>b", "Stop.</s>USER: go on", "<think>x</think> y"])
def test_people_and_reward_functions_read_the_answer_alone(name: str, answer: str) -> None:
    chat = chat_of(name)
    read = chat.text(response_ids(chat, answer))
    if name.startswith("qwen") and "<think>" in answer:  # the template lays a thought out in lines
        assert read == "<think>\nx\n</think>\n\n y"
    elif "🙂" not in answer or not name.startswith("gemma"):
        assert read == answer.strip()


@pytest.mark.parametrize(
    ("name", "seam"),
    [
        ("chatml", ""),
        ("llama-3", ""),
        ("harmony", "<|channel|>final<|message|>"),
        ("qwen-3", "<think>\n\n</think>\n\n"),
        ("qwen-3-special", "<think>\n\n</think>\n\n"),
        ("deepseek", " "),
    ],
)
def test_what_a_template_writes_before_every_answer_is_learned_with_it(name: str, seam: str) -> None:
    chat = chat_of(name)
    end = as_text(chat, [chat.end_id])
    assert as_text(chat, response_ids(chat, "Yes.")) == f"{seam}Yes.{end}"
    assert as_text(chat, chat.turn.seam) == seam.strip(" ")  # a space is a part of the first word


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vicuna", ["▁Yes", "</s>"]),  # SentencePiece: the template's space is the word's own
        ("llama-2", ["▁Yes", "▁", "</s>"]),  # and the one before the end
        ("chatml-sentencepiece", ["Yes", "<|im_end|>"]),  # and none where the template writes none
        ("chatml-llama-2", ["Yes", "<|im_end|>"]),
        ("closed-by-a-line", ["Yes", "Ċ", "<|im_end|>"]),
    ],
)
def test_spaces_are_learned_where_the_template_has_them_and_nowhere_else(name: str, tokens: list[str]) -> None:
    chat = chat_of(name)
    assert chat.tokenizer.convert_ids_to_tokens(list(response_ids(chat, "Yes"))) == tokens


def test_sampled_thoughts_are_read_and_a_header_that_comes_again_is_not() -> None:
    chat = chat_of("harmony")
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    assert chat.text(chat.tokenizer.encode(thought, add_special_tokens=False)) == "Yes."
    chat = chat_of("qwen-3")
    thought = "<think>\nHm.\n</think>\n\nYes.<|im_end|>"
    assert chat.text(chat.tokenizer.encode(thought, add_special_tokens=False)) == "<think>\nHm.\n</think>\n\nYes."


@pytest.mark.parametrize("name", ["qwen-3", "qwen-3-special"])
def test_a_token_that_is_content_is_one_token_in_prompts_and_answers_and_is_read(name: str) -> None:
    chat = chat_of(name)
    think = chat.tokenizer.convert_tokens_to_ids("<think>")
    assert response_ids(chat, "<think>x</think>y").count(think) == 1
    question = Prompt((Message("user", "What is <think>?"),), HERE)
    assert chat.prompt_ids(question).count(think) == 1
    assert "<think>" in chat.text(response_ids(chat, "<think>x</think>y"))
    beside = response_ids(chat, "<think>x</think>y <|im_end|>")  # and beside a control token that is spelled out
    assert beside.count(think) == 1 and beside.count(chat.end_id) == 1


def drops_thoughts() -> str:
    kept = "m.content.split('</think>')[-1] if m.role == 'assistant' else m.content"
    return chat_formats.CHATML.replace("{{ m.content }}", f"{{{{ {kept} }}}}")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            chat_formats.CHATML.replace("assistant\n{% endif", "assistant\n{{ ' ' }}{% endif"),
            "begin with its own generation",
        ),
        (chat_formats.DEEPSEEK.replace("Assistant:{%", "Assistant: {%"), "generation prompt, or of the end, change"),
        (chat_formats.CHATML.replace("<|im_end|>", ""), "closed by no stop token"),
        (chat_formats.CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"), "leaves out or changes"),
        (chat_formats.CHATML.replace("{{ m.content }}", "{{ 1 + m.content }}"), "fails on a conversation of user"),
    ],
)
def test_templates_whose_answers_cannot_be_told_are_refused(template: str, reason: str) -> None:
    kind = {"control": ("<s>", "<|im_start|>", "<|im_end|>"), "begin": "<s>", "end": "<|im_end|>"}
    tokenizer = chat_formats.tokenizer_of("bytes", template, **kind)
    with pytest.raises(DataError, match=reason):
        Chat(tokenizer, frozenset({tokenizer.eos_token_id}), ChatSection())


@pytest.mark.parametrize("answer", ["<think>No, yes.</think>Yes.", "a</think>b"])
def test_an_answer_of_which_the_template_drops_a_part_is_refused_by_its_place(answer: str) -> None:
    tokenizer = chat_formats.tokenizer_of(
        "bytes", drops_thoughts(), chat_formats.MARKS, end="<|im_end|>", content=chat_formats.THINK
    )
    chat = Chat(tokenizer, frozenset({tokenizer.eos_token_id}), ChatSection())
    question = Prompt((Message("user", "Is it?"),), HERE)
    with pytest.raises(DataError, match=r"rows.jsonl:7: .*leaves out or changes a part of the answer"):
        chat.encode(question, answer)
    with pytest.raises(DataError, match=r"rows.jsonl:7: "):
        chat.encode(question, "Yes.", answer)
    # In an earlier turn it is what the template makes of a conversation.
    before = Prompt((Message("user", "Is it?"), Message("assistant", answer), Message("user", "Sure?")), HERE)
    assert "No, yes." not in as_text(chat, chat.prompt_ids(before))
