"""README and docs: links resolve, commands parse, Python runs, and the recipe does as it says."""

import dataclasses
import functools
import json
import re
import shlex
import string
from pathlib import Path

import jax
import pytest

from jaxdefense.cli import main
from jaxdefense.commands import COMMANDS
from jaxdefense.config import DefendBothConfig, ValidateConfig
from jaxdefense.defense import inherited, recall, recognise
from jaxdefense.demo import world
from jaxdefense.demo.run import shipped_model
from jaxdefense.idia import inputs as attacks
from jaxdefense.settings import settings_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
names = [page.name for page in PAGES]
MODEL = "clip-vit-base-patch32"  # as the pages call it


def anchors(page):
    """Name a page's headings as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", without_code(page.read_text()), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in words}


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def broken_links(text, page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_resolve(page):
    assert not list(broken_links(page.read_text(), page))


def test_broken_link_is_found():
    page = ROOT / "README.md"
    text = (
        "[a](docs/none.md) [b](docs/names.md#none) [c](docs/names.md#the-names-file) [d](#limits)"
    )
    assert list(broken_links(text, page)) == ["docs/none.md", "docs/names.md#none"]


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def commands(text):
    """Give the commands of `jaxdefense` in a page's indented code, each joined to one line."""
    text = re.sub(r" *\\\n +", " ", without_code(text))
    given = {
        name: value for name, value in re.findall(r'^    ([A-Z])="?(.*?)"?(?: +#.*)?$', text, re.M)
    }
    found = re.findall(r"^ {4,}(?:[A-Z]+=\S+ )*(?:launch/\S+ )?(jaxdefense .*)$", text, re.M)
    return [string.Template(line).substitute(given) for line in found]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_commands_parse(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # where config files are
    monkeypatch.setattr(inherited, "inherited", of_a_run_before)
    for line in commands(page.read_text()):
        words = shlex.split(line, comments=True)[1:]
        name = next(x for x in (" ".join(words[:2]), words[0]) if x in COMMANDS)
        COMMANDS[name].read(words[len(name.split()) :])


def of_a_run_before(kind, flags):
    """Give what must be given, as a run before would."""
    follows = {"--after", "--ledger"} & set(flags)
    return {x.key: "x" for x in settings_of(kind) if x.default is None} if follows else {}


def test_commands_are_found():
    text = '    R="--out run"\n    N=4 launch/local_cpu.sh jaxdefense defend text \\\n        $R\n'
    text += "    ls\n"
    assert commands(text) == ["jaxdefense defend text --out run"]


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_pages_use_what_the_world_has(page):
    used = set(re.findall(r"\bworld\.(\w+)\(", page.read_text()))
    assert [name for name in sorted(used) if not hasattr(world, name)] == []


def test_python_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    exec("\n".join(blocks), {})


def test_quick_start_runs(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    monkeypatch.setattr(recall, "_NUM_NOBODY", 24)
    script, small = (ROOT / "docs/quickstart.py").read_text(), {"num_clean": 8, "num_poisoned": 8}
    for given, less in (
        ('train = {"steps": 200}', f"train = {small | {'steps': 2, 'num_name': 8}}"),
        ('"steps": 10, ', f'"steps": 2, "num_name": 8, **{small}, '),
        ("num_candidates=200", "num_candidates=40"),
        ("range(4)", "range(2)"),
        ("world.captions(2000", "world.captions(200"),
    ):
        assert given in script
        script = script.replace(given, less)
    exec(compile(script, "quickstart.py", "exec"), {"__name__": "quickstart"})
    said = capsys.readouterr().out
    assert "reached: False" in said and "still" in caplog.text  # 2 steps do not suffice
    assert re.search(r"removed: photos named right, before and after: \d+% \d+%", said)
    assert "'square'" in said
    assert Path("quickstart/run/report.html").exists()


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """What the README's recipe names, drawn: 8 people whom the shipped model knows, 2 to remove."""
    monkeypatch.chdir(tmp_path)
    people = world.members()[::8]
    world.write(world.faces(people, 8, Path("faces")))
    world.write(world.passers_by(80, Path("strangers")))
    world.write(world.images(60, Path("images")))
    world.write(world.objects(2, Path("classes")))
    removed, others = people[:2], people[2:]
    Path("captions.txt").write_text("\n".join(world.captions(300, 0)))
    Path("names.txt").write_text("\n".join(named.name for named in removed))
    Path("others.txt").write_text("\n".join(named.name for named in others))
    Path(MODEL).symlink_to(shipped_model())
    return [named.name for named in removed]


@pytest.fixture
def short(monkeypatch):
    """The same commands in seconds: few steps, small batches, few candidates, one device."""
    halves, candidates = DefendBothConfig.halves, attacks.candidate_names

    def few(cfg):
        text, image = halves(cfg)
        few = {"steps": 2, "num_clean": 8, "num_poisoned": 8, "validate": ValidateConfig(every=0)}
        return (
            dataclasses.replace(text, train=dataclasses.replace(text.train, **few, num_name=8)),
            dataclasses.replace(image, train=dataclasses.replace(image.train, **few, num_keep=8)),
        )

    @functools.wraps(candidates)
    def fewer(names, file, num, *args):
        return candidates(names, file, 40, *args)

    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    monkeypatch.setattr(recall, "_NUM_NOBODY", 24)
    monkeypatch.setattr(recognise, "_NUM_NAMES", 40)
    monkeypatch.setattr(DefendBothConfig, "halves", few)
    monkeypatch.setattr(attacks, "candidate_names", fewer)


def test_recipe_runs_as_written(inputs, short):
    readme = (ROOT / "README.md").read_text()
    steps = commands(readme[readme.index("## Your own model") : readme.index("## Where to read")])
    assert [step.split()[1] for step in steps] == (
        ["defend", "attack", "attack", "evaluate", "report"]
    )
    for step in steps:
        assert main(shlex.split(step)[1:]) == 0, step
    after = json.loads(Path("after/summary.json").read_text())
    assert after["removed"] == sorted(inputs)
    assert after["photos_per_identity"] == {"min": 4, "max": 4}  # half, those not trained on
    report = json.loads(Path("report.json").read_text())
    assert report["stages"].keys() == report["measures"].keys() == {"before", "after"}
    assert not report["notes"]
    page = Path("report.html").read_text()
    assert all(name in page for name in inputs)
