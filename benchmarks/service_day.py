"""A day of the search service in small: updates beside clients who check every answer.

    python -m benchmarks.service_day --minutes=10 --updates=200 --clients=32

One process serves pages, by the command that a user starts; another replaces documents and runs
`build_index` in the same folder, evenly over the time. Clients ask for words that only one
version of one page has, in turn by `GET /search`, whose files they open themselves, and by `POST
/search` and `GET /pages/{id}`. Every picture says which version of which page it is of, so an
answer is right, or names another page, an old version, or a file that is not there. The memory
of the service is read every half second and drawn. Fails if an answer was wrong or a file was
missing.
"""

import dataclasses
import io
import json
import logging
import random
import re
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import httpx
import numpy as np
from absl import app, flags
from PIL import Image

from benchmarks import paired
from benchmarks.served import service
from benchmarks.service_day_checks import BEHIND, Tally, Versions, growth, plot
from benchmarks.service_day_pages import PAGES, Spelled, read_picture

_MINUTES = flags.DEFINE_float('minutes', 10.0, 'How long.', lower_bound=0.1)
_UPDATES = flags.DEFINE_integer('updates', 200, 'Updates in that time.', lower_bound=1)
_CLIENTS = flags.DEFINE_integer('clients', 32, 'Clients at the same time.', lower_bound=1)
_DOCUMENTS = flags.DEFINE_integer('documents', 100, 'Documents of three pages.', lower_bound=4)
_CHANGED = flags.DEFINE_integer('changed', 3, 'Documents replaced by an update.', lower_bound=1)
_PAUSE = flags.DEFINE_float('pause', 0.5, 'Seconds between two requests of a client.')
_WORKDIR = flags.DEFINE_string('workdir', 'runs/service_day', 'Made; must not exist.')
_PLOT = flags.DEFINE_string('plot', '', 'PNG file for the plot of memory.')

class Client:
    """Asks, and checks what comes.

    Args:
      url: of the service.
      number: of the client, the seed of what it asks for.
      versions: what may be found.
      tally: of all clients.
    """

    def __init__(self, url: str, number: int, versions: Versions, tally: Tally):
        self._http = httpx.Client(base_url=url, timeout=60)
        self._rng = random.Random(number)
        self._versions, self._tally = versions, tally

    def ask(self) -> None:
        """Asks for one page, in one of the two ways."""
        document = self._rng.randrange(_DOCUMENTS.value)
        version = self._versions.newest(document)
        wanted = Spelled(document, self._rng.randint(1, PAGES), version)
        self._by_files(wanted) if self._rng.random() < 0.5 else self._by_pages(wanted)

    def _by_files(self, wanted: Spelled) -> None:
        begun = time.monotonic()
        answer = self._get('/search', {'queries': wanted.words})
        if answer is None:
            return
        for number, hit in enumerate(answer.json()[0]):
            try:
                with Image.open(hit['image_file']) as image:
                    self._check(read_picture(image), None, begun, wanted if number == 0 else None)
            except FileNotFoundError:
                self._tally.count('missing', hit['image_file'])

    def _by_pages(self, wanted: Spelled) -> None:
        begun = time.monotonic()
        body = {'queries': [wanted.words], 'k': 5}
        answer = self._get('/search', None, body)
        if answer is None:
            return
        for number, hit in enumerate(answer.json()['results'][0]):
            shown = self._get(f'/pages/{hit["page_id"]}', {})
            if shown is not None:
                spelled = read_picture(Image.open(io.BytesIO(shown.content)))
                self._check(spelled, hit['page_id'], begun, wanted if number == 0 else None)

    def _check(self, found: Spelled, page_id: str | None, begun: float, wanted: Spelled | None
               ) -> None:
        """Checks a picture: of which page it is, of which version, and whether it is the best."""
        self._tally.count('pictures')
        behind = self._versions.behind(found.document, found.version, begun)
        with self._tally.lock:
            self._tally.behind = max(self._tally.behind, min(behind, 1e6))
        if behind > BEHIND:
            self._tally.count('old', f'{found}, {behind:.0f} s after the next was built')
        if page_id is not None and page_id != found.page_id:
            self._tally.count('wrong', f'{page_id} is shown as {found}')
        if wanted is None or dataclasses.replace(found, version=0) == dataclasses.replace(
                wanted, version=0):
            return
        # Words of another version than is served find nothing, or whatever shares a piece.
        if self._versions.settled(wanted.document, wanted.version, begun):
            self._tally.count('wrong', f'{found} instead of {wanted}')

    def _get(self, path: str, params: dict[str, str] | None, body: object = None
             ) -> httpx.Response | None:
        begun = time.monotonic()
        try:
            answer = self._http.get(path, params=params) if body is None else (
                self._http.post(path, json=body))
        except httpx.HTTPError as error:
            self._tally.count('errors', f'{path}: {error!r}')
            return None
        with self._tally.lock:
            self._tally.seconds.append(time.monotonic() - begun)
        self._tally.count('requests')
        if answer.status_code != 200:
            self._tally.count('errors', f'{path}: {answer.status_code} {answer.text[:100]}')
            return None
        return answer


