"""Which held-out rankings a report is about."""

import pytest

from data.records import Message, Origin, Prompt, Ranking, conversation_of
from evaluation.reward_model.heldout import untrained
from onebase.errors import DataError


def ranking(*messages: Message) -> Ranking:
    return Ranking(Prompt(messages, Origin("here", 1)), ("yes", "no"), (0, 1))


WHY, HOW = Message("user", "Why?"), Message("user", "How?")
ASKED, OTHER, LATER = ranking(WHY), ranking(HOW), ranking(HOW, Message("assistant", "So."), WHY)


def test_prompts_that_a_member_was_trained_on_are_left_out() -> None:
    assert untrained([ASKED, OTHER, LATER], [[OTHER], []]) == [ASKED, LATER]
    assert untrained([ASKED, OTHER, LATER], []) == [ASKED, OTHER, LATER]


def test_a_report_on_nothing_but_trained_prompts_is_refused() -> None:
    with pytest.raises(DataError, match=r"all 2 held-out rankings .* Pass others with --data"):
        untrained([ASKED, OTHER], [[OTHER], [ASKED]])


def test_conversations_that_end_alike_differ() -> None:
    assert len({conversation_of(record.prompt) for record in (ASKED, OTHER, LATER)}) == 3
