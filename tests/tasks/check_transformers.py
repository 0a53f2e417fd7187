"""Checks exported policies with transformers 4.51 and the newest, in a venv of its own each.

From the repository (`make check-transformers`), in the environment of the tests:

    python -m tests.tasks.check_transformers [--venvs=DIRECTORY] [--record] [--policy=DIRECTORY]

Three policies are exported: one that never had a checkpoint, one that came from the small
checkpoint of `exports.write_source` (a config without what its class has by default), and
one that came from the same as the newest transformers saves it (a config in other fields).
Each version loads each, in the dtype it says; prompts, logits and the greedy continuation of
a conversation with an image must be this package's. `--record` writes what the versions
have read as goldens, by which `test_export.py` knows without torch.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from tests.tasks import export_cases as cases
from tests.tasks import exports
from vrag_jax.models.common.hf_files import COMPANIONS
from vrag_jax.models.common.pixels import patch_values

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {'4.51': 'transformers==4.51.*', 'newest': 'transformers'}
# The image processors need torchvision; it must be of the same torch.
TORCH = ('torch==2.13.0', 'torchvision==0.28.0', 'pillow')


def python_of(directory: Path, requirement: str) -> Path:
    """Makes a virtual environment, or brings it up to date; returns its Python."""
    python = directory / 'bin' / 'python'
    if not python.is_file():
        venv.create(directory, with_pip=True)
    subprocess.run([python, '-m', 'pip', 'install', '-q', '-U', requirement, *TORCH], check=True)
    return python


def run_side(python: Path, *arguments: str | Path) -> None:
    subprocess.run([python, '-m', 'tests.tasks.transformers_side', *arguments],
                   cwd=ROOT, check=True)


def compare(name: str, theirs: dict, directory: Path) -> tuple[np.ndarray, list[int]]:
    """Raises unless this package computes the same; returns what it computes."""
    ids, patches, _ = exports.conversation(directory)
    vision = exports.sizes(directory).vision
    pixels = patch_values(patches, vision.pixels, vision.temporal_patch_size)
    logits, continuation = exports.continuation(directory)
    where = f'{name}, transformers {theirs["version"]}'
    if ids != theirs['prompt']:
        raise SystemExit(f'{where}: other prompt: {theirs["prompt"]}, here {ids}')
    np.testing.assert_allclose(
        [pixels.mean(), pixels.std()], theirs['pixels'], atol=1e-5, err_msg=where)
    np.testing.assert_allclose(logits, theirs['logits'], atol=1e-3, err_msg=where)
    if continuation != theirs['continuation']:
        raise SystemExit(f'{where}: goes on {theirs["continuation"]}, here {continuation}')
    print(f'{where}: {theirs["dtype"]}, largest difference of logits '
          f'{np.abs(logits - theirs["logits"]).max():.1e}, {continuation}')
    return logits, continuation


def record(directories: dict[str, Path], found: dict, ours: dict) -> None:
    """Writes the goldens."""
    shutil.rmtree(cases.EXPORTED, ignore_errors=True)
    for name, directory in directories.items():
        (cases.EXPORTED / name).mkdir(parents=True)
        for file in ('config.json', *(COMPANIONS if name == 'tiny' else ())):
            if file != 'tokenizer.json' and (directory / file).is_file():
                shutil.copyfile(directory / file, cases.EXPORTED / name / file)
    logits, continuation = ours['stripped']
    cases.RECORD.write_text(json.dumps({
        'versions': found, 'continuation': continuation,
        'logits': [round(float(x), 4) for x in logits]}, indent=1) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--venvs', type=Path, default=ROOT / '.venv-transformers')
    parser.add_argument('--record', action='store_true')
    parser.add_argument('--policy', type=Path, help='checks this exported policy and no other')
    options = parser.parse_args()
    pythons = {name: python_of(options.venvs.resolve() / name, requirement)
               for name, requirement in VERSIONS.items()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.policy:
            for python in pythons.values():
                run_side(python, 'load', options.policy.resolve(), work / 'result.json')
                compare(str(options.policy), json.loads((work / 'result.json').read_text()),
                        options.policy.resolve())
            print('all equal')
            return
        source = exports.write_source(work / 'source')
        nested = work / 'nested_source'
        run_side(pythons['newest'], 'resave', source, nested)
        for file in COMPANIONS:
            if (source / file).is_file():
                shutil.copyfile(source / file, nested / file)
        directories = {
            'tiny': exports.export(exports.workspace(work / 'tiny')),
            'stripped': exports.export(
                exports.workspace(work / 'stripped', checkpoint=str(source))),
            'nested': exports.export(exports.workspace(work / 'nested', checkpoint=str(nested)))}
        found: dict[str, dict] = {}
        ours = {}
        for name, directory in directories.items():
            for version, python in pythons.items():
                run_side(python, 'load', directory, work / 'result.json')
                theirs = json.loads((work / 'result.json').read_text())
                ours[name] = compare(name, theirs, directory)
                found.setdefault(f'{version} ({theirs["version"]})', {})[name] = {
                    key: theirs[key] for key in
                    ('files', 'dtype', 'tokenizer', 'image_processor', 'end_ids')}
        if options.record:
            record(directories, found, ours)
    print('all equal')


if __name__ == '__main__':
    sys.exit(main())
