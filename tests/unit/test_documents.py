"""README.md and docs/: every block says what it is, and every command has the arguments it names."""

import re

import pytest

from tests.documents import PAGES, all_pages, check_command, read_page
from tests.processes import ROOT

# Where the pages are run; a page with commands or examples must be here.
RUN_BY = {
    "docs/data.md": "tests/integration/test_data_docs.py",
    "docs/deployment.md": "tests/integration/test_deployment.py",
    "docs/extending.md": "tests/integration/test_extending.py",
}


def not_run():
    """The commands that no test runs: in blocks with a reason, and within sentences."""
    for name, page in all_pages():
        for block in page.blocks:
            if block.not_run:
                yield from ((str(block), line) for line in block.commands)
        yield from ((name, line) for line in page.inline)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_has_a_language_and_a_reason_only_where_it_is_needed(name):
    assert not read_page(name).problems


@pytest.mark.parametrize(("place", "line"), list(not_run()))
def test_a_command_that_is_not_run(place, line):
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
    "line",
    [
        "dmtg trian run.yaml",
        "dmtg eval model.safetensors --shard data",
        "dmtg train experiments/demo.yaml run.step=3",
        "dmtg train experiments/nothing.yaml",
        "accelerate launch --config_file accelerate_configs/nothing.yaml trainer/main.py --config x",
        "accelerate launch --nothing 3 trainer/main.py",
        "make nothing",
        "make test NOTHING=1",
        "pip install -e '.[nothing]'",
        "sbatch accelerate_configs/slurm/train.sbatch --config experiments/demo.yaml run.step=3",
        "srun bash -c 'accelerate launch trainer/main.py --config experiments/nothing.yaml'",
        "python benchmarks/step.py --nothing",
        "python nothing.py",
        "nothing at all",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises((Exception, SystemExit)):
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
