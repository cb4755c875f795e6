"""Turn marks of many models, for looking at data without a tokenizer."""

import re

from data.records import Record

WELL_KNOWN = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|end_of_text|begin_of_text|start_header_id|end_header_id"
    r"|system|user|assistant|end|start|channel|message|return|call|end_of_turn|start_of_role|end_of_role)\|>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<<SYS>>|</?s>|<(?:bos|eos)>"
    r"|<\uff5c(?:User|Assistant|begin\u2581of\u2581sentence|end\u2581of\u2581sentence)\uff5c>"
)
"""Control tokens of ChatML, Llama 2 to 4, Mistral, Gemma, Phi, Harmony, Granite and DeepSeek."""


def spells_known_mark(record: Record) -> bool:
    """Whether a text of the record spells one: a mistake, or an attempt to write another speaker's turn."""
    contents = (message.content for message in record.prompt.messages)
    return any(WELL_KNOWN.search(text) is not None for text in (*contents, *record.responses))
