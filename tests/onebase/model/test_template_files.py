"""Templates as editors save them: with a byte order mark, in another encoding, damaged."""

import json
import shutil
from pathlib import Path

import pytest

from onebase.errors import BaseError
from onebase.model.base import identify, load_tokenizer
from onebase.recipe.sections import BaseSection, ChatSection

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\né{{ m.content }}<|im_end|>\n{% endfor %}"


def copy_of(base: Path, folder: Path) -> BaseSection:
    shutil.copytree(base, folder)
    return BaseSection.model_validate({"model": str(folder), "quantization": "fp32"})


def test_a_byte_order_mark_is_no_part_of_a_template(tiny_base_folder: Path, tmp_path: Path) -> None:
    section = copy_of(tiny_base_folder, tmp_path / "base")
    hashes: list[str] = []
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "t.jinja").write_text(TEMPLATE, encoding=encoding)
        with_mark = ChatSection(template=tmp_path / "t.jinja")
        assert load_tokenizer(section, with_mark)[0].chat_template == TEMPLATE
        hashes.append(identify(section, with_mark)[1].template_sha256)
        (tmp_path / "base" / "chat_template.jinja").write_text(TEMPLATE, encoding=encoding)
        assert load_tokenizer(section, ChatSection())[0].chat_template == TEMPLATE
        hashes.append(identify(section, ChatSection())[1].template_sha256)
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (TEMPLATE.encode("utf-16"), ":1: the file is UTF-16"),
        (b"\0{\0{\0 \0m\0}\0}", ":1: the file holds a zero byte"),
        (TEMPLATE.encode("latin-1"), r":2: the file is not UTF-8 \(byte 0xe9\)"),
        (b"{{ messages }}\n\n\x80", r":3: the file is not UTF-8 \(byte 0x80\)"),
    ],
)
def test_other_encodings_are_refused_by_name_and_line(
    tiny_base_folder: Path, tmp_path: Path, raw: bytes, reason: str
) -> None:
    section = copy_of(tiny_base_folder, tmp_path / "base")
    (tmp_path / "t.jinja").write_bytes(raw)
    with pytest.raises(BaseError, match=f"chat.template: .*t.jinja{reason}"):
        load_tokenizer(section, ChatSection(template=tmp_path / "t.jinja"))
    (tmp_path / "base" / "chat_template.jinja").write_bytes(raw)
    with pytest.raises(BaseError, match=f"base.model: .*chat_template.jinja{reason}"):
        load_tokenizer(section, ChatSection())


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
def test_an_empty_template_is_refused(tiny_base_folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.jinja").write_bytes(content)
    section = BaseSection.model_validate({"model": str(tiny_base_folder), "quantization": "fp32"})
    with pytest.raises(BaseError, match=r"t.jinja is empty"):
        load_tokenizer(section, ChatSection(template=tmp_path / "t.jinja"))


def test_generation_settings_with_a_byte_order_mark_are_read(tiny_base_folder: Path, tmp_path: Path) -> None:
    section = copy_of(tiny_base_folder, tmp_path / "base")
    settings = tmp_path / "base" / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [2, 1]}), encoding="utf-8-sig")
    assert load_tokenizer(section, ChatSection())[1] == {1, 2}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"eos_token_id": [2,', "is not valid JSON"),
        ('{"é": 1}'.encode("latin-1"), "is not valid JSON"),
        (b'{"eos_token_id": "<|im_end|>"}', "expected a token's number"),
        (b'{"eos_token_id": [2, null]}', "expected a token's number"),
    ],
)
def test_broken_generation_settings_are_refused_by_name(
    tiny_base_folder: Path, tmp_path: Path, content: bytes, reason: str
) -> None:
    section = copy_of(tiny_base_folder, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_bytes(content)
    with pytest.raises(BaseError, match=f"generation_config.json.*{reason}"):
        load_tokenizer(section, ChatSection())
