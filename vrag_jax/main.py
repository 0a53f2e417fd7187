"""Runs the task of a config: `python -m vrag_jax.main --config=FILE --workdir=DIR`."""

import logging as stdlib_logging
import sys
from pathlib import Path
from typing import Any

from vrag_jax import hardware

if __name__ == '__main__':
    hardware.settle()  # Before all other imports: Python may start once more.

from absl import app, flags, logging  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402
from ml_collections.config_flags.config_flags import ConfigFileFlagParser  # noqa: E402

# At import transformers advises that it found no PyTorch, of which nothing here makes
# use. Only this record is dropped; what imports transformers has to come after it.
stdlib_logging.getLogger('transformers').addFilter(
    lambda record: not record.getMessage().startswith('PyTorch was not found'))

from vrag_jax.config import ConfigError, parse, unknown_field, with_defaults  # noqa: E402
from vrag_jax.parallel import distributed, processes  # noqa: E402
from vrag_jax.run.context import RunContext  # noqa: E402
from vrag_jax.run.run_config import RunConfig  # noqa: E402
from vrag_jax.tasks import registry  # noqa: E402


class ConfigParser(ConfigFileFlagParser):
    """Reads a config file and fills in what it leaves to defaults, which flags may then set."""

    def parse(self, path: str) -> Any:
        config = super().parse(path)
        if isinstance(config, ConfigDict):  # Otherwise it says at its use what is wrong.
            with config.unlocked():
                with_defaults(config, registry.config_class())
            config.lock()
        return config


_CONFIG = config_flags.DEFINE_config_file('config', None, 'The run.', lock_config=True)
flags.FLAGS['config'].parser = ConfigParser('config')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps its files.')
flags.mark_flags_as_required(['config', 'workdir'])


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line; what is wrong with it ends the process with one line."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.exit(str(error))
    except (AttributeError, KeyError, TypeError):
        reason = unknown_override(argv)
        if not reason:
            raise
        sys.exit(reason)


def unknown_override(argv: list[str]) -> str:
    """Says which `--config.FIELD=VALUE` names a field that does not exist."""
    file, names = '', []
    for argument, after in zip(argv, [*argv[1:], ''], strict=True):
        name, equals, value = argument.partition('=')
        if name in ('--config', '-config'):
            file = value if equals else after
        elif name.startswith(('--config.', '-config.')):
            names.append(name)
    config = ConfigParser('config').parse(file)
    for name in names:
        section, path = config, 'config'
        rest = name.partition('.')[2]
        while rest:
            field, _, rest = rest.partition('.')
            if not hasattr(section, 'keys') or field not in section:
                return unknown_field(f'{path}.{field}', getattr(section, 'keys', tuple)())
            section, path = section[field], f'{path}.{field}'
    return ''


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f'unexpected arguments: {argv[1:]}')
    # JAX tells of every platform that is not there, Orbax of every file it writes.
    logging.set_verbosity(logging.WARNING)
    stdlib_logging.getLogger('vrag_jax').setLevel(stdlib_logging.INFO)
    try:
        config = parse(registry.config_class(), _CONFIG.value)
    except (ConfigError, OSError) as error:  # OSError: there is no such config file.
        sys.exit(' '.join(str(error).split()))
    with distributed.processes(config.distributed):
        run(config, Path(str(_WORKDIR.value)))


def run(config: RunConfig, workdir: Path) -> None:
    """Runs the task of a config, in all processes at once where there are several."""
    try:
        registry.check(config)
    except ConfigError as error:
        sys.exit(' '.join(str(error).split()))
    if workdir.exists() and not workdir.is_dir():
        sys.exit(f'--workdir: {workdir} is a file; expected a folder')
    text = _CONFIG.value.to_json_best_effort(indent=1)
    processes.agree(text, 'the config')
    workdir.mkdir(parents=True, exist_ok=True)
    if distributed.is_main():
        (workdir / 'config.json').write_text(text + '\n')
    try:
        context = RunContext(config, workdir, registry.phases(config))
        registry.TASKS[config.task].run(context)
    except ConfigError as error:  # What is seen only when data are read, or a judge is asked.
        sys.exit(' '.join(str(error).split()))


if __name__ == '__main__':
    app.run(main, flags_parser=parse_flags)
