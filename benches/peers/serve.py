#!/usr/bin/env python3
"""Loads a running service as independent callers do: requests arrive by a Poisson process whether or not earlier ones are answered.

    cargo build --release
    python3 benches/peers/serve.py --seconds 30 [--sustain 600] [--peer] [--abuse] --output benches/results/serve.json

Needs nothing but Python. It starts `beamfuse serve` on the demo model, on half of the cores that it may use, and sends from the other half. First
it measures the time of a request on the idle service, and the capacity C: requests per second with 64 in flight, which is what its slots take and
as many waiting. Then for each load, a multiple of C, seeded arrivals for so many seconds. C is measured again behind each load, and what became of
the load is compared with the mean of the two beside it: a machine's speed may change by a fifth within a minute. Latency counts from the scheduled arrival, so that a slow
sender does not hide a slow service. Each request is one sentence of the file; an answer of status 200 has to be the one that the command line
gives.

The sender's half is kept busy all the time, by a process that runs when nothing else there does: two halves may be hyperthreads of the same
core, where the service would run the faster the less is sent, and a capacity that is measured with few requests would be one that no load reaches.

--sustain goes on with the highest of the loads for so many seconds, and notes the service's memory every ten.

--peer does the same, in turn, with CTranslate2 behind a batching asyncio server (serve_ctranslate2.py) on the same weights and cores, at the same
requests per second. --abuse adds a tenant that sends ten times what another does, 30% of callers that hang up at once, and ten thousand
connections that say nothing.
"""
import argparse, asyncio, contextlib, json, os, pathlib, platform, random, resource, statistics, subprocess, sys, time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = pathlib.Path(os.environ.get('BEAMFUSE_BINARY', ROOT / 'target' / 'release' / 'beamfuse'))
LOADS = [0.5, 0.9, 1.5, 2.0]


def request(source):
    body = json.dumps(dict(items=[dict(source=source)])).encode()
    head = f'POST /v1/translate HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n'
    return head.encode() + body


async def ask(port, source, address='127.0.0.1'):
    """(status, text or kind of error) of one request on a connection of its own, from this address."""
    reader, writer = await asyncio.open_connection('127.0.0.1', port, local_addr=(address, 0))
    try:
        writer.write(request(source))
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


async def open_loop(port, lines, expected, rate, seconds, seed, address='127.0.0.1'):
    """What became of requests that arrive at this rate."""
    chooser = random.Random(seed)
    outcomes, tasks, at = [], [], 0.0
    start = time.monotonic() + 0.2

    async def one(scheduled, source):
        try:
            status, text = await ask(port, source, address)
            wrong = status == 200 and expected[source] not in (None, text)
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


def summary(outcomes, wall, rate, capacity):
    good = [seconds for status, seconds, _ in outcomes if status == 200]
    refused = [seconds for status, seconds, _ in outcomes if status == 503]
    rounded = lambda value: None if value is None else round(value, 4)
    return dict(
        requests=len(outcomes), rate=round(rate, 2), capacity=round(capacity, 2), load=round(rate / capacity, 2), answered=len(good), refused=len(refused),
        other=len(outcomes) - len(good) - len(refused), wrong=sum(wrong for *_, wrong in outcomes),
        goodput_of_capacity=round(len(good) / wall / capacity, 3), p50=rounded(quantile(good, 0.5)), p99=rounded(quantile(good, 0.99)),
        refused_p99=rounded(quantile(refused, 0.99)))


