"""Tasks by name: what each value of `config.task` runs."""

from vrag_jax.config import ConfigError
from vrag_jax.run import config_checks as checks
from vrag_jax.run.run_config import RunConfig, with_sections
from vrag_jax.run.task import Task
from vrag_jax.tasks import (
    build_index,
    compile,
    evaluate,
    grpo,
    loop,
    plan,
    rejection_sft,
    serve_index,
    sft,
)
from vrag_jax.training.phase import Phase

TASKS: dict[str, Task] = {
    'loop': loop.TASK,
    'build_index': build_index.TASK,
    'serve_index': serve_index.TASK,
    'sft': sft.TASK,
    'grpo': grpo.TASK,
    'rejection_sft': rejection_sft.TASK,
    'evaluate': evaluate.TASK,
    'plan': plan.TASK,
    'compile': compile.TASK,
}


def config_class() -> type[RunConfig]:
    """Returns the class of a whole config, with the sections of tasks that have one."""
    return with_sections({name: task.settings for name, task in TASKS.items() if task.settings})


def phases(config: RunConfig) -> list[Phase]:
    """Returns the training phases of all tasks that have an iteration by the config."""
    made = [build(config) for task in TASKS.values() for build in task.phases]
    return list({phase.name: phase for phase in made if phase.trains}.values())


def check(config: RunConfig) -> None:
    """Refuses a config that cannot run here, before anything heavy starts.

    Raises:
      ConfigError: naming the field.
    """
    if config.task not in TASKS:
        raise ConfigError(f'config.task: must be one of {tuple(TASKS)}, got {config.task!r}')
    checks.check(config, TASKS[config.task], phases(config))
