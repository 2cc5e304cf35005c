#!/usr/bin/env python3
"""Loads a running service as independent callers do: requests arrive by a Poisson process whether or not earlier ones are answered.

    cargo build --release
    python3 benches/peers/serve.py --seconds 30 --output benches/results/serve.json

Needs nothing but Python. It starts `beamfuse serve` on the demo model, on half of the cores that it may use, and sends from the other half. First
it measures the time of a request on the idle service, and the capacity C: requests per second with as many in flight as the service takes.
Then for each load, a multiple of C, seeded arrivals for so many seconds. Latency counts from the scheduled arrival, so that a slow
sender does not hide a slow service. Each request is one sentence of the file; an answer of status 200 has to be the one that the command line
gives.
"""
import argparse, asyncio, json, os, pathlib, platform, random, resource, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = pathlib.Path(os.environ.get('BEAMFUSE_BINARY', ROOT / 'target' / 'release' / 'beamfuse'))
LOADS = [0.5, 0.9, 1.5, 2.0]


async def ask(port, source):
    """(status, text or kind of error) of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port)
    try:
        body = json.dumps(dict(items=[dict(source=source)])).encode()
        head = f'POST /v1/translate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n'
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b'\r\n\r\n')
    status = int(head.split(b' ')[1])
    answer = json.loads(body)
    return status, answer['items'][0].get('text') if status == 200 else answer['error']['kind']


async def capacity(port, lines, seconds, at_once):
    """Requests answered per second with so many in flight."""
    end, done = time.monotonic() + seconds, 0

    async def client(seed):
        nonlocal done
        chooser = random.Random(seed)
        while time.monotonic() < end:
            status, _ = await ask(port, chooser.choice(lines))
            done += status == 200

    start = time.monotonic()
    await asyncio.gather(*(client(seed) for seed in range(at_once)))
    return done / (time.monotonic() - start)


async def open_loop(port, lines, expected, rate, seconds, seed):
    """What became of requests that arrive at this rate."""
    chooser = random.Random(seed)
    outcomes, tasks, at = [], [], 0.0
    start = time.monotonic() + 0.2

    async def one(scheduled, source):
        try:
            status, text = await ask(port, source)
            wrong = status == 200 and text != expected[source]
            outcomes.append((status, time.monotonic() - scheduled, wrong))
        except (OSError, ValueError, IndexError) as error:
            outcomes.append((type(error).__name__, time.monotonic() - scheduled, False))

    while True:
        at += chooser.expovariate(rate)
        if at > seconds:
            break
        await asyncio.sleep(max(0.0, start + at - time.monotonic()))
        tasks.append(asyncio.create_task(one(start + at, chooser.choice(lines))))
    await asyncio.gather(*tasks)
    return outcomes, time.monotonic() - start


def quantile(times, share):
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def summary(outcomes, wall, sent_rate, capacity):
    good = [seconds for status, seconds, _ in outcomes if status == 200]
    refused = [seconds for status, seconds, _ in outcomes if status == 503]
    rounded = lambda value: None if value is None else round(value, 4)
    return dict(
        requests=len(outcomes), load=round(sent_rate / capacity, 2), answered=len(good), refused=len(refused),
        other=len(outcomes) - len(good) - len(refused), wrong=sum(wrong for *_, wrong in outcomes),
        goodput_of_capacity=round(len(good) / wall / capacity, 3), p50=rounded(quantile(good, 0.5)), p99=rounded(quantile(good, 0.99)),
        refused_p99=rounded(quantile(refused, 0.99)))


def resident(process):
    for line in pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lines', type=pathlib.Path, default=ROOT / 'tests' / 'data' / 'own' / 'own.en')
    parser.add_argument('--seconds', type=float, default=30)
    parser.add_argument('--loads', default=','.join(map(str, LOADS)))
    parser.add_argument('--max-wait', type=int, default=5)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--output', type=pathlib.Path)
    arguments = parser.parse_args()
    lines = [line for line in arguments.lines.read_text().splitlines() if line.strip() and len(line) < 300]
    # Lines that the model cannot read have no translation to compare.
    said = subprocess.run([BINARY, 'translate', '--format', 'jsonl'], input='\n'.join(lines), capture_output=True, text=True).stdout
    translated = [json.loads(line) for line in said.splitlines()]
    expected = {line['source']: line['hypotheses'][0]['text'] for line in translated if 'hypotheses' in line}
    lines = list(expected)
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    own, theirs = cores[half:] or cores, cores[:half]
    os.sched_setaffinity(0, own)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    command = [str(BINARY), 'serve', '--listen', '127.0.0.1:0', '--no-log', '--threads', str(len(theirs)), '--max-wait', str(arguments.max_wait)]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, theirs))
    try:
        port = int(service.stdout.readline().rsplit(':', 1)[1])
        idle = [timed(port, line) for line in (lines * 3)[:100]]
        bound = asyncio.run(capacity(port, lines, min(20, arguments.seconds), 64))
        report = dict(
            machine=dict(processor=processor(), cores_of_service=len(theirs), cores_of_sender=len(own)), command=sys.argv, binary=' '.join(command[1:]),
            idle=dict(p50=round(statistics.median(idle), 4), p99=round(quantile(idle, 0.99), 4)), capacity=round(bound, 2), loads=[])
        for number, load in enumerate(map(float, arguments.loads.split(','))):
            before = resident(service)
            run = open_loop(port, lines, expected, load * bound, arguments.seconds, arguments.seed + number)
            outcomes, wall = asyncio.run(run)
            entry = summary(outcomes, max(wall, arguments.seconds), load * bound, bound)
            report['loads'].append(dict(entry, resident_before=before, resident_after=resident(service)))
            print(json.dumps(report['loads'][-1]), flush=True)
    finally:
        service.terminate()
        service.wait()
    text = json.dumps(report, indent=1) + '\n'
    if arguments.output:
        arguments.output.write_text(text)
    print(text)


def timed(port, line):
    start = time.monotonic()
    status, _ = asyncio.run(ask(port, line))
    assert status == 200, status
    return time.monotonic() - start


def processor():
    names = [line.split(':')[1].strip() for line in open('/proc/cpuinfo') if line.startswith('model name')]
    return names[0] if names else platform.machine()


if __name__ == '__main__':
    main()
