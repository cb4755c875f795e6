"""Finds long sentences and banned words in documents, docstrings and error texts; exits with 1 when there are any.

    python tests/harness/prose.py                     everything
    python tests/harness/prose.py --only docs         one part: docs, docstrings or errors
    python tests/harness/prose.py --means README.md   also lists the mean sentence of each file

A sentence ends at a full stop, a question mark, or the end of its paragraph. Code, headings, claims comments and the
targets of links do not count. Cells of tables are only searched for banned words. A code span, a placeholder or an
interval is one word. Documents are measured one by one. Docstrings and errors are measured by package, because most
modules have only a few sentences.
"""

import argparse
import ast
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEAN = 17
"""Most words of a mean sentence."""
LONGEST = 40
"""Most words of any sentence."""

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/**/*.md")
PACKAGES = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline", "examples")
PARTS = ("docs", "docstrings", "errors")
SPEAKERS = {"say", "warn"}
"""Functions with a text for the user as an argument, besides the exceptions of `raise`."""

OF = r"of (?:(?!instead|out)[\w'-]+ ){1,3}"

BANNED = (
    (r"likeliest", "greedy, or most probable"),
    (r"what is sampled", "sampled responses"),
    (r"of (?:one's|his|its|your) own kind|one's own", "custom, or your"),
    (r"mend(?:s|ed|ing)?", "fix"),
    (r"(?:goes|go|going|went|gone) on(?! to\b)", "continue, or resume"),
    (r"(?<!under)(?:stand|stands|stood)(?! for\b| still\b|-)", "is"),
    (r"by (?:itself|themselves)", "automatically, or alone"),
    (r"(?:is|are|was|be) said(?! of\b)", "is reported, or printed"),
    (r"says? nothing", "has no effect, or no information"),
    (r"whose", "with, or two sentences"),
    (r"(?:what|as) (?:is|was|were) asked", "the prompt, or as requested"),
    (r"(?<!there )(?:is|are|was|were|be) none", "does not exist, or has no X"),
    (r"(?<!there )(?:is|are|was|were|be) no (?!longer|more|less|fewer|larger|smaller|slower)\w+", "is not a"),
    (r"(?<=[,;:] )for (?:it|they|he|she|we|there|nothing|nobody|none|neither)", "because"),
    (r"so that", "so, or two sentences"),
    (rf"(?<!instead )(?<!out ){OF}{OF}of", "at most two of's: use two sentences, or 's"),
    (r"(?:is|are|was|were) told", "is given, or is distinguished"),
    (r"alarms? (?:that )?(?:rings?|rang|ringing)", "an alarm is raised"),
    (r"(?:come|comes|came) apart", "diverge"),
    (r"inner epochs?", "epochs"),
    (r"(?:a|by a) hair", "slightly"),
    (r"but for", "except"),
    (r"of before", "earlier"),
    (r"anew", "again"),
    (r"passed over", "skipped, or ignored"),
    (r"without a word", "silently"),
    (r"as (?:it|they|torch|trl) comes?", "by default"),
)
"""Words of our former dialect, with what to write instead. A pattern hits only the banned sense of a word."""

