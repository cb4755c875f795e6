"""Chat templates and tokenizers in the forms that publishers give them, small enough for a test to build.

The templates say what those of the named models say in the parts that matter here; they are not copies.
"""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

TEXTS = (
    "Sort these words: pear, apple, fig. The answer is 42, and nothing else matters.",
    "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789",
    "Yes, it is. USER: hello ASSISTANT: Yes user assistant system model",
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}User: {{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}Assistant: {{ m.content }}{{ eos_token }}"
    "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} {% elif m.role == 'user' %}"
    "USER: {{ m.content }}{% else %} ASSISTANT: {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}"
    "{% elif m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{% set ns = namespace(system='') %}{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.system = m.content + '\n\n' %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}{{ ns.system }}{% endif %}"
    "{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
HARMONY = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if loop.last %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>{% else %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% else %}"
    "<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
QWEN_3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content"
    " else '' %}<|im_start|>assistant\n{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n"
    "{% endif %}{{ content }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system message') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CLOSED_BY_A_LINE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_of(
    kind: str,
    template: str,
    control: tuple[str, ...],
    *,
    end: str,
    begin: str | None = None,
    content: tuple[str, ...] = (),
    special_content: tuple[str, ...] = (),
) -> PreTrainedTokenizerFast:
    """kind: bytes (GPT-2's form), first or always (SentencePiece's, with a space before the first stretch of a text, or
    before each). control, special_content: special tokens; content: ordinary added ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    special = ["<pad>", "<unk>", *control]
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = ["▁", "\n"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, max_token_length=8, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    if kind == "always":  # trained by words, as SentencePiece is, and used without cutting at them
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if kind != "bytes":
        backend = _without_byte_marks(backend, special[2 + len(control) :])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special_content])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in content])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, bos_token=begin, pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


def _without_byte_marks(backend: Any, marks: Sequence[str]) -> Any:
    """Bytes are pieces of the vocabulary, and no text spells them."""
    import json

    from tokenizers import Tokenizer

    rules = json.loads(backend.to_str())
    rules["added_tokens"] = [token for token in rules["added_tokens"] if token["content"] not in set(marks)]
    return Tokenizer.from_str(json.dumps(rules))


MARKS = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
FORMATS: dict[str, PreTrainedTokenizerFast] = {}


def build() -> dict[str, PreTrainedTokenizerFast]:
    """All formats by name, made once a process."""
    if FORMATS:
        return FORMATS
    headers = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    harmony = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")
    sentences = {"control": ("<s>", "</s>"), "begin": "<s>", "end": "</s>"}
    FORMATS.update(
        {
            "chatml": tokenizer_of("bytes", CHATML, MARKS, end="<|im_end|>"),
            "llama-3": tokenizer_of("bytes", LLAMA_3, headers, begin="<|begin_of_text|>", end="<|eot_id|>"),
            "deepseek": tokenizer_of("bytes", DEEPSEEK, **sentences),
            "vicuna": tokenizer_of("first", VICUNA, **sentences),
            "vicuna-bytes": tokenizer_of("bytes", VICUNA, **sentences),
            "llama-2": tokenizer_of("always", LLAMA_2, **sentences),
            "llama-2-first": tokenizer_of("first", LLAMA_2, **sentences),
            "chatml-sentencepiece": tokenizer_of("first", CHATML, MARKS, end="<|im_end|>"),
            "chatml-llama-2": tokenizer_of("always", CHATML, MARKS, end="<|im_end|>"),
            "mistral": tokenizer_of("first", MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), begin="<s>", end="</s>"),
            "harmony": tokenizer_of("bytes", HARMONY, harmony, end="<|return|>"),
            "qwen-3": tokenizer_of("bytes", QWEN_3, MARKS, end="<|im_end|>", content=THINK),
            "qwen-3-special": tokenizer_of("bytes", QWEN_3, MARKS, end="<|im_end|>", special_content=THINK),
            "gemma": tokenizer_of(
                "bytes", GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), begin="<bos>", end="<end_of_turn>"
            ),
            "closed-by-a-line": tokenizer_of("bytes", CLOSED_BY_A_LINE, MARKS, end="<|im_end|>"),
        }
    )
    return FORMATS