def resident(process):
    for line in pathlib.Path(f'/proc/{process.pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024


@contextlib.contextmanager
def kept_busy(cores):
    """While these cores are computed on whenever nothing else is there to do."""
    def restrict(core):
        os.sched_setaffinity(0, {core})
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    endless = [sys.executable, '-c', 'while True: pass']
    processes = [subprocess.Popen(endless, preexec_fn=lambda core=core: restrict(core)) for core in cores]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def running(command, cores):
    """A service on these cores, and its port."""
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    try:
        yield service, int(service.stdout.readline().rsplit(':', 1)[1])
    finally:
        service.terminate()
        service.wait()


def measure(service, port, lines, expected, arguments, report, save, rates=None):
    """Adds idle latency, capacity, and each load to the report; at `rates` requests a second, or at multiples of the capacity."""
    idle = [timed(port, line) for line in (lines * 3)[:100]]
    bound = measured_capacity(port, lines, arguments)
    report |= dict(idle=dict(p50=round(statistics.median(idle), 4), p99=round(quantile(idle, 0.99), 4)), loads=[])
    for number, load in enumerate(map(float, arguments.loads.split(','))):
        rate, before = rates[number] if rates else load * bound, resident(service)
        outcomes, wall = asyncio.run(open_loop(port, lines, expected, rate, arguments.seconds, arguments.seed + number))
        after, memory = measured_capacity(port, lines, arguments), resident(service)
        entry = dict(summary(outcomes, max(wall, arguments.seconds), rate, (bound + after) / 2), resident_before=before, resident_after=memory)
        bound = after
        report['loads'].append(entry)
        print(json.dumps(entry), flush=True)
        save()
    return bound


def measured_capacity(port, lines, arguments):
    return asyncio.run(capacity(port, lines, min(20, arguments.seconds), 64))


def sustain(service, port, lines, expected, arguments, report, save, bound):
    """Adds what became of the highest load when it went on for longer; gives the capacity behind it."""
    rate = max(map(float, arguments.loads.split(','))) * bound

    async def watched():
        async def watch():
            while True:
                await asyncio.sleep(10)
                memory.append(resident(service))

        memory, watcher = [], asyncio.create_task(watch())
        outcomes, wall = await open_loop(port, lines, expected, rate, arguments.sustain, arguments.seed)
        watcher.cancel()
        return outcomes, wall, memory

    outcomes, wall, memory = asyncio.run(watched())
    after = measured_capacity(port, lines, arguments)
    report['sustained'] = dict(summary(outcomes, wall, rate, (bound + after) / 2), seconds=arguments.sustain,
                               resident_every_10_s=memory)
    print(json.dumps(report['sustained']), flush=True)
    save()
    return after


async def tenants(port, lines, expected, rates, seconds, seed):
    """What became of the requests of several tenants, told apart by the address that they come from."""
    runs = [open_loop(port, lines, expected, rate, seconds, seed + number, f'127.0.0.{2 + number}') for number, rate in enumerate(rates)]
    return [outcomes for outcomes, _ in await asyncio.gather(*runs)]


async def with_hang_ups(port, lines, expected, rate, seconds, seed):
    """As `open_loop`, while 3 callers for each 7 hang up as soon as they have asked."""
    async def hang_up():
        chooser, end = random.Random(seed + 1), time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(chooser.expovariate(rate * 3 / 7))
            _, writer = await asyncio.open_connection('127.0.0.1', port)
            writer.write(request(chooser.choice(lines)))
            await writer.drain()
            writer.transport.abort()

    (outcomes, _), _ = await asyncio.gather(open_loop(port, lines, expected, rate, seconds, seed), hang_up())
    return outcomes


async def beside_idle_connections(port, lines, count):
    """Seconds of requests while so many connections are open, or would be, that say nothing."""
    idle, refused = [], 0
    for _ in range(count):
        try:
            idle.append(await asyncio.wait_for(asyncio.open_connection('127.0.0.1', port), 2))
        except (OSError, TimeoutError):
            refused += 1
    times, refusals, since = [], 0, time.monotonic()
    while len(times) < 100:
        begun = time.monotonic()
        try:
            status, _ = await ask(port, lines[len(times) % len(lines)])
        except (OSError, ValueError, IndexError):
            status = None
        if status == 200:
            times.append(time.monotonic() - begun)
            if len(times) == 1:
                first = begun - since
        else:
            refusals += 1
            await asyncio.sleep(0.2)
    for _, writer in idle:
        writer.transport.abort()
    return dict(opened=len(idle), not_opened=refused, first_answer_after=round(first, 2), refused_before=refusals, p50=quantile(times, 0.5), p99=quantile(times, 0.99))


def abuse(port, lines, expected, arguments, bound):
    """How one caller's conduct touches another's latency."""
    p99 = lambda outcomes: quantile([seconds for status, seconds, _ in outcomes if status == 200], 0.99)
    share = bound / 10
    [alone] = asyncio.run(tenants(port, lines, expected, [share], arguments.seconds, arguments.seed))
    quiet, loud = asyncio.run(tenants(port, lines, expected, [share, 10 * share], arguments.seconds, arguments.seed))
    steady, _ = asyncio.run(open_loop(port, lines, expected, bound / 2, arguments.seconds, arguments.seed))
    beside = asyncio.run(with_hang_ups(port, lines, expected, bound / 2, arguments.seconds, arguments.seed))
    found = dict(
        tenant=dict(summary(quiet, arguments.seconds, share, bound), p99_alone=p99(alone), loud=summary(loud, arguments.seconds, 10 * share, bound)),
        hang_ups=dict(summary(beside, arguments.seconds, bound / 2, bound), p99_without=p99(steady)),
        idle_connections=asyncio.run(beside_idle_connections(port, lines, 10_000)))
    print(json.dumps(found), flush=True)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--lines', type=pathlib.Path, default=ROOT / 'tests' / 'data' / 'own' / 'own.en')
    parser.add_argument('--seconds', type=float, default=30)
    parser.add_argument('--loads', default=','.join(map(str, LOADS)))
    parser.add_argument('--sustain', type=float, default=0, metavar='SECONDS')
    parser.add_argument('--max-wait', type=int, default=5)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--peer', action='store_true')
    parser.add_argument('--abuse', action='store_true')
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
    report = dict(machine=dict(processor=processor(), cores_of_service=len(theirs), cores_of_sender=len(own)), command=sys.argv,
                  seconds=arguments.seconds, binary=' '.join(command[1:]))

    def save():
        """What there is so far: a run may take long, and be cut off."""
        if arguments.output:
            arguments.output.write_text(json.dumps(report, indent=1) + '\n')

    with kept_busy(own), running(command, theirs) as (service, port):
        bound = measure(service, port, lines, expected, arguments, report, save)
        if arguments.sustain:
            bound = sustain(service, port, lines, expected, arguments, report, save, bound)
        if arguments.abuse:
            report['abuse'] = abuse(port, lines, expected, arguments, bound)
            save()
    if arguments.peer:
        command = [sys.executable, str(pathlib.Path(__file__).with_name('serve_ctranslate2.py')), '--threads', str(len(theirs))]
        with kept_busy(own), running(command, theirs) as (service, port):
            # Its own searches differ in places: nothing is compared.
            same = dict.fromkeys(lines)
            report['ctranslate2'] = {}
            measure(service, port, lines, same, arguments, report['ctranslate2'], save, [entry['rate'] for entry in report['loads']])
    print(json.dumps(report, indent=1))


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