WORDS = tuple((re.compile(rf"(?<![\w-]){pattern}(?![\w-])", re.IGNORECASE), plain) for pattern, plain in BANNED)
INTERVAL = re.compile(r"\s?\[[-+]?\d[\d.]*,\s[-+]?\d[\d.]*\]")
SPAN = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)|<?https?://\S+")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
SHORT = re.compile(r"\b(e\.g|i\.e|et al|eq|eqs|vs|cf|sec|fig|approx|Sect)\.")
END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_]*[A-Z`\d\[_]|\w+: )")
"""The end of a sentence: another one follows, or `name:` of a parameter."""
ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s+")


@dataclass(frozen=True)
class Sentence:
    part: str
    path: str
    line: int
    text: str
    measured: bool = True
    """Whether its length counts; that of a table's cell does not."""

    @property
    def words(self) -> int:
        return len(re.findall(r"\S*\w\S*", self.text))

    @property
    def group(self) -> str:
        """What its mean is over: a document, or a package."""
        return self.path if self.part == "docs" else f"{self.path.split('/')[0]}: {self.part}"

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(line within the text, sentence) of one paragraph."""
    text = SHORT.sub(r"\1", INTERVAL.sub("", text))
    start = 0
    for end in [*(match.end() for match in END.finditer(text)), len(text)]:
        if words := " ".join(text[start:end].split()):
            yield text.count("\n", 0, start), words
        start = end


def blank(match: re.Match[str]) -> str:
    """Nothing, with the line breaks of what it replaces."""
    return "\n" * match[0].count("\n")


def paragraphs(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of each paragraph and list item of Markdown, without code, tables and headings."""
    text = COMMENT.sub(blank, text)
    text = re.sub(r"^ *```.*?^ *```[^\n]*$", blank, text, flags=re.DOTALL | re.MULTILINE)
    text = LINK.sub(lambda match: match[1] or "LINK", text)
    text = SPAN.sub(lambda match: "CODE" + blank(match), text)
    start, block, listed = 0, list[str](), False
    for number, line in enumerate([*text.splitlines(), ""]):
        item = ITEM.match(line)
        code = line.startswith("    ") and not block and not listed
        skipped = not line.strip() or code or line.lstrip().startswith(("|", "#", "<"))
        if block and (skipped or item):
            yield start, "\n".join(block)
            block = []
        if line.strip():
            # What is indented below an item belongs to the list, not to a block of code.
            listed = item is not None or (listed and line.startswith(" "))
        if not skipped:
            start = start if block else number
            block.append(line[item.end() :] if item else line)


def cells(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each cell of Markdown's tables, without a column of bad examples (headed "before")."""
    head = None
    for number, line in enumerate(LINK.sub(lambda match: match[1], COMMENT.sub(blank, text)).splitlines()):
        if not line.startswith("|"):
            head = None
            continue
        row = [SPAN.sub("CODE", cell).strip() for cell in re.split(r"(?<!\\)\|", line)]
        head = head or row
        yield from ((number, cell) for place, cell in enumerate(row) if head[place : place + 1] != ["before"])


def document(path: Path, name: str) -> Iterator[Sentence]:
    text = path.read_text("utf-8")
    for start, block in paragraphs(text):
        yield from (Sentence("docs", name, start + line + 1, words) for line, words in sentences(block))
    yield from (Sentence("docs", name, line + 1, cell, measured=False) for line, cell in cells(text))


def docstrings(tree: ast.AST, name: str) -> Iterator[Sentence]:
    """Of modules, classes and functions, and the texts under fields and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield from docstring(value.value, statement.lineno, name)


def docstring(text: str, first: int, name: str) -> Iterator[Sentence]:
    head, _, rest = text.partition("\n")
    for start, block in paragraphs(f"{head.strip()}\n{textwrap.dedent(rest)}"):
        yield from (Sentence("docstrings", name, first + start + line, words) for line, words in sentences(block))


def errors(tree: ast.AST, name: str) -> Iterator[Sentence]:
    """What exceptions, `say`, warnings and the help of options tell a user."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            texts = [*node.exc.args, *(keyword.value for keyword in node.exc.keywords)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in SPEAKERS:
            texts = node.args
        elif isinstance(node, ast.keyword) and node.arg == "help":
            texts = [node.value]
        else:
            continue
        for expression in texts:
            for text in literals(expression):
                # A place or a single word is not a sentence.
                if len(text.split()) > 2:
                    text = SPAN.sub("CODE", text)
                    yield from (Sentence("errors", name, expression.lineno, words) for _, words in sentences(text))


def literals(node: ast.expr) -> Iterator[str]:
    """The texts of an expression; {} is what it fills in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(value.value) if isinstance(value, ast.Constant) else "CODE" for value in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield "".join([*literals(node.left), *literals(node.right)])
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))
    elif isinstance(node, ast.Call):
        yield from (text for argument in node.args for text in literals(argument))


def read(root: Path, parts: Iterable[str]) -> Iterator[Sentence]:
    if "docs" in parts:
        for path in sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)}):
            yield from document(path, str(path.relative_to(root)))
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name, tree = str(path.relative_to(root)), ast.parse(path.read_text("utf-8"))
        if "docstrings" in parts:
            yield from docstrings(tree, name)
        if "errors" in parts:
            yield from errors(tree, name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="only files that begin with one of these")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--means", action="store_true", help="list the mean of each document and package")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree that is read")
    options = parser.parse_args(arguments)
    every = [
        sentence
        for sentence in read(options.root, (options.only,) if options.only else PARTS)
        if not options.paths or sentence.path.startswith(tuple(options.paths))
    ]
    return report(sorted(every, key=lambda sentence: -sentence.words), means=options.means)


def report(every: list[Sentence], *, means: bool) -> int:
    """Prints what is wrong; the exit code."""
    groups = defaultdict[str, list[int]](list)
    for sentence in every:
        if sentence.measured:
            groups[sentence.group].append(sentence.words)
    long = {group for group, counts in groups.items() if sum(counts) > MEAN * len(counts)}
    problems = len(long)
    for sentence in every:
        too_long = sentence.measured and sentence.words > LONGEST
        if too_long or (sentence.measured and sentence.group in long and sentence.words > 1.5 * MEAN):
            problems += too_long
            print(f"{sentence}\n    {sentence.words} words")
        for pattern, plain in WORDS:
            for match in pattern.finditer(sentence.text):
                problems += 1
                print(f"{sentence}\n    {match[0]!r}: write {plain}")
    for group, counts in sorted(groups.items()):
        if group in long or means:
            print(f"{group}: a mean sentence of {sum(counts) / len(counts):.1f} words, of {len(counts)} sentences")
    count = sum(map(len, groups.values()))
    print(f"{count} sentences, {problems} problems; at most {MEAN} words on average and {LONGEST} in one sentence")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