def process_of(port: int) -> int:
    """Returns the id of the process that listens on a port of this machine."""
    inodes = {line.split()[9] for line in Path('/proc/net/tcp').read_text().splitlines()[1:]
              if line.split()[1].endswith(f':{port:04X}') and line.split()[3] == '0A'}
    for link in Path('/proc').glob('[0-9]*/fd/*'):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.removeprefix('socket:[').rstrip(']') in inodes:
            return int(link.parts[2])
    raise RuntimeError(f'nobody listens on port {port}')


def memory_of(process: int) -> float:
    """Returns the MB that a process holds."""
    status = Path(f'/proc/{process}/status').read_text()
    found = re.search(r'VmRSS:\s+(\d+) kB', status)
    assert found
    return int(found[1]) * 1024 / 1e6


def day(workdir: Path) -> tuple[Tally, list[tuple[float, float]], list[float]]:
    """Lives through it; returns what came of it, memory over time, and when updates ended."""
    versions, tally = Versions(_DOCUMENTS.value), Tally()
    sources, run = workdir.parent / f'{workdir.name}_sources', workdir
    updater = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.service_day_updates', str(sources), str(run)],
        cwd=paired.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL)
    told, answered = updater.stdin, updater.stdout
    assert told is not None and answered is not None

    def update(new: dict[int, int]) -> None:
        print(json.dumps(new), file=told, flush=True)
        if answered.readline() != 'done\n':
            raise RuntimeError(f'build_index ended with code {updater.wait()}')
        versions.built(new)

    samples: list[tuple[float, float]] = []
    ended: list[float] = []
    done = threading.Event()

    def work(client: Client) -> None:
        while not done.wait(_PAUSE.value):
            try:
                client.ask()
            except Exception:
                tally.count('errors', traceback.format_exc()[-300:])

    try:
        update(dict.fromkeys(range(_DOCUMENTS.value), 1))
        with service(run, [f'--config.data.manifest={run / "pages" / "pages.jsonl"}']) as port:
            process = process_of(port)
            begun = time.monotonic()

            def watch() -> None:
                while not done.wait(0.5):
                    samples.append((time.monotonic() - begun, memory_of(process)))

            url = f'http://127.0.0.1:{port}'
            threads = [threading.Thread(target=watch)] + [
                threading.Thread(target=work, args=(Client(url, n, versions, tally),))
                for n in range(_CLIENTS.value)]
            for thread in threads:
                thread.start()
            try:
                rng = random.Random(0)
                for number in range(_UPDATES.value):
                    due = begun + 60 * _MINUTES.value * number / _UPDATES.value
                    time.sleep(max(0.0, due - time.monotonic()))
                    update(versions.next(rng.sample(range(_DOCUMENTS.value), _CHANGED.value)))
                    ended.append(time.monotonic() - begun)
                time.sleep(max(0.0, begun + 60 * _MINUTES.value - time.monotonic()))
            finally:
                done.set()
                for thread in threads:
                    thread.join()
    finally:
        told.close()
        updater.wait()
    return tally, samples, ended


def main(_: list[str]) -> None:
    logging.getLogger('httpx').setLevel(logging.WARNING)  # It tells of every request.
    workdir = Path(_WORKDIR.value).resolve()
    if workdir.exists():
        raise SystemExit(f'--workdir: {workdir} exists; choose another')
    tally, samples, updates = day(workdir)
    counts = {name: tally.counts[name] for name in (
        'requests', 'pictures', 'wrong', 'old', 'missing', 'errors')}
    memory = [mb for _, mb in samples]
    record = paired.Conditions('service_day').record(
        'updates beside clients', 'MB', minutes=round(samples[-1][0] / 60, 2),
        updates=len(updates), clients=_CLIENTS.value, pages=PAGES * _DOCUMENTS.value, **counts,
        most_seconds_behind=round(tally.behind, 1),
        p50_ms=round(1000 * float(np.percentile(tally.seconds, 50)), 1),
        p99_ms=round(1000 * float(np.percentile(tally.seconds, 99)), 1),
        memory_first=round(memory[0], 1), memory_last=round(memory[-1], 1),
        memory_most=round(max(memory), 1), growth=round(growth(samples), 1))
    paired.emit(record, paired.OUT.value)
    if _PLOT.value:
        title = (f'memory of the service: {len(updates)} updates (red) beside {_CLIENTS.value} '
                 f'clients, {counts["requests"]} requests')
        plot(samples, updates, title).save(_PLOT.value)
    if counts['wrong'] or counts['old'] or counts['missing'] or counts['errors']:
        raise SystemExit('\n'.join(tally.faults))


if __name__ == '__main__':
    app.run(main)
