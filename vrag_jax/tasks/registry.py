"""Tasks by name: what each value of `config.task` runs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vrag_jax.planning import compile, plan
from vrag_jax.run.context import RunContext
from vrag_jax.run.settings import RunConfig
from vrag_jax.tasks import build_index, files, loop, serve_index


def _in_workspace(task: Callable[[RunContext], None]) -> Callable[[RunConfig, Path], None]:
    return lambda config, workdir: task(RunContext(config, workdir))


TASKS: Mapping[str, Callable[[RunConfig, Path], None]] = {
    'loop': _in_workspace(loop.run),
    'build_index': build_index.run,
    'serve_index': serve_index.run,
    'sft': _in_workspace(files.run_sft),
    'grpo': _in_workspace(files.run_grpo),
    'evaluate': _in_workspace(files.run_evaluate),
    'plan': plan.run,
    'compile': compile.run,
}
