"""Runs the task of a config: `python -m vrag_jax.main --config=FILE --workdir=DIR`."""

import logging as stdlib_logging
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from vrag_jax.config import ConfigError, parse
from vrag_jax.tasks import check, registry
from vrag_jax.tasks.settings import RunConfig

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The run.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps its files.')
flags.mark_flags_as_required(['config', 'workdir'])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {argv[1:]}')
    try:
        config = parse(RunConfig, _CONFIG.value)
        check.check(config)
    except ConfigError as error:
        raise app.UsageError(str(error)) from error
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes.
    stdlib_logging.getLogger('vrag_jax').setLevel(stdlib_logging.INFO)
    workdir = Path(str(_WORKDIR.value))
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / 'config.json').write_text(_CONFIG.value.to_json_best_effort(indent=1) + '\n')
    registry.TASKS[config.task](config, workdir)


if __name__ == '__main__':
    app.run(main)
