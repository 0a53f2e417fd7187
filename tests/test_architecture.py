"""The floors of the house: which room may import which, in no circle; what it takes to add one."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'vrag_jax'
MODULES = sorted(path for path in PACKAGE.rglob('*.py') if path.name != '__init__.py')
MOST_LINES = 400
ARCHITECTURE = PACKAGE.parent / 'docs' / 'ARCHITECTURE.md'

# Room -> rooms that it may import; `config` to `registry` are single modules.
FLOORS = {
    'config': '', 'metrics': '', 'hardware': '', 'registry': '', 'perception': '',
    # On a machine with TPUs JAX looks for the other hosts, elsewhere it does not.
    'parallel': 'hardware',
    'rewards': 'config registry',
    'corpus': 'config perception',
    'actions': 'perception',
    'models': 'config parallel',
    'embedders': 'config corpus models parallel perception',
    'retrieval': 'config corpus embedders',
    'data': 'actions config corpus models perception',
    'sampling': 'actions config data models parallel',
    'indexing': 'config corpus embedders models parallel retrieval',
    'rollout': 'actions config corpus data models parallel perception retrieval rewards sampling',
    'learner': 'config data models parallel registry',
    'training': 'actions config data learner metrics models parallel rewards rollout sampling',
    'experts': 'actions config corpus data models parallel perception rewards rollout',
    'evaluation': 'actions config corpus data metrics models parallel perception retrieval '
                  'rewards rollout sampling',
    'serving': 'config corpus embedders indexing parallel perception retrieval',
    'run': 'actions config corpus data embedders evaluation experts indexing learner metrics '
           'models parallel perception retrieval rewards rollout sampling serving training',
    # Above `run`: what a run will hold follows from its whole config.
    'planning': 'config data learner models parallel run sampling training',
    'tasks': 'actions config corpus data embedders evaluation experts indexing learner metrics '
             'models parallel perception planning retrieval rewards rollout run sampling serving '
             'training',
    'main': 'config hardware parallel run tasks',
}
# Imports that go upstairs, to be mended.
UPSTAIRS: set[tuple[str, str]] = set()


def room(module: str) -> str:
    return module.split('.')[0]


def name_of(path: Path) -> str:
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('vrag_jax'):
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'.removeprefix('vrag_jax.')
                is_module = (PACKAGE / (whole.replace('.', '/') + '.py')).is_file()
                yield whole if is_module else str(node.module).removeprefix('vrag_jax.')
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix('vrag_jax.') for alias in node.names
                        if alias.name.startswith('vrag_jax.'))


GRAPH = {name_of(path): sorted(set(imports(path)) - {'vrag_jax'}) for path in MODULES}


def test_rooms_import_only_what_their_floor_allows():
    upstairs = {(module, target) for module, targets in GRAPH.items() for target in targets
                if room(target) != room(module)
                and room(target) not in FLOORS[room(module)].split()}
    assert upstairs == UPSTAIRS


def test_search_knows_the_interface_of_embedders_alone():
    known = {target for module, targets in GRAPH.items() if room(module) == 'retrieval'
             for target in targets if room(target) == 'embedders'}
    assert known == {'embedders.interface'}


def test_the_table_itself_has_no_circle():
    done: set[str] = set()
    left = {name: set(allowed.split()) for name, allowed in FLOORS.items()}
    while ready := {name for name, allowed in left.items() if allowed <= done}:
        done |= ready
        left = {name: allowed for name, allowed in left.items() if name not in ready}
    assert not left


def test_no_module_imports_itself_by_a_detour():
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, ' -> '.join((*path[path.index(module):], module))
        if module not in finished:
            for target in GRAPH.get(module, ()):
                visit(target, (*path, module))
            finished.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_files_are_short(path):
    assert len(path.read_text(encoding='utf-8').splitlines()) <= MOST_LINES


# To add one, write a file like this; the test beside it adds it to runs and sees it work.
TO_ADD = {
    'an action': ('tests/actions/flip_action.py', 'tests/actions/test_own_action.py'),
    'a reward': ('tests/rewards/brevity.py', 'tests/rewards/test_table.py'),
    'a loss variant': ('tests/learner/unclipped.py', 'tests/learner/test_clip_objectives.py'),
    'a policy family': ('tests/models/two_part_family.py', 'tests/models/test_own_family.py'),
    'a task': ('tests/tasks/count_questions.py', 'tests/tasks/test_own_task.py'),
    'a retriever': ('tests/retrieval/headings.py', 'tests/retrieval/test_new_kind.py'),
}
LINES_TO_ADD_ONE = 80


def imported(file: str) -> set[str]:
    """Modules that a file of the tests imports, and what these import of the tests."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('tests'):
            for alias in node.names:
                path = f'{node.module}.{alias.name}'.replace('.', '/') + '.py'
                if (ROOT / path).is_file():
                    found |= {path} | imported(path)
    return found


