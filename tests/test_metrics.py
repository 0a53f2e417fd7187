"""Metrics on disk hold each step once, survive a kill, and count compilations."""

import io
import json
import struct

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from vrag_jax.metrics import (
    MetricsWriter,
    compilations,
    progress_line,
    read_rows,
    steps_taken,
)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def write_steps(writer, phase, first, last, total, **values):
    """Writes steps first + 1 to last, and does not end the phase."""
    writer.begin(phase, first, total)
    for step in range(first + 1, last + 1):
        writer.write(step, {'loss': float(step), **values})


def steps(workdir, phase):
    return [r['step'] for r in read_rows(workdir / 'metrics.jsonl') if r['phase'] == phase]


def read_events(folder):
    """Reads event files: records of length (8 bytes), its CRC (4), payload, CRC (4)."""
    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            events.append(Event.FromString(data[12:12 + length]))
            data = data[16 + length:]
    return events


def test_each_row_is_a_json_object_with_step_phase_time_and_values(tmp_path):
    writer = MetricsWriter(tmp_path, io.StringIO())
    write_steps(writer, 'sft', 0, 3, total=3, accuracy=jnp.float32(0.5))
    writer.end()
    rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [set(row) for row in rows] == [{'step', 'phase', 'time', 'values'}] * 3
    assert [row['step'] for row in rows] == [1, 2, 3]
    assert rows[1]['values']['loss'] == 2.0
    assert rows[1]['values']['accuracy'] == 0.5
    assert 0.01 < rows[1]['values']['peak_memory_gb'] < 1000


def test_tensorboard_gets_the_same_values(tmp_path):
    writer = MetricsWriter(tmp_path, io.StringIO())
    write_steps(writer, 'sft', 0, 2, total=2)
    writer.end()
    losses = [(event.step, value.simple_value)
              for event in read_events(tmp_path / 'tensorboard' / 'sft')
              for value in event.summary.value if value.tag == 'loss']
    assert losses == [(1, 1.0), (2, 2.0)]


def test_rows_after_the_step_it_resumes_from_are_dropped(tmp_path):
    killed = MetricsWriter(tmp_path, io.StringIO())
    write_steps(killed, 'sft', 0, 4, total=4)
    killed.end()
    write_steps(killed, 'grpo', 0, 7, total=10)  # never ended: the process died here
    resumed = MetricsWriter(tmp_path, io.StringIO())
    write_steps(resumed, 'grpo', 5, 10, total=10)
    resumed.end()
    assert steps(tmp_path, 'sft') == [1, 2, 3, 4]
    assert steps(tmp_path, 'grpo') == list(range(1, 11))


def test_tensorboard_is_told_from_which_step_on_to_forget(tmp_path):
    write_steps(MetricsWriter(tmp_path, io.StringIO()), 'grpo', 0, 7, total=10)
    resumed = MetricsWriter(tmp_path, io.StringIO())
    write_steps(resumed, 'grpo', 5, 10, total=10)
    resumed.end()
    starts = [event.step for event in read_events(tmp_path / 'tensorboard' / 'grpo')
              if event.session_log.status == event.session_log.START]
    assert 6 in starts


def test_a_row_cut_off_by_a_kill_is_no_obstacle(tmp_path):
    write_steps(MetricsWriter(tmp_path, io.StringIO()), 'sft', 0, 2, total=4)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 3, "pha')
    resumed = MetricsWriter(tmp_path, io.StringIO())
    write_steps(resumed, 'sft', 2, 4, total=4)
    resumed.end()
    assert steps(tmp_path, 'sft') == [1, 2, 3, 4]


def test_a_broken_row_elsewhere_is_an_error_that_names_the_line(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match='metrics.jsonl, line 2'):
        read_rows(path)


def test_a_phase_must_begin_before_it_is_written_and_end_before_the_next(tmp_path):
    writer = MetricsWriter(tmp_path, io.StringIO())
    with pytest.raises(ValueError, match='begin'):
        writer.write(1, {})
    writer.begin('sft', 0, 1)
    with pytest.raises(ValueError, match="'sft' has not ended"):
        writer.begin('grpo', 0, 1)
    writer.end()


def test_tokens_become_tokens_per_second(tmp_path):
    writer = MetricsWriter(tmp_path, io.StringIO())
    write_steps(writer, 'sft', 0, 1, total=1, tokens=1000)
    writer.end()
    values = read_rows(tmp_path / 'metrics.jsonl')[0]['values']
    assert values['tokens_per_s'] == pytest.approx(1000 / values['seconds'])


def test_compilations_counts_programs_and_not_calls():
    double = jax.jit(lambda x: 2 * x + 1)
    short, long = jnp.ones(3), jnp.ones(5)
    before = compilations()
    for _ in range(3):
        double(short)
    assert compilations() == before + 1
    double(long)
    assert compilations() == before + 2


def test_lines_where_there_is_no_terminal_come_seconds_apart_and_at_the_end(tmp_path):
    stream = io.StringIO()
    writer = MetricsWriter(tmp_path, stream)
    write_steps(writer, 'sft', 0, 50, total=50)
    writer.end()
    lines = stream.getvalue().splitlines()
    assert ['1/50' in lines[0], '50/50' in lines[-1], len(lines)] == [True, True, 2]
    assert '\r' not in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_drawn_anew(tmp_path):
    stream = Terminal()
    writer = MetricsWriter(tmp_path, stream)
    write_steps(writer, 'sft', 0, 50, total=50)
    writer.end()
    assert stream.getvalue().startswith('\r')
    assert stream.getvalue().count('\n') == 1


def test_the_progress_line_says_what_matters():
    values = {'reward': 0.61234, 'accuracy': 0.7, 'tokens_per_s': 8123.4, 'grad_norm': 3.0}
    line = progress_line('grpo', 30, 120, values, seconds_left=3725)
    assert line.startswith('grpo ')
    for part in ('[#####.', '30/120', 'reward 0.612', 'accuracy 0.700', '8,123 tokens/s',
                 '1:02:05 left'):
        assert part in line
    assert 'grad_norm' not in line


def test_steps_taken_are_the_last_of_each_phase(tmp_path):
    writer = MetricsWriter(tmp_path, io.StringIO())
    write_steps(writer, 'sft', 0, 4, total=4)
    writer.end()
    write_steps(writer, 'grpo', 0, 2, total=2)
    writer.end()
    path = tmp_path / 'metrics.jsonl'
    assert list(steps_taken(path).items()) == [('sft', 4), ('grpo', 2)]
    assert steps_taken(tmp_path / 'nothing.jsonl') == {}
