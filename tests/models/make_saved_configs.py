"""Adds the configs that the installed version of transformers saves to the goldens.

Run with each version that the tests shall know (4.49, 4.51, 4.57 and the newest); needs
neither torch, jax nor this package. From the repository:

    python -m tests.models.make_saved_configs
"""

import json
import tempfile
from pathlib import Path

import transformers

from tests.models.config_cases import CASES, SAVED

CLASSES = {'qwen2_5_vl': 'Qwen2_5_VLConfig', 'qwen2_vl': 'Qwen2VLConfig',
           'colqwen2': 'ColQwen2Config'}


def main():
    goldens = json.loads(SAVED.read_text()) if SAVED.is_file() else {}
    saved = {}
    for name, fields in CASES.items():
        cls = getattr(transformers, CLASSES[fields['model_type']], None)
        if cls is None:
            print(transformers.__version__, 'does not know', fields['model_type'])
            continue
        with tempfile.TemporaryDirectory() as folder:
            # A copy: the classes change nested fields.
            cls(**json.loads(json.dumps(fields))).save_pretrained(folder)
            saved[name] = json.loads((Path(folder) / 'config.json').read_text())
    goldens[transformers.__version__] = saved
    # A line for each config.
    versions = [f'"{version}": {{\n' + ',\n'.join(
        f' "{name}": {json.dumps(config)}' for name, config in configs.items()) + '\n}'
        for version, configs in sorted(goldens.items())]
    SAVED.write_text('{' + ',\n'.join(versions) + '}\n')
    print(transformers.__version__, list(saved))


if __name__ == '__main__':
    main()