@pytest.mark.parametrize('what', TO_ADD)
def test_one_is_added_by_one_file_from_outside_the_package(what):
    added, test = TO_ADD[what]
    assert added in imported(test)
    assert len((ROOT / added).read_text(encoding='utf-8').splitlines()) <= LINES_TO_ADD_ONE
    # Nothing else of the tests helps it, and how it is done is written down.
    assert not imported(added)
    assert f'## Add {what}' in (ROOT / 'docs' / 'EXTENDING.md').read_text(encoding='utf-8')


def picture() -> str:
    """Rooms on their floors, the highest first: each as low as what it imports lets it be."""
    floor: dict[str, int] = {}
    while len(floor) < len(FLOORS):
        for name, allowed in FLOORS.items():
            if name not in floor and all(below in floor for below in allowed.split()):
                floor[name] = 1 + max((floor[below] for below in allowed.split()), default=0)
    rooms = {n: sorted(name for name in FLOORS if floor[name] == n) for n in floor.values()}
    return '\n'.join(f'{n:>2} | {"   ".join(rooms[n])}' for n in sorted(rooms, reverse=True))


def test_the_picture_of_the_house_is_up_to_date():
    assert f'```\n{picture()}\n```' in ARCHITECTURE.read_text(encoding='utf-8')


def test_a_run_is_read_from_the_command_to_the_loop_in_under_500_lines():
    text = ARCHITECTURE.read_text(encoding='utf-8')
    named = re.findall(r'^\d\. `(vrag_jax/\S+\.py)`$', text, re.MULTILINE)
    assert named[0] == 'vrag_jax/main.py' and len(named) == 5
    assert sum(len((ROOT / file).read_text(encoding='utf-8').splitlines()) for file in named) < 500


def test_what_the_walks_name_is_there():
    text = ARCHITECTURE.read_text(encoding='utf-8')
    for file in re.findall(r'`((?:vrag_jax/)?\w+/[\w/]+\.py)`', text):
        assert any((root / file).is_file() for root in (ROOT, PACKAGE)), file
    source = '\n'.join(path.read_text(encoding='utf-8') for path in MODULES)
    walks = text[text.index('## A page'):]
    for name in re.findall(r'\(`(?:\w+\.)*(\w+)`\)', walks):
        assert re.search(rf'(class|def) {name}\b', source), name


# Rooms hold one module a value of the config, a policy family or a kind of retriever; these are
# named after what they are of.
NAMED_BY_PATTERN = {'registry', 'context', 'config', 'family', 'model', 'retriever', 'policy',
                    'answer', 'tokenizer',
                    *(path.stem for path in (PACKAGE / 'tasks').glob('*.py'))}


def test_no_two_modules_share_a_name():
    names = [path.stem for path in MODULES if path.stem not in NAMED_BY_PATTERN]
    assert {name for name in names if names.count(name) > 1} == set()


def test_no_two_public_classes_share_a_name():
    classes = [node.name for path in MODULES
               for node in ast.parse(path.read_text(encoding='utf-8')).body
               if isinstance(node, ast.ClassDef) and not node.name.startswith('_')]
    assert {name for name in classes if classes.count(name) > 1} == set()
