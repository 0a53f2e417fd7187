"""The outputs of a run: results, trajectories, report, exported policy."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.prompt import PROMPT_FILE, Prompt
from vrag_jax.evaluation.report import write_report
from vrag_jax.evaluation.results import METHOD_LABELS, save_results
from vrag_jax.evaluation.summary import summarize
from vrag_jax.evaluation.trajectory_io import save_trajectories, select
from vrag_jax.metrics import compilations, peak_memory_gb, steps_taken
from vrag_jax.models.common import hf_checkpoint, hf_files
from vrag_jax.models.common.lora import merged_parameter, save_adapters
from vrag_jax.models.common.parameters import Params
from vrag_jax.parallel.distributed import barrier, is_main
from vrag_jax.perception.image_ops import render
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.run.context import RunContext


def write_results(
    space: RunContext, methods: Mapping[str, Sequence[Trajectory]], title: str,
    facts: Mapping[str, float] | None = None,
) -> None:
    """Writes `results.json`, the drawn trajectories and `report.html`.

    Args:
      space: the run.
      methods: scored trajectories of each method; those of the last are drawn.
      title: heading of the report.
      facts: further facts about the run.
    """
    config = space.config
    name, trajectories = list(methods.items())[-1]
    if not is_main():
        return
    drawn = with_images(
        select(trajectories, config.evaluation.report_trajectories), space.corpus.store)
    figures = {name: summarize(trajectories, space.actions)
               for name, trajectories in methods.items()}
    save_results(
        space.workdir / 'results.json',
        figures,
        {
            'judge': space.judge.name,
            'judge_failures': sum(each['judge_failures'] for each in figures.values()),
            'seed': config.seed,
            # As taken: the config may give epochs instead, and a task has some phases only.
            **{f'{phase}_steps': steps
               for phase, steps in steps_taken(space.workdir / 'metrics.jsonl').items()},
            **({'checkpoint': config.policy.checkpoint} if config.policy.checkpoint else {}),
            'prompt': space.prompt.text,
            'sampling': dataclasses.asdict(config.evaluation.sampling),
            'seconds': round(time.monotonic() - space.started),
            'compilations': compilations(),
            'peak_memory_gb': round(peak_memory_gb(), 2),
            **(facts or {}),
        },
    )
    folder = space.workdir / 'trajectories' / name
    save_trajectories(folder, drawn)
    write_report(space.workdir, {METHOD_LABELS.get(name, name): folder}, title)
    for method, each in figures.items():
        print(f'{METHOD_LABELS.get(method, method)}: accuracy {each["accuracy"]["value"]:.3f}, '
              f'NDCG {each["ndcg"]["value"]:.3f} ({each["n"]} questions)')
    print(f'results: {space.workdir / "results.json"}, report: {space.workdir / "report.html"}',
          flush=True)


def with_images(trajectories: Sequence[Trajectory], store: PageStore) -> list[Trajectory]:
    """Makes the images of trajectories again, from their pages."""
    return [dataclasses.replace(trajectory, images=[
        dataclasses.replace(view, image=render(store.image(view.frame.page_id), view.frame))
        for view in trajectory.images]) for trajectory in trajectories]


def export_policy(space: RunContext, params: Params, prompt: Prompt | None) -> None:
    """Writes the policy as a HF checkpoint directory, `workdir/policy`.

    Its weights are in `policy.exported_dtype`. Where it came from a checkpoint, the files of
    tokenizer, chat template, processors and generation are that checkpoint's, byte for byte.
    Adapters are merged into it, and written alone, in PEFT's format, to `workdir/adapter`.

    Args:
      space: the run.
      params: the policy's weights.
      prompt: on which it was trained; it is kept beside the weights. None if it is not known.
    """
    policy = space.config.policy
    directory = space.workdir / 'policy'
    if is_main() and directory.exists():
        shutil.rmtree(directory)
    barrier('export')
    if policy.lora.rank:
        save_adapters(space.workdir / 'adapter', params, policy.lora, policy.checkpoint)
    source = Path(policy.checkpoint) if policy.checkpoint else None

    def finish(folder: Path) -> None:
        processor_class = space.family.processor_class
        hf_files.copy_companions(source or space.tokenizer_directory, folder, processor_class)
        hf_files.write_image_processor(
            folder, space.image_processor.to_dict(), processor_class)
        eos = space.tokenizer.eos_token_id  # Readers of one id take the first.
        hf_files.write_generation_config(
            folder, sorted(space.end_ids, key=lambda i: i != eos),
            space.tokenizer.convert_tokens_to_ids('<|endoftext|>'))
        for kept in (folder, *([space.workdir / 'adapter'] if policy.lora.rank else [])):
            if prompt is not None:
                prompt.write(kept / PROMPT_FILE)

    # Merged one at a time: a second model may not fit.
    value = functools.partial(merged_parameter, params, policy.lora)
    hf_checkpoint.save_params(
        value, space.plain_shapes, space.model_config, directory,
        dtype=policy.exported_dtype, source=source, finish=finish)
