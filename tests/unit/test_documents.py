"""README.md and docs/: every block says what it is, and commands have the arguments they name."""

import re

import pytest

from tests.documents import PAGES, all_pages, check_command, parse_page, read_page
from tests.processes import ROOT

# Where the pages are run; a page with commands or examples must be here.
RUN_BY = {
    "docs/data.md": "tests/integration/test_data_docs.py",
    "docs/deployment.md": "tests/integration/test_deployment.py",
    "docs/extending.md": "tests/integration/test_extending.py",
    "docs/icons.md": "tests/integration/test_icons.py",
}


def not_run():
    """The commands that no test runs: in blocks with a reason, and within sentences."""
    for _, page in all_pages():
        for block in page.blocks:
            if block.not_run:
                yield from block.commands
        yield from page.inline


@pytest.mark.parametrize("name", PAGES)
def test_every_block_has_a_language_and_a_reason_only_where_it_is_needed(name):
    assert not read_page(name).problems


@pytest.mark.parametrize("line", dict.fromkeys(not_run()))
def test_a_command_that_is_not_run(line):
    check_command(line)


def test_python_that_is_not_run():
    blocks = [b for _, page in all_pages() for b in page.blocks if b.not_run]
    for block in blocks:
        if block.language == "python":
            compile(block.text, str(block), "exec")


def test_every_page_is_run():
    """Each page with something to run is in the parameters of one test."""
    from tests.integration.test_docs import RUN

    pages = {
        name
        for name, page in all_pages()
        if page.commands() or any(b.language == "python" and not b.not_run for b in page.blocks)
    }
    assert pages == set(RUN) | set(RUN_BY)
    for name, test in RUN_BY.items():
        assert f'"{name}"' in (ROOT / test).read_text()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```\ndmtg --help\n```\n", "page:1: a block of '', which is no language here"),
        ("```mermaid\ngraph\n```\n", "page:1: a block of 'mermaid'"),
        ("Type\n\n    dmtg status runs/first\n", "page:3: commands in an indented block"),
        ("<!-- not run: too lazy -->\n```bash\nls\n```\n", "reason 'too lazy' is none of needs Sl"),
        ("<!-- not run: needs a GPU -->\nText.\n", "page:2: 'not run: needs a GPU' is above no"),
        ("<!-- not run: needs a GPU -->\n", "page: 'not run: needs a GPU' is above no block"),
        ("<!-- not run: needs a GPU -->\n```json\n{}\n```\n", "a block that nothing can run"),
    ],
)
def test_a_problem_of_a_page_is_found(text, problem):
    (found,) = parse_page("page", text).problems
    assert problem in found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dmtg trian run.yaml", "no command 'trian'"),
        ("dmtg eval model.safetensors --shard data", "No such option: --shard"),
        ("dmtg train experiments/demo.yaml run.step=3", r"run\.step: unknown key"),
        ("dmtg train mine.yaml run.step=3", r"run\.step: unknown key"),
        ("dmtg train experiments/nothing.yaml", "No such file"),
        ("accelerate launch --config_file accelerate_configs/nothing.yaml a.py", "nothing.yaml"),
        ("accelerate launch --nothing 3 trainer/main.py", "2"),
        ("make nothing", "make has no 'nothing'"),
        ("make test NOTHING=1", "make has no 'NOTHING=1'"),
        ("pip install -e '.[nothing]'", "no extras {'nothing'}"),
        (
            "sbatch accelerate_configs/slurm/train.sbatch --config experiments/demo.yaml a.b=3",
            "a: unknown key",
        ),
        ("sbatch nothing.sbatch", "nothing.sbatch"),
        ("srun bash -c 'dmtg trian'", "no command 'trian'"),
        ("python benchmarks/step.py --nothing", "--nothing"),
        ("python nothing.py", "nothing.py"),
        ("nothing at all", "nothing is known of the program 'nothing'"),
    ],
)
def test_a_wrong_command_is_found(line, message):
    with pytest.raises((Exception, SystemExit), match=message):
        check_command(line)


def test_the_readme_is_short_and_names_demo_and_test():
    text = PAGES["README.md"].read_text()
    assert len(text.splitlines()) < 150
    assert "\nmake demo " in text and "\nmake test " in text


def test_the_messages_of_the_errors_page_are_those_of_the_program():
    sources = "".join(
        path.read_text()
        for package in ("data_pipelines", "dmtg", "model", "trainer")
        for path in sorted((ROOT / package).rglob("*.py"))
    )
    rows = re.findall(r"^\| (.*?) \| ", PAGES["docs/errors.md"].read_text(), re.MULTILINE)
    messages = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 40
    # Not of this program: of the operating system, and an example of a value that was counted.
    foreign = {"No space left on device", "'maybe' x 312", "manifest.json"}
    assert not [text for text in messages if text not in sources and text not in foreign]
