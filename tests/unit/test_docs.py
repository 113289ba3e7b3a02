"""What the documents name is there: files, headings, functions, tests, commands and verbs of make."""

import re
from pathlib import Path

import pytest

from agent_relay.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("clients/*/README.md")),
    *sorted(ROOT.glob("examples/README.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
"""A path in backticks that begins so is one of this repository's."""
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|mailto:)([^()\s#]*)(?:#([^()\s]+))?\)")
IN_BACKTICKS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
IN_FILE = re.compile(r"`([A-Za-z_.]+)` in `([\w/]+\.py)`")
FILE_NAME = re.compile(r"\w+\.py")
OF_READERS = {"my_agents.py", "shop_agents.py"}
"""Files that a page lets its reader write."""
FOLDERS_OF_CODE = (
    "api",
    "benchmarks",
    "client",
    "embedded",
    "examples",
    "shared",
    "src/agent_relay",
    "tests",
    "worker",
)
SOURCES = {path: path.read_text() for folder in FOLDERS_OF_CODE for path in (ROOT / folder).rglob("*.py")}
VERBS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub makes them."""
    lines = FENCED.sub("", page.read_text()).splitlines()
    titles = [line.lstrip("#").strip() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead nowhere."""
    broken: list[str] = []
    for link in LINK.finditer(FENCED.sub("", page.read_text())):
        target = (page.parent / link[1]).resolve() if link[1] else page
        if not target.exists() or (link[2] and link[2] not in headings(target)):
            broken.append(link[0][2:-1])
    return broken


def missing_paths(page: Path) -> list[str]:
    """Return the files and folders that a page names in backticks and that are not there; `*` stands for some name."""
    named = (code.removeprefix("./") for code in IN_BACKTICKS.findall(FENCED.sub("", page.read_text())))
    paths = (re.sub(r"::.*", "", path) for path in named if path.startswith(FOLDERS) and " " not in path)
    return [path for path in paths if "<" not in path and not list(ROOT.glob(path.rstrip("/")))]


def missing_names(page: Path) -> list[str]:
    """Return the bare file names, tests, and `name` in `file.py` of a page that no source has."""
    text = FENCED.sub("", page.read_text())
    named = set(IN_BACKTICKS.findall(text))
    files = {name for name in named if FILE_NAME.fullmatch(name)} - OF_READERS - {path.name for path in SOURCES}
    tests = {name for name in named if re.fullmatch(r"test_\w+", name)}
    missing = [*files, *(name for name in tests if not any(f"def {name}(" in source for source in SOURCES.values()))]
    for name, file in IN_FILE.findall(text):
        word = re.compile(rf"\b{name.rpartition('.')[2]}\b")
        if not any(word.search(source) for path, source in SOURCES.items() if str(path).endswith(f"/{file}")):
            missing.append(f"{name} in {file}")
    return sorted(missing)


def unknown_commands(page: Path) -> list[str]:
    """Return the commands of agent-relay and the verbs of make that a page tells to run and that are not there."""
    text = page.read_text()
    told = [
        *IN_BACKTICKS.findall(FENCED.sub("", text)),
        *(line for block in SHELL.findall(text) for line in block.splitlines()),
    ]
    commands = {name for group in COMMANDS.values() for name in group}
    unknown: list[str] = []
    for line in told:
        code = line.partition(" #")[0]
        unknown += [
            f"agent-relay {word}" for word in re.findall(r"agent-relay ([a-z-]+)", code) if word not in commands
        ]
        unknown += [f"make {word}" for word in re.findall(r"\bmake ([a-z-]+)", code) if word not in VERBS]
    return unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    assert missing_paths(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_function_test_and_file_that_a_page_names_is_there(page: Path) -> None:
    assert missing_names(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_tells_to_run_is_one(page: Path) -> None:
    assert unknown_commands(page) == []


def test_names_and_commands_that_are_not_there_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "`queue.py` `gone_for_good.py` `test_every_link_of_a_page_leads_somewhere` `test_of_nothing`\n"
        "`_FINISH` in `finish.py`, `_NOTHING` in `finish.py`, `make run`, `make nothing`; they make a page\n"
        "```sh\nagent-relay run\nagent-relay nothing   # agent-relay is told\nAGENTS=a:b make api\nmake no-verb\n```\n"
    )

    assert missing_names(page) == ["_NOTHING in finish.py", "gone_for_good.py", "test_of_nothing"]
    assert unknown_commands(page) == ["make nothing", "agent-relay nothing", "make no-verb"]


def test_a_link_or_a_path_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading\n\n[a](page.md#one-heading) [b](gone.md) [c](#no-heading) [d](https://example.com)\n"
        "`api/gone.py` `shared/queue.py` `shared/runs/` `worker/no_room/` `gone.py`\n"
        "```\n[e](gone.md) `api/gone.py`\n```\n"
    )

    assert broken_links(page) == ["gone.md", "#no-heading"]
    assert missing_paths(page) == ["api/gone.py", "worker/no_room/"]


def test_every_decision_is_numbered_dated_and_listed() -> None:
    pages = sorted(path for path in (ROOT / "docs/decisions").glob("*.md") if path.name != "README.md")
    index = (ROOT / "docs/decisions/README.md").read_text()

    assert [page.name[:5] for page in pages] == [f"{number:04}-" for number in range(1, len(pages) + 1)]
    for page in pages:
        title, _, dated, *_ = page.read_text().splitlines()
        number, _, name = title.removeprefix("# ").partition(": ")
        status = re.match(r"(\d{4}-\d{2}-\d{2})\. Status: (accepted|amended|replaced)\b", dated)

        assert number == page.name[:4]
        assert status, f"{page.name} must say when it was decided and how it stands"
        assert f"| [{number}]({page.name}) | {name} | {status[1]} | {status[2]} |" in index
